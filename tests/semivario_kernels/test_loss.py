import numpy as np
import pytest
import scalar_oracle
import torch
import torch.nn.functional as F
from places import SPECIAL_PLACES, random_latlon
from test_policy import POLICIES

from semivario_kernels import NegativePolicy, VariogramModel, available_backends, semivariogram_info_nce
from semivario_kernels.backends import tile_driver

BACKENDS = available_backends()
MODEL = VariogramModel("stable", 0.05, 0.8, 300.0, 0.5)
N, M, D, E = 11, 17, 6, 5


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request, monkeypatch):
    """Every test runs on every backend, in tiles smaller than the problem."""
    monkeypatch.setenv("SEMIVARIO_BACKEND", request.param)
    monkeypatch.setattr(tile_driver, "ROW_BLOCK", 4)
    monkeypatch.setattr(tile_driver, "COLUMN_TILE", 7)
    return request.param


def problem(n=N, m=M, seed=0):
    """A loss whose places include poles, duplicates, antipodes; two rows without an image."""
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(k, D, generator=g, dtype=torch.float64).requires_grad_() for k in (n, m))
    places = torch.cat([torch.tensor(SPECIAL_PLACES, dtype=torch.float64), random_latlon(n + m, seed)])
    v, u = (torch.randn(k, E, generator=g, dtype=torch.float64) + 0.7 for k in (n, m))
    v[1:2], u[2:3] = 0, 0
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    return {
        "x": x,
        "y": y,
        "query_latlon": places[torch.randperm(len(places), generator=g)[:n]],
        "gallery_latlon": places[torch.randperm(len(places), generator=g)[:m]],
        "logit_scale": scale,
        "query_embeddings": v,
        "gallery_embeddings": u,
    }


def oracle(p, name, *, targets, exclude, epsilon, symmetric):
    unit = [(t / t.norm(dim=1, keepdim=True)).tolist() for t in (p["x"].detach(), p["y"].detach())]
    return scalar_oracle.info_nce(
        *unit,
        p["logit_scale"].item(),
        p["query_latlon"].tolist(),
        p["gallery_latlon"].tolist(),
        p["query_embeddings"].tolist(),
        p["gallery_embeddings"].tolist(),
        (MODEL.nugget, MODEL.psill, MODEL.len_scale_km, MODEL.alpha),
        (name, POLICIES[name][1]),
        targets,
        exclude,
        epsilon,
        symmetric,
    )


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("name", POLICIES)
def test_rows_equal_the_scalar_definition(name, epsilon):
    p = problem()
    targets = torch.randperm(M, generator=torch.Generator().manual_seed(3))[:N]
    exclude = torch.full((N, 3), -1)
    exclude[2, 0], exclude[2, 2], exclude[5, 1] = (
        (targets[2] + 1) % M,
        (targets[2] + 5) % M,
        (targets[5] + 2) % M,
    )
    ours = semivariogram_info_nce(
        **p,
        variogram=MODEL,
        policy=POLICIES[name][0],
        targets=targets,
        exclude=exclude,
        label_smoothing=epsilon,
        reduction="none",
    )
    wanted = oracle(
        p, name, targets=targets.tolist(), exclude=exclude.tolist(), epsilon=epsilon, symmetric=False
    )
    np.testing.assert_allclose(ours.detach().numpy(), wanted, rtol=1e-10)


