# mypy: ignore-errors
"""The pair arithmetic in Triton: distance → γ(h) → policy → a, b, f, in the definitions' order and letters.

Every function works on blocks of any shape that broadcast, in float32. What decides the code is `constexpr`:
POLICY, the kind of the negative policy; KINDS, the kinds of the semivariogram's structures; CHORD, its
metric; SOURCE, where d comes from ("embeddings", "features" or "" for nowhere). `numbers` come from a
tensor, in the order of `pair_options`, so that a refit compiles nothing. NaN is kept everywhere: a bad
coordinate must reach the loss.

FAST takes the processor's own instruction for log2, which `tl.log2`, a library function, does not reach; the
interpreter and AMD take the plain twin. `tl.sqrt` and `tl.exp2` are single instructions already.
"""

import functools

import triton
import triton.language as tl

EARTH_DIAMETER_KM = tl.constexpr(12742.0176)  # 2R, R = 6371.0088
EARTH_RADIUS_KM = tl.constexpr(6371.0088)
HALF_TURN_KM = tl.constexpr(20015.114442035924)  # πR
LOG2_E = tl.constexpr(1.442695040888963)
LN_2 = tl.constexpr(0.693147180559945)
GAUSSIAN_RESCALE_SQUARED = tl.constexpr(0.785398163397448)  # π/4
MATERN32_RESCALE = tl.constexpr(1.224744871391589)  # √1.5

# places in `numbers`
HARD = tl.constexpr(0)
FALSE = tl.constexpr(1)
FAR = tl.constexpr(2)
TOLERANCE = tl.constexpr(3)
MASS = tl.constexpr(4)
RANGE_KM = tl.constexpr(5)
STRENGTH = tl.constexpr(6)
INVERSE_SCALE = tl.constexpr(7)
WEIGHT = tl.constexpr(8)
INVERSE_SILL = tl.constexpr(9)
NUGGET = tl.constexpr(10)
PSILL = tl.constexpr(11)
STRUCTURES = tl.constexpr(12)  # share of the partial sill, 1 / length scale and alpha of every structure


@triton.jit
def load_numbers(place, KINDS: tl.constexpr):
    """Return what `pair_options.pair_parameters` wrote, as a tuple."""
    numbers = (
        tl.load(place), tl.load(place + 1), tl.load(place + 2), tl.load(place + 3), tl.load(place + 4),
        tl.load(place + 5), tl.load(place + 6), tl.load(place + 7), tl.load(place + 8), tl.load(place + 9),
        tl.load(place + 10), tl.load(place + 11), tl.load(place + 12), tl.load(place + 13),
        tl.load(place + 14), tl.load(place + 15), tl.load(place + 16), tl.load(place + 17),
    )  # fmt: skip
    for k in tl.static_range(18, 12 + 3 * len(KINDS)):
        numbers = numbers + (tl.load(place + k),)  # noqa: RUF005 (Triton 3.6 has no other way)
    return numbers


@triton.jit
def positive_part(x):
    """Return max(0, x), NaN kept."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_most(x, bound):
    """Return min(x, bound), NaN kept."""
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def log2(x, FAST: tl.constexpr):
    """Return the logarithm, −∞ at 0; within 2⁻²² of the result or, from ½ to 2, of 1."""
    if FAST:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.log2(x)


@triton.jit
def exp(x):
    """Return e^x."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def power(z, alpha, FAST: tl.constexpr):
    """Return z^alpha for z ≥ 0 and alpha > 0."""
    return tl.exp2(alpha * log2(z, FAST))


@triton.jit
def squared_chords(px, py, pz, qx, qy, qz):
    """Return ‖p−q‖² and ‖p+q‖² of unit vectors."""
    dx, dy, dz = px - qx, py - qy, pz - qz
    sx, sy, sz = px + qx, py + qy, pz + qz
    return dx * dx + dy * dy + dz * dz, sx * sx + sy * sy + sz * sz


@triton.jit
def great_circle_km(near, far):
    """Return h from near = ‖p−q‖² and far = ‖p+q‖²: twice the arc of the shorter half chord.

    From p to q, or from p to q's antipode. The arc is asin(z) = z + z³·P(z²) on 0 ≤ z ≤ √½, with a relative
    error of 2e-8 before rounding (Remez exchange).
    """
    is_near = near < far
    w = 0.25 * tl.where(is_near, near, far)  # z²
    z = tl.sqrt(w)
    y = w * 1.11301862721e-1 - 9.25946473350e-2
    y = y * w + 7.69561749092e-2
    y = y * w + 1.63944616025e-2
    y = y * w + 4.65014055843e-2
    y = y * w + 7.48849047759e-2
    y = y * w + 1.66669054319e-1
    km = EARTH_DIAMETER_KM * (z + z * w * y)
    return tl.where(is_near, km, HALF_TURN_KM - km)


