import pytest
import torch
import torch._dynamo.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_loss import MODEL, problem
from test_policy import POLICIES

from semivario_kernels import NegativePolicy, VariogramModel, available_backends, semivariogram_info_nce
from semivario_kernels.backends import tile_driver
from semivario_kernels.operator import info_nce, info_nce_backward

BACKENDS = [name for name in available_backends() if name != "reference"]
POLICY = NegativePolicy.rectify(0.4, 3.0, 5.0)
LEAVES = ("x", "y", "logit_scale")


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setenv("SEMIVARIO_BACKEND", request.param)
    return request.param


def arguments(p, policy, reduction, backend, *, symmetric=False):
    """The operator's own arguments."""
    n = p["x"].shape[0]
    reads = policy.kind != "none"
    return (
        p["x"],
        p["y"],
        p["logit_scale"],
        torch.arange(n),
        p["query_latlon"] if reads else None,
        p["gallery_latlon"] if reads else None,
        p["query_embeddings"] if reads else None,
        p["gallery_embeddings"] if reads else None,
        (torch.arange(n)[:, None] + 1) % n,
        torch.linspace(0.5, 1, n),
        torch.cat([policy.parameters, MODEL.parameters]) if reads else policy.parameters,
        policy.kind,
        MODEL.signature if reads else "",
        0.1,
        symmetric,
        True,
        reduction,
        backend,
        0,
        True,
        True,
        True,
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("policy", [NegativePolicy.none(), POLICY], ids=lambda policy: policy.kind)
def test_opcheck(policy, reduction, symmetric, backend):
    p = problem(n=11, m=11 if symmetric else 17)
    torch.library.opcheck(info_nce, arguments(p, policy, reduction, backend, symmetric=symmetric))


def test_opcheck_of_the_backward(backend):
    p = problem()
    forward = arguments(p, POLICY, "none", backend)
    statistics = info_nce(*forward)[4:]
    upstream = torch.randn(11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in forward]
    torch.library.opcheck(
        info_nce_backward,
        (upstream, *(t.detach() for t in statistics), *detached[:9], *detached[10:16], *detached[17:]),
    )


def test_compiles_in_one_graph_and_a_refit_does_not_recompile():
    p = {k: t.detach().float() for k, t in problem().items()}
    layer = torch.nn.Linear(p["x"].shape[1], p["x"].shape[1])

    def step(variogram):
        return semivariogram_info_nce(**{**p, "x": layer(p["x"])}, variogram=variogram, policy=POLICY)

    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for variogram in (
        MODEL,
        VariogramModel("stable", 0.1, 0.6, 90.0, 0.7),
        VariogramModel("stable", 0, 1, 9, 0.9),
    ):
        results = []
        for function in (compiled, step):
            layer.zero_grad()
            loss = function(variogram)
            loss.backward()
            results.append((loss.detach(), layer.weight.grad.clone()))
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)
    assert counter.frame_count == 1