@pytest.mark.parametrize("name", POLICIES)
def test_symmetric_equals_the_scalar_definition(name):
    p = problem(m=N)
    targets = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    exclude = ((targets + 3) % N)[:, None]
    options = {"variogram": MODEL, "policy": POLICIES[name][0], "targets": targets, "exclude": exclude}
    ours = semivariogram_info_nce(**p, **options, label_smoothing=0.1, symmetric=True, reduction="none")
    wanted = oracle(p, name, targets=targets.tolist(), exclude=exclude.tolist(), epsilon=0.1, symmetric=True)
    np.testing.assert_allclose(ours.detach().numpy(), wanted, rtol=1e-10)
    weights = torch.linspace(0, 1, N)
    mean = semivariogram_info_nce(**p, **options, label_smoothing=0.1, symmetric=True, row_weights=weights)
    assert mean.item() == pytest.approx(np.average(wanted, weights=weights.numpy()), rel=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_gradcheck(name, symmetric):
    p = problem(n=5, m=5 if symmetric else 8)

    def losses(x, y, scale):
        return semivariogram_info_nce(
            **{**p, "x": x, "y": y, "logit_scale": scale},
            variogram=MODEL,
            policy=POLICIES[name][0],
            label_smoothing=0.1,
            symmetric=symmetric,
            reduction="none",
        )

    assert torch.autograd.gradcheck(losses, (p["x"], p["y"], p["logit_scale"]), atol=1e-7, rtol=1e-6)


def plain(p, **options):
    return semivariogram_info_nce(
        p["x"], p["y"], None, None, p["logit_scale"], policy=NegativePolicy.none(), **options
    )


def logits_of(p):
    return p["logit_scale"] * F.normalize(p["x"], dim=1) @ F.normalize(p["y"], dim=1).T


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_plain_equals_torch_cross_entropy(reduction, epsilon):
    p = problem()
    targets = torch.arange(N).flip(0)
    ours = plain(p, targets=targets, label_smoothing=epsilon, reduction=reduction)
    theirs = F.cross_entropy(logits_of(p), targets, label_smoothing=epsilon, reduction=reduction)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    leaves = (p["x"], p["y"], p["logit_scale"])
    for ours_grad, theirs_grad in zip(
        torch.autograd.grad(ours, leaves, upstream),
        torch.autograd.grad(theirs, leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-10, atol=1e-12)


def test_soft_positives_equal_torch_cross_entropy_with_soft_targets():
    p = problem()
    policy = NegativePolicy.rectify(0.5, 0.0, 0.0)  # no log-weights: only the targets change
    ours = semivariogram_info_nce(**p, variogram=MODEL, policy=policy, label_smoothing=0.1, reduction="none")
    mass = torch.eye(N, M, dtype=torch.float64)
    for i in range(N):
        for j in range(M):
            h = scalar_oracle.haversine_km(p["query_latlon"][i].tolist(), p["gallery_latlon"][j].tolist())
            d = scalar_oracle.dissimilarity(
                p["query_embeddings"][i].tolist(), p["gallery_embeddings"][j].tolist()
            )
            if i != j and d is not None:
                gamma, rho = MODEL(h), MODEL.correlation(h)
                mass[i, j] = 0.5 * min(1, max(0, gamma - d) / gamma) * rho
    assert (mass > 0).sum() > N  # there are soft positives
    soft = mass / mass.sum(dim=1, keepdim=True)
    theirs = F.cross_entropy(logits_of(p), soft, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_default_targets_and_unnormalised_features():
    p = problem()
    ours = plain(p, normalize=False)
    theirs = F.cross_entropy(p["logit_scale"] * p["x"] @ p["y"].T, torch.arange(N))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_row_weights():
    p = problem()
    weights = torch.rand(N, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    losses = plain(p, reduction="none")
    torch.testing.assert_close(plain(p, row_weights=weights), (weights * losses).sum() / weights.sum())
    torch.testing.assert_close(plain(p, row_weights=weights, reduction="sum"), (weights * losses).sum())
    torch.testing.assert_close(plain(p, row_weights=weights, reduction="none"), weights * losses)


def test_excluding_equals_leaving_out():
    p = problem()
    gone = M - 1
    ours = plain(p, exclude=torch.full((N, 1), gone))
    fewer = {**p, "y": p["y"][:gone]}
    torch.testing.assert_close(ours, plain(fewer), rtol=1e-13, atol=0)
    (gradient,) = torch.autograd.grad(ours, p["y"])
    assert (gradient[gone] == 0).all()


def test_pairs_without_an_image_stay_plain():
    p = problem()
    options = {"variogram": MODEL, "policy": NegativePolicy.semivariogram(3, 5), "reduction": "none"}
    blank = {**p, "query_embeddings": torch.zeros(N, E, dtype=torch.float64)}
    torch.testing.assert_close(semivariogram_info_nce(**blank, **options), plain(p, reduction="none"))


def test_a_far_place_counts_more_also_without_an_image():
    p = problem()
    p["query_embeddings"][2:], p["gallery_embeddings"][4:] = 0, 0
    policy = NegativePolicy.explained(hard=0, false=0, far=2.5)
    ours = semivariogram_info_nce(**p, variogram=MODEL, policy=policy, reduction="none")
    h = [
        [scalar_oracle.haversine_km(a, b) for b in p["gallery_latlon"].tolist()]
        for a in p["query_latlon"].tolist()
    ]
    far = 2.5 * (1 - MODEL.correlation(torch.tensor(h, dtype=torch.float64)))
    logits = logits_of(p) + far.masked_fill(torch.eye(N, M, dtype=torch.bool), 0)
    torch.testing.assert_close(ours, F.cross_entropy(logits, torch.arange(N), reduction="none"))


def test_dissimilarity_of_the_features_is_a_constant():
    p = problem()
    places = {k: p[k] for k in ("query_latlon", "gallery_latlon")}
    options = {"variogram": MODEL, "policy": NegativePolicy.explained(2, 4), "reduction": "sum"}

    def loss(**embeddings):
        return semivariogram_info_nce(
            p["x"], p["y"], **places, logit_scale=p["logit_scale"], **options, **embeddings
        )

    ours = loss(dissimilarity="features")
    theirs = loss(query_embeddings=p["x"].detach(), gallery_embeddings=p["y"].detach())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    leaves = (p["x"], p["y"], p["logit_scale"])
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_inputs(dtype):
    p = problem()
    rounded = {k: p[k].detach().to(dtype) for k in ("x", "y", "query_embeddings", "gallery_embeddings")}
    options = {"variogram": MODEL, "policy": NegativePolicy.explained(2, 4)}
    leaves = [rounded["x"].requires_grad_(), rounded["y"].requires_grad_()]
    low = semivariogram_info_nce(**{**p, **rounded}, **options)
    assert low.dtype == torch.float32
    exact = {k: t.detach().double().requires_grad_() for k, t in rounded.items()}
    high = semivariogram_info_nce(**{**p, **exact}, **options)
    torch.testing.assert_close(low.double(), high, rtol=2e-6, atol=0)
    got = torch.autograd.grad(low, leaves)
    wanted = torch.autograd.grad(high, [exact["x"], exact["y"]])
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).abs().max() <= (1e-6 + torch.finfo(dtype).eps) * b.abs().max()


def test_strided_features_and_upstream_gradients():
    p = problem()
    storage = torch.full((2 * N, 3 * D), torch.nan, dtype=torch.float64)
    view = storage[1::2, 1::3]
    view.copy_(p["x"].detach())
    strided = {**p, "x": view.requires_grad_()}
    options = {"variogram": MODEL, "policy": NegativePolicy.explained(2, 4), "reduction": "none"}
    ours, theirs = semivariogram_info_nce(**strided, **options), semivariogram_info_nce(**p, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    upstream = torch.tensor(0.3, dtype=torch.float64).expand(N)  # stride 0
    (a,) = torch.autograd.grad(ours, strided["x"], upstream)
    (b,) = torch.autograd.grad(theirs, p["x"], upstream)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_numpy_where_no_gradient_is_asked_for():
    p = problem()
    options = {"variogram": MODEL, "policy": NegativePolicy.explained(2, 4)}
    arrays = {k: t.detach().numpy() for k, t in p.items() if k != "logit_scale"}
    ours = semivariogram_info_nce(**arrays, logit_scale=4, **options)
    torch.testing.assert_close(ours, semivariogram_info_nce(**p, **options).detach(), rtol=1e-6, atol=0)


def test_autocast_casts_the_features_and_never_the_positions():
    p = {k: t.detach().float() for k, t in problem().items()}
    options = {"variogram": MODEL, "policy": NegativePolicy.explained(2, 4)}
    cast = {**p, "x": p["x"].bfloat16(), "y": p["y"].bfloat16()}
    wanted = semivariogram_info_nce(**cast, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = semivariogram_info_nce(**p, **options)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, wanted, rtol=0, atol=0)


def bad(**changes):
    p = problem()
    return {**p, "variogram": MODEL, "policy": NegativePolicy.explained(2, 4), **changes}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (bad(x=torch.zeros(N)), r"x: wanted shape \(n, dimensions\), got \(11,\)"),
        (bad(x=torch.zeros(0, D)), r"x: .*at least one row, got \(0, 6\)"),
        (bad(y=torch.zeros(M, D + 1).double()), r"y: wanted shape \(n, 6\), got \(17, 7\)"),
        (bad(y=torch.zeros(M, D)), "y: wanted the dtype of x, torch.float64, got torch.float32"),
        (bad(y=torch.zeros(M, D, device="meta").double()), "y: wanted the device of x, cpu, got meta"),
        (bad(query_latlon=torch.zeros(N + 1, 2)), r"query_latlon: wanted shape \(11, 2\).*got \(12, 2\)"),
        (bad(gallery_latlon=torch.full((M, 2), 95.0)), "gallery_latlon: .*within ±90, got .*row 0"),
        (bad(gallery_latlon=torch.full((M, 2), torch.nan)), "gallery_latlon: wanted finite"),
        (bad(query_latlon=None), "query_latlon: policy 'explained' reads distances"),
        (bad(variogram=None), "variogram: policy 'explained' reads the fitted semivariogram"),
        (bad(variogram=3.0), "variogram: wanted a VariogramModel, got float"),
        (bad(policy="explained"), "policy: wanted a NegativePolicy, got str"),
        (bad(query_embeddings=None), "query_embeddings: wanted together with gallery_embeddings, got None"),
        (
            bad(query_embeddings=None, gallery_embeddings=None),
            "query_embeddings: policy 'explained' reads the visual dissimilarity",
        ),
        (bad(dissimilarity="features"), "dissimilarity: 'features' takes no embeddings"),
        (bad(dissimilarity="images"), "dissimilarity: wanted None or 'features', got 'images'"),
        (
            bad(gallery_embeddings=torch.zeros(M, E + 1).double()),
            r"gallery_embeddings: wanted shape \(17, 5\)",
        ),
        (
            bad(gallery_embeddings=torch.zeros(M, E)),
            "gallery_embeddings: wanted the dtype of query_embeddings",
        ),
        (bad(logit_scale=torch.ones(2)), r"logit_scale: wanted a floating-point scalar, .*\(2,\)"),
        (bad(logit_scale=torch.tensor(3)), "logit_scale: wanted a floating-point scalar, got torch.int64"),
        (bad(targets=torch.arange(N).float()), "targets: wanted int64 indices, got torch.float32"),
        (bad(targets=torch.arange(N - 1)), r"targets: wanted shape \(11,\), got \(10,\)"),
        (bad(targets=torch.full((N,), M)), "targets: wanted indices in 0 … 16, got 17"),
        (bad(targets=torch.full((N,), -1)), "targets: wanted indices in 0 … 16, got -1"),
        (bad(exclude=torch.full((N, 2), -2)), "exclude: wanted indices in -1 … 16, got -2"),
        (bad(exclude=torch.arange(N)), r"exclude: wanted shape \(11, k\), got \(11,\)"),
        (
            bad(exclude=torch.arange(N)[:, None]),
            "exclude: wanted negatives only, got row 0's own positive, 0",
        ),
        (bad(row_weights=torch.ones(M)), r"row_weights: wanted shape \(11,\), got \(17,\)"),
        (bad(row_weights=-torch.ones(N)), "row_weights: wanted finite weights ≥ 0, got -1.0"),
        (bad(row_weights=torch.zeros(N)), "row_weights: wanted at least one weight above 0"),
        (bad(label_smoothing=1.5), r"label_smoothing: .*\[0, 1\], got 1.5"),
        (bad(reduction="average"), "reduction: wanted 'mean', 'sum' or 'none', got 'average'"),
        (bad(symmetric=True), "symmetric: wanted as many queries as gallery entries, got 11 and 17"),
        (bad(workspace_mb=0), "workspace_mb: wanted a whole number of 1 or more, got 0"),
        (bad(workspace_mb=64.0), "workspace_mb: wanted a whole number of 1 or more, got 64.0"),
        (bad(logit_scale=None), "logit_scale: wanted a number, got None"),
        (bad(logit_scale="a"), "logit_scale: wanted a number, got 'a'"),
        (bad(backend="fastest"), "backend: wanted one of .*, got 'fastest'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        semivariogram_info_nce(**arguments)


def test_more_queries_than_gallery_need_targets():
    p = problem(n=M, m=N)
    with pytest.raises(ValueError, match=r"targets: .*17 queries for 11 gallery entries; got None"):
        plain(p)
    assert torch.isfinite(plain(p, targets=torch.arange(M) % N))


def test_symmetric_wants_a_permutation():
    p = problem(m=N)
    with pytest.raises(ValueError, match="targets: wanted a permutation of 0 … 10"):
        plain(p, targets=torch.zeros(N, dtype=torch.int64), symmetric=True)