@triton.jit
def chord_km(near):
    """Return the straight line through the Earth."""
    return EARTH_RADIUS_KM * tl.sqrt(near)


@triton.jit
def kind_correlation(z, alpha, KIND: tl.constexpr, FAST: tl.constexpr):
    """Return ρ of one structure at z = lag / length scale, with GSTools' formulas and rescaling."""
    if KIND == "stable":
        return exp(-power(z, alpha, FAST))
    elif KIND == "exponential":
        return exp(-z)
    elif KIND == "gaussian":
        return exp(-(z * z) * GAUSSIAN_RESCALE_SQUARED)
    elif KIND == "spherical":
        z = at_most(z, 1.0)
        return (1.0 - z) * (1.0 - z) * (1.0 + 0.5 * z)  # = 1 − 1.5z + 0.5z³, without its cancellation
    else:
        tl.static_assert(KIND == "matern32")
        z = at_most(MATERN32_RESCALE * z, 200.0)  # where e⁻ᶻ is 0: keeps 0·∞ away
        return (1.0 + z) * exp(-z)


@triton.jit
def correlation(lag, numbers, KINDS: tl.constexpr, FAST: tl.constexpr):
    """Return ρ(lag) = Σ share_k·ρ_k(lag / length scale_k)."""
    rho = 0.0
    for k in tl.static_range(len(KINDS)):
        share = numbers[STRUCTURES + 3 * k]
        inverse_len_scale = numbers[STRUCTURES + 3 * k + 1]
        alpha = numbers[STRUCTURES + 3 * k + 2]
        # an entry of a captured tuple is a plain string in Triton 3.6
        rho += share * kind_correlation(lag * inverse_len_scale, alpha, tl.constexpr(KINDS[k]), FAST)
    return rho


@triton.jit
def policy_terms(h, d, gamma, rho, numbers, POLICY: tl.constexpr, FAST: tl.constexpr):
    """Return a, b and f of negative pairs with distance h in km, dissimilarity d, γ(h) and ρ(h)."""
    if POLICY == "none":
        return 1.0, 0.0, 0.0
    elif POLICY == "distance":
        near = exp(-h * numbers[INVERSE_SCALE])
        return 1.0, LN_2 * log2(1.0 + numbers[STRENGTH] * near, FAST), 0.0
    elif POLICY == "distance_linear":
        near = exp(-h * numbers[INVERSE_SCALE])
        return 1.0, -numbers[WEIGHT] * near, 0.0
    else:
        surprise = gamma - d
        if POLICY == "penalty":
            # the range is rounded down, so that h > range decides as with the unrounded one
            far = h > numbers[RANGE_KM]
            return tl.where(far, 1.0, exp(positive_part(-surprise))), 0.0, 0.0
        else:
            excess = positive_part(surprise - numbers[TOLERANCE])
            hard, false = numbers[HARD], numbers[FALSE]
            if POLICY == "threshold":
                return 1.0, tl.where(h > numbers[RANGE_KM], hard, -false) * excess, 0.0
            elif POLICY == "explained":
                inverse_sill = numbers[INVERSE_SILL]
                # a sill of 0 comes as 1/sill = 0: nothing is explained
                alike = tl.where(inverse_sill > 0.0, positive_part(1.0 - d * inverse_sill), 0.0)
                beyond = hard * excess + numbers[FAR]
                return 1.0, beyond - rho * (beyond + false * alike), 0.0
            else:
                b = excess * (hard * (1.0 - rho) - false * rho)
                if POLICY == "rectify":
                    alike = tl.where(gamma > 0.0, at_most(excess / gamma, 1.0), 0.0)
                    return 1.0, b, numbers[MASS] * alike * rho
                else:
                    tl.static_assert(POLICY == "semivariogram")
                    return 1.0, b, 0.0


@triton.jit
def pair_terms(
    px,
    py,
    pz,
    qx,
    qy,
    qz,
    d,
    numbers,
    POLICY: tl.constexpr,
    KINDS: tl.constexpr,
    CHORD: tl.constexpr,
    SOURCE: tl.constexpr,
    FAST: tl.constexpr,
):
    """Return a, b and f of negative pairs at unit vectors p and q with dissimilarity d."""
    if POLICY == "none":
        return 1.0, 0.0, 0.0
    else:
        near, far = squared_chords(px, py, pz, qx, qy, qz)
        if SOURCE == "":
            return policy_terms(great_circle_km(near, far), 0.0, 0.0, 0.0, numbers, POLICY, FAST)
        else:
            if CHORD:
                lag = chord_km(near)
                h = lag
                if POLICY == "threshold" or POLICY == "penalty":
                    h = great_circle_km(near, far)
            else:
                lag = great_circle_km(near, far)
                h = lag
            rho = correlation(lag, numbers, KINDS, FAST)
            gamma = numbers[NUGGET] + numbers[PSILL] * (1.0 - rho)
            return policy_terms(h, d, gamma, rho, numbers, POLICY, FAST)