def of_sizes(n, m):
    """In single precision, with what a call may have beside: targets, weights, exclusions."""
    p = {k: t.detach().float() for k, t in problem(n=n, m=m).items()}
    p["x"].requires_grad_()
    return p, {
        "targets": torch.arange(n).flip(0),
        "row_weights": torch.linspace(0.5, 1, n),
        "exclude": ((torch.arange(n).flip(0) + 1) % m)[:, None],
    }


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("more", [False, True])
def test_other_sizes_are_compiled_once_more_at_most(reduction, more):
    """A compiler that fixed the sizes would give up after eight."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(semivariogram_info_nce, backend=counter, fullgraph=True)
    for k in range(10):
        p, options = of_sizes(5 + k, 21 + 2 * k)
        options = {**(options if more else {}), "reduction": reduction}
        got, wanted = (
            torch.autograd.grad(loss(**p, variogram=MODEL, policy=POLICY, **options).sum(), p["x"])[0]
            for loss in (compiled, semivariogram_info_nce)
        )
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)
    assert counter.frame_count <= 2


def test_sizes_that_are_dynamic_from_the_start_are_compiled_once():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(semivariogram_info_nce, backend=counter, fullgraph=True, dynamic=True)
    frames = []
    for n, m in ((8, 21), (9, 23), (12, 40)):
        p, options = of_sizes(n, m)
        loss = compiled(**p, variogram=MODEL, policy=POLICY, **options)
        wanted = semivariogram_info_nce(**p, variogram=MODEL, policy=POLICY, **options)
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
        frames.append(counter.frame_count)
    assert frames[0] == frames[1] == frames[2]


def test_forward_mode_derivatives_are_refused():
    p = {k: t.detach() for k, t in problem().items()}

    def loss(x):
        return semivariogram_info_nce(**{**p, "x": x}, variogram=MODEL, policy=POLICY)

    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(loss, (p["x"],), (torch.ones_like(p["x"]),))
    with torch.autograd.forward_ad.dual_level():  # of something else
        assert torch.equal(loss(p["x"]), loss(p["x"]))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_many_upstream_gradients_at_once(reduction):
    p = problem()
    loss = semivariogram_info_nce(**p, variogram=MODEL, policy=POLICY, reduction=reduction)
    upstream = torch.stack([torch.ones_like(loss), -2 * torch.ones_like(loss)])
    (many,) = torch.autograd.grad(loss, p["x"], upstream, is_grads_batched=True, retain_graph=True)
    (one,) = torch.autograd.grad(loss, p["x"], upstream[0])
    torch.testing.assert_close(many, torch.stack([one, -2 * one]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_embeddings_of_inference_mode(reduction):
    p = problem()
    (wanted,) = torch.autograd.grad(
        semivariogram_info_nce(**p, variogram=MODEL, policy=POLICY, reduction=reduction).sum(), p["x"]
    )
    with torch.inference_mode():
        p |= {name: p[name].clone() for name in ("query_embeddings", "gallery_embeddings")}
    loss = semivariogram_info_nce(**p, variogram=MODEL, policy=POLICY, reduction=reduction)
    assert torch.equal(torch.autograd.grad(loss.sum(), p["x"])[0], wanted)


@pytest.mark.parametrize(
    "policy", [NegativePolicy.explained(3, 5), POLICY, NegativePolicy.penalty(900.0)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_embeddings_longer_than_the_features(dtype, policy, backend):
    """NumPy's embeddings are float64."""
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies bfloat16 wrongly")
    p = {k: t.detach() for k, t in problem().items()}
    p |= {name: p[name].to(dtype) for name in ("x", "y")}
    for workspace_mb in (1, 100):
        options = {"variogram": MODEL, "policy": policy, "workspace_mb": workspace_mb}
        losses, gradients = [], []
        for embeddings in (torch.float64, torch.float32):
            of = {name: p[name].to(embeddings) for name in ("query_embeddings", "gallery_embeddings")}
            loss, gradient = gradients_of({**p, **of}, **options)
            losses.append(loss)
            gradients.append(gradient)
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
        torch.testing.assert_close(*losses, **tolerance)
        torch.testing.assert_close(*gradients, **tolerance)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["query_embeddings", "gallery_embeddings"])
def test_an_embedding_that_is_no_number_is_not_taken_for_a_missing_image(side, bad):
    p = {k: t.detach() for k, t in problem().items()}
    p[side][4, 0] = bad
    options = {"variogram": MODEL, "policy": POLICY, "reduction": "none"}
    got = semivariogram_info_nce(**p, **options)
    wanted = semivariogram_info_nce(**p, **options, backend="reference")
    assert wanted.isnan().any()
    assert torch.equal(got.isnan(), wanted.isnan())


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_are_refused(reduction):
    p = problem()
    loss = semivariogram_info_nce(**p, variogram=MODEL, policy=POLICY, reduction=reduction)
    with pytest.raises(RuntimeError, match="no second derivative: call backward without create_graph=True"):
        torch.autograd.grad(loss.sum(), p["x"], create_graph=True)


def test_backward_twice_with_a_retained_graph():
    p = problem()
    loss = semivariogram_info_nce(**p, variogram=MODEL, policy=POLICY)
    loss.backward(retain_graph=True)
    once = [p[name].grad.clone() for name in LEAVES]
    loss.backward()
    for name, gradient in zip(LEAVES, once, strict=True):
        torch.testing.assert_close(p[name].grad, 2 * gradient, rtol=1e-14, atol=0)
    scaled = semivariogram_info_nce(**p, variogram=MODEL, policy=POLICY) * 0.25
    for gradient, whole in zip(torch.autograd.grad(scaled, [p[n] for n in LEAVES]), once, strict=True):
        torch.testing.assert_close(gradient, whole / 4, rtol=1e-14, atol=0)


def test_no_gradient_is_made_that_nobody_asked_for():
    p = {k: t.detach() for k, t in problem().items()}
    assert not semivariogram_info_nce(**p, variogram=MODEL, policy=POLICY).requires_grad
    p["y"].requires_grad_()
    loss = semivariogram_info_nce(**p, variogram=MODEL, policy=POLICY)
    with torch.no_grad():
        torch.testing.assert_close(semivariogram_info_nce(**p, variogram=MODEL, policy=POLICY), loss.detach())
    (gradient,) = torch.autograd.grad(loss, p["y"])
    assert gradient.abs().max() > 0