@triton.jit
def logits_of(
    cos,
    vu_cos,
    scale,
    positive,
    blank,
    px,
    py,
    pz,
    qx,
    qy,
    qz,
    numbers,
    POLICY: tl.constexpr,
    KINDS: tl.constexpr,
    CHORD: tl.constexpr,
    SOURCE: tl.constexpr,
    FAST: tl.constexpr,
):
    """Return l = a·s·cos + b, a and f; positives keep a = 1, b = f = 0.

    `cos` is −∞ where the pair is excluded, and so becomes l. `blank`: one of the two has no image.
    """
    similarity = scale * cos
    if SOURCE == "embeddings":
        d = at_most(positive_part(1.0 - vu_cos), 2.0)
        if POLICY == "explained":  # says something of pairs without an image too: these are alike to nothing
            d = tl.where(blank, float("inf"), d)
            untouched = positive
        else:  # fewer registers than the same for every policy
            untouched = positive | blank
    else:
        d = 1.0 - cos
        untouched = positive
    a, b, f = pair_terms(px, py, pz, qx, qy, qz, d, numbers, POLICY, KINDS, CHORD, SOURCE, FAST)
    dead = cos == float("-inf")
    if POLICY == "none":
        logits = similarity
    else:
        if POLICY == "penalty":
            a = tl.where(untouched, 1.0, a)
            logits = a * similarity
        else:
            logits = similarity + tl.where(untouched, 0.0, b)
        if POLICY == "rectify":
            f = tl.where(untouched | dead, 0.0, f)
    return tl.where(dead, float("-inf"), logits), a, f


@triton.jit
def block_logits(
    cos,
    vu_cos,
    scale,
    positive,
    blank,
    px,
    py,
    pz,
    qx,
    qy,
    qz,
    numbers,
    POLICY: tl.constexpr,
    KINDS: tl.constexpr,
    CHORD: tl.constexpr,
    SOURCE: tl.constexpr,
    FAST: tl.constexpr,
    MAPPED: tl.constexpr,
):
    """`logits_of` over a block; MAPPED is `mapped_logits_of` of the same options, or None."""
    if MAPPED is None:
        logits, a, f = logits_of(
            cos, vu_cos, scale, positive, blank, px, py, pz, qx, qy, qz, numbers,
            POLICY, KINDS, CHORD, SOURCE, FAST,
        )  # fmt: skip
    else:
        logits, a, f = MAPPED(cos, vu_cos, scale, positive, blank, px, py, pz, qx, qy, qz, numbers)
    return logits, a, f


@functools.cache
def mapped_logits_of(policy, kinds, chord, source):
    """Make `logits_of` of one pair after the other, FAST, for at most two structures.

    Over a whole tile every intermediate is held for all pairs of a thread at once, and next to a large
    accumulator nothing compiles without spills. Its a is meaningful for "penalty" only, its f for "rectify".
    """
    POLICY, KINDS = tl.constexpr(policy), tl.constexpr(kinds)
    CHORD, SOURCE, FAST = tl.constexpr(chord), tl.constexpr(source), tl.constexpr(True)

    @triton.jit
    def scalar_logits(
        cos, vu_cos, scale, positive, blank, px, py, pz, qx, qy, qz,
        n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11, n12, n13, n14, n15, n16, n17,
    ):  # fmt: skip
        numbers = (n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11, n12, n13, n14, n15, n16, n17)
        logits, a, f = logits_of(
            cos, vu_cos, scale, positive, blank, px, py, pz, qx, qy, qz, numbers,
            POLICY, KINDS, CHORD, SOURCE, FAST,
        )  # fmt: skip
        if POLICY == "rectify":
            return logits, f
        elif POLICY == "penalty":
            return logits, a
        else:
            return logits, 0.0 * scale

    @triton.jit
    def mapped_logits(cos, vu_cos, scale, positive, blank, px, py, pz, qx, qy, qz, n):
        if SOURCE != "embeddings":  # not read, but a block is wanted
            vu_cos, blank = cos, positive
        logits, extra = tl.map_elementwise(
            scalar_logits, cos, vu_cos, scale, positive, blank, px, py, pz, qx, qy, qz,
            n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14],
            n[15], n[16], n[17],
        )  # fmt: skip
        return logits, extra, extra

    return mapped_logits