def gradients_of(p, **options):
    leaves = [p[name].detach().clone().requires_grad_() for name in LEAVES]
    loss = semivariogram_info_nce(**{**p, **dict(zip(LEAVES, leaves, strict=True))}, **options)
    upstream = torch.randn(loss.shape, generator=torch.Generator().manual_seed(8), dtype=loss.dtype)
    return loss.detach(), torch.autograd.grad(loss, leaves, upstream)


@pytest.mark.parametrize("name", POLICIES)
def test_strips_and_two_passes_agree(name, monkeypatch):
    monkeypatch.setattr(tile_driver, "ROW_BLOCK", 64)
    monkeypatch.setattr(tile_driver, "COLUMN_TILE", 33)
    p = problem(n=130, m=150)
    options = {"variogram": MODEL, "policy": POLICIES[name][0], "label_smoothing": 0.1}
    strips, strip_gradients = gradients_of(p, **options)
    monkeypatch.setattr(tile_driver, "THINNEST_STRIP", 10**6)
    passes, pass_gradients = gradients_of(p, **options)
    torch.testing.assert_close(strips, passes, rtol=1e-13, atol=0)
    for a, b in zip(strip_gradients, pass_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_repeated_runs_are_equal_bit_for_bit(reduction):
    p = {k: t.detach().float() for k, t in problem(n=130, m=150).items()}
    options = {"variogram": MODEL, "policy": POLICY, "reduction": reduction}
    (first, first_gradients), (second, second_gradients) = (gradients_of(p, **options) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(first_gradients, second_gradients, strict=True))


def within_nan(tensor, offset, step):
    """The same values in a NaN-filled storage, with strides."""
    storage = tensor.new_full((tensor.shape[0] + 3, tensor.shape[1] * step + offset), torch.nan)
    view = storage[2 : 2 + tensor.shape[0], offset : offset + tensor.shape[1] * step : step]
    return view.copy_(tensor)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(2, 40),
    extra=st.integers(0, 40),
    dims=st.tuples(st.integers(2, 20), st.integers(1, 20)),  # of one dimension the gradient vanishes
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    tile=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    name=st.sampled_from(list(POLICIES)),
    symmetric=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    epsilon=st.sampled_from([0.0, 0.1]),
    offset=st.integers(0, 2),
    step=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_equals_the_float64_reference_at_any_shape(
    n, extra, dims, dtype, tile, name, symmetric, reduction, epsilon, offset, step, seed
):
    """DESIGN's rule: |ours − float64| ≤ |reference in the dtype − float64| + tolerance, per gradient."""
    g = torch.Generator().manual_seed(seed)
    m = n if symmetric else n + extra
    p = {
        **problem(n=n, m=m, seed=seed),
        **{
            key: torch.randn(rows, dim, generator=g, dtype=torch.float64).to(dtype)
            for key, rows, dim in (
                ("x", n, dims[0]),
                ("y", m, dims[0]),
                ("query_embeddings", n, dims[1]),
                ("gallery_embeddings", m, dims[1]),
            )
        },
    }
    options = {
        "variogram": MODEL,
        "policy": POLICIES[name][0],
        "label_smoothing": epsilon,
        "symmetric": symmetric,
        "reduction": reduction,
    }
    laid = {k: within_nan(t, offset, step) if t.ndim == 2 else t for k, t in p.items()}
    exact = {k: t.double() for k, t in p.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tile_driver, "ROW_BLOCK", tile[0])
        patch.setattr(tile_driver, "COLUMN_TILE", tile[1])
        loss, gradients = gradients_of(laid, **options)
    low, low_gradients = gradients_of(p, **options, backend="reference")
    high, high_gradients = gradients_of(exact, **options, backend="reference")
    tolerance = {torch.float64: 1e-10, torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert torch.isfinite(loss).all()
    for ours, reference, wanted in zip(
        (loss, *gradients), (low, *low_gradients), (high, *high_gradients), strict=True
    ):
        assert ours.dtype == reference.dtype
        size = wanted.abs().max()
        error, allowed = (ours.double() - wanted).abs().max(), (reference.double() - wanted).abs().max()
        assert error <= allowed + tolerance * size + torch.finfo(low.dtype).eps


def test_positives_and_negatives_of_the_gallery_have_their_gradient():
    """Checked apart: negatives' gradients are small; all zeros would pass a tolerance on all rows."""
    n, m = 40, 500
    p = problem(n=n, m=m)
    low = {k: t.detach().float() for k, t in p.items()}
    options = {"variogram": MODEL, "policy": NegativePolicy.explained(2, 4)}
    _, (_, ours, _) = gradients_of(low, **options)
    _, (_, wanted, _) = gradients_of(p, **options, backend="reference")
    for rows in (slice(0, n), slice(n, m)):
        error = (ours[rows].double() - wanted[rows]).abs().max()
        assert error <= 5e-4 * wanted[rows].abs().max()


def test_features_off_the_cpu_without_a_check_give_nan(monkeypatch):
    """Bad values that nobody looked at become a NaN loss, never a read out of bounds."""
    p = problem()
    monkeypatch.setattr("semivario_kernels.problem.is_checked", lambda tensor: False)
    far = semivariogram_info_nce(
        **p, variogram=MODEL, policy=POLICY, targets=torch.full((11,), 99), reduction="none"
    )
    assert far.isnan().all()
    p["gallery_latlon"] = torch.full((17, 2), 200.0, dtype=torch.float64)
    assert semivariogram_info_nce(**p, variogram=MODEL, policy=POLICY).isnan()


def small_gradients(dtype):
    """Long galleries, whose negatives have gradients far below float16's smallest number."""
    g = torch.Generator().manual_seed(0)
    p = {k: t.detach() for k, t in problem(n=64, m=1024).items()}
    p |= {k: torch.randn(rows, 256, generator=g).to(dtype) for k, rows in (("x", 64), ("y", 1024))}
    return p | {"logit_scale": torch.tensor(30.0, dtype=dtype)}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss_scale", [1.0, 32768.0, 65536.0])
def test_float16_with_a_loss_scale(loss_scale, reduction, normalize):
    """Gradients are multiplied before they are rounded, and by a number that float16 does not hold."""
    p = small_gradients(torch.float16)
    options = {"policy": NegativePolicy.none(), "reduction": reduction, "normalize": normalize}
    if not normalize:
        p |= {name: p[name] / 16 for name in ("x", "y")}
    if reduction != "mean":
        loss_scale /= 64
    results = []
    for backend, dtype in ((None, torch.float16), ("reference", torch.float16), ("reference", torch.float64)):
        leaves = {name: p[name].to(dtype).requires_grad_() for name in LEAVES}
        loss = semivariogram_info_nce(**{**p, **leaves}, backend=backend, **options)
        upstream = torch.full_like(loss, loss_scale)
        results.append(torch.autograd.grad(loss, list(leaves.values()), upstream))
    for ours, reference, wanted in zip(*results, strict=True):
        assert ours.dtype == torch.float16
        assert ours.isfinite().all()
        error, allowed = (ours.double() - wanted).abs(), (reference.double() - wanted).abs()
        assert error.max() <= allowed.max() + 1e-3 * wanted.abs().max()
        assert error.mean() <= 1.1 * allowed.mean() + 1e-5 * wanted.abs().mean()
        assert (ours == 0).double().mean() <= (reference == 0).double().mean() + 1e-3


@pytest.mark.parametrize("upstream", [0.1, 0.3])
def test_bfloat16_takes_the_upstream_gradient_unrounded(upstream):
    p = small_gradients(torch.bfloat16)
    leaves = [p[name].requires_grad_() for name in LEAVES]
    loss = semivariogram_info_nce(**p, policy=NegativePolicy.none())
    plain = torch.autograd.grad(loss, leaves, retain_graph=True)
    scaled = torch.autograd.grad(loss, leaves, torch.tensor(upstream))
    for ours, one in zip(scaled, plain, strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, (upstream * one.float()).bfloat16())


def test_many_rows_are_scaled_like_few(monkeypatch):
    p = small_gradients(torch.bfloat16)
    p["y"].requires_grad_()
    loss = semivariogram_info_nce(**p, policy=NegativePolicy.none())
    (whole,) = torch.autograd.grad(loss, p["y"], torch.tensor(0.3), retain_graph=True)
    monkeypatch.setattr("semivario_kernels.operator.SCALED_ROWS", 100)
    assert torch.equal(torch.autograd.grad(loss, p["y"], torch.tensor(0.3))[0], whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_opcheck_and_compilation_of_short_features(dtype, backend):
    p = {k: t.detach().to(dtype) if "latlon" not in k else t for k, t in problem().items()}
    for name in LEAVES:
        p[name].requires_grad_()
    torch.library.opcheck(info_nce, arguments(p, POLICY, "mean", backend))
    options = {"variogram": MODEL, "policy": POLICY}
    wanted = torch.autograd.grad(3 * semivariogram_info_nce(**p, **options), [p[n] for n in LEAVES])
    torch.compiler.reset()
    compiled = torch.compile(
        lambda: 3 * semivariogram_info_nce(**p, **options), backend="aot_eager", fullgraph=True
    )
    for got, right in zip(torch.autograd.grad(compiled(), [p[n] for n in LEAVES]), wanted, strict=True):
        assert torch.equal(got, right)
