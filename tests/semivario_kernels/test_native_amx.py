"""Products on AMX tiles against float64, and what is built on them."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from epilogue_cases import Surrounded
from native_isa import SKIP
from places import embeddings_of, random_latlon

from semivario_kernels import (
    NegativePolicy,
    VariogramModel,
    binned_semivariance,
    explain_backend,
    log_edges_km,
    semivariogram_info_nce,
)
from semivario_kernels.backends import amx_product, binned_native, native_epilogue
from semivario_kernels.backends.amx_product import AmxProduct
from semivario_kernels.backends.binned_products import Buffer

REASON = native_epilogue.unavailable_reason() or amx_product.unavailable_reason()
pytestmark = [SKIP, pytest.mark.skipif(REASON is not None, reason=f"no products on AMX tiles: {REASON}")]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
F32, BF16, F16 = DTYPES
# rows against blocks of 32, columns against blocks of 32 and 128, lengths against words of 16 and of 32
SHAPES = [(1, 1, 1), (31, 33, 15), (32, 64, 16), (33, 127, 17), (70, 129, 31), (300, 300, 33), (65, 40, 2049)]
SPLIT = 2**-17  # rounding of a float32 in two bfloat16, relative


def rows_of(n: int, length: int, seed: int, dtype: torch.dtype = F32) -> torch.Tensor:
    """Unit vectors, and one that is all zero."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n, length, generator=generator), dim=1)
    rows[n // 2] = 0
    return rows.to(dtype)


def product(a: torch.Tensor, b: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
    made = AmxProduct(b)
    made.take_rows(a, **options)
    return made.multiply(slice(0, len(a)), b, torch.full((len(a), len(b)), torch.nan))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("right", DTYPES, ids=str)
@pytest.mark.parametrize("left", DTYPES, ids=str)
def test_equals_float64(left, right, shape):
    n, m, length = shape
    a, b = Surrounded(rows_of(n, length, 1, left)), Surrounded(rows_of(m, length, 2, right))
    out = Surrounded(torch.full((n, m), torch.nan))
    made = AmxProduct(b.view)
    made.take_rows(a.view)
    made.multiply(slice(0, n), b.view, out.view)
    assert out.is_surrounded()
    wanted = a.view.double() @ b.view.double().T
    size = a.view.double().abs() @ b.view.double().abs().T
    rounding = sum(SPLIT for dtype in (left, right) if dtype == F32) + 2e-7  # of the parts, and of the sums
    assert ((out.view.double() - wanted).abs() <= rounding * size).all()


def test_error_at_the_length_of_clip():
    a = rows_of(1000, 768, 1)
    for b, rms, most in ((rows_of(1000, 768, 2), 1.5e-7, 1e-6), (a, 4.5e-7, 2e-6)):
        error = product(a, b).double() - a.double() @ b.double().T
        if b is a:
            error = error.diagonal()
        assert error.square().mean().sqrt() < rms
        assert error.abs().max() < most
        assert error.mean().abs() < 6e-8  # the products of the small parts are there: without them 2e-6


def test_rows_are_chosen_scaled_and_cut():
    a, b = rows_of(90, 200, 1), rows_of(70, 200, 2)
    chosen = torch.randint(90, (150,), generator=torch.Generator().manual_seed(3))
    others = torch.randint(70, (45,), generator=torch.Generator().manual_seed(4))
    scale = torch.linspace(0.5, 40.0, 150)
    made = AmxProduct(b)
    made.take_rows(a, chosen, scale)
    out = made.multiply(slice(37, 101), b, torch.full((64, 45), torch.nan), others)
    wanted = product((a[chosen] * scale[:, None])[37:101].contiguous(), b[others].contiguous())
    assert out.equal(wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_depend_neither_on_place_nor_threads_nor_exchange(dtype):
    a, b = rows_of(300, 301, 1, dtype), rows_of(500, 301, 2, dtype)
    whole = product(a, b)
    assert product(b, a).T.equal(whole)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(5))
    assert product(a, b[order].contiguous()).equal(whole[:, order])
    assert product(a[7:8], b[400:433]).equal(whole[7:8, 400:433])
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 7):
            torch.set_num_threads(threads)
            assert product(a, b).equal(whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_spoils_its_own_row_and_column(dtype, value):
    a, b = rows_of(40, 130, 1, dtype), rows_of(50, 130, 2, dtype)
    clean = product(a, b)
    a[3, 129], b[21, 0] = value, value
    out = product(a, b)
    spoilt = torch.zeros(40, 50, dtype=torch.bool)
    spoilt[3], spoilt[:, 21] = True, True
    assert out[~spoilt].equal(clean[~spoilt])
    assert not out[spoilt].isfinite().any()


def test_takes_what_it_can_multiply(monkeypatch):
    a = rows_of(5, 128, 1)
    assert amx_product.takes(a, a[::2], a.half())
    for other in (a[:, :127], a.double(), rows_of(128, 128, 1).T, a.to("meta")):
        assert not amx_product.takes(a, other)
    assert explain_backend(a).splitlines()[0] == "native: runs on cpu, products on AMX tiles"
    monkeypatch.setenv("SEMIVARIO_ISA", "avx512")
    assert not amx_product.takes(a)
    line = "native: runs on cpu, products by torch: SEMIVARIO_ISA=avx512"
    assert explain_backend(a).splitlines()[0] == line


def spy_on_products(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtype of the columns of every product that is made from here on."""
    seen, multiply = [], AmxProduct.multiply

    def seeing(self, rows, columns, *rest):
        seen.append(columns.dtype)
        return multiply(self, rows, columns, *rest)

    monkeypatch.setattr(AmxProduct, "multiply", seeing)
    return seen


@pytest.mark.parametrize("pair", [(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (BF16, F32)], ids=str)
def test_semivariogram_equals_float64(pair, monkeypatch):
    latlon, others = random_latlon(700, 1), random_latlon(400, 2)
    v, u = embeddings_of(latlon, dim=150).to(pair[0]), embeddings_of(others, dim=150, seed=0).to(pair[1])
    v[11] = 0
    edges = log_edges_km(10.0, 20100.0, 20)
    seen = spy_on_products(monkeypatch)
    for options in ({}, {"other": u, "other_latlon": others}, {"max_lag_km": 2000.0}):
        seen.clear()
        ours = binned_semivariance(v, latlon, edges_km=edges, **options)
        assert set(seen) == {pair[1] if "other" in options else pair[0]}
        doubled = options | ({"other": u.double()} if "other" in options else {})
        wanted = binned_semivariance(v.double(), latlon, edges_km=edges, backend="reference", **doubled)
        np.testing.assert_array_equal(ours.counts, wanted.counts)
        filled = wanted.counts > 0
        # one pair is right to about 1e-6
        error = 1.5e-6 / np.sqrt(wanted.counts[filled]) + 1.5e-7
        assert (np.abs(ours.gamma - wanted.gamma)[filled] <= error).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_order_tiles_and_threads_change_no_bit(dtype, monkeypatch):
    latlon = random_latlon(900, 4)
    v = embeddings_of(latlon, dim=133).to(dtype)
    edges = log_edges_km(10.0, 20100.0, 30)
    measured = [binned_semivariance(v, latlon, edges_km=edges)]
    order = torch.randperm(900, generator=torch.Generator().manual_seed(1))
    measured.append(binned_semivariance(v[order], latlon[order], edges_km=edges))
    monkeypatch.setattr(binned_native.NativeBinning, "row_blocks", (128,))
    monkeypatch.setattr(binned_native.NativeBinning, "column_batch", 192)
    measured.append(binned_semivariance(v, latlon, edges_km=edges))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        measured.append(binned_semivariance(v, latlon, edges_km=edges))
    finally:
        torch.set_num_threads(before)
    for other in measured[1:]:
        for name in ("counts", "gamma", "lag_km", "std"):
            np.testing.assert_array_equal(getattr(other, name), getattr(measured[0], name))


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    matmul = torch.backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, name
    try:
        yield
    finally:
        matmul.fp32_precision = before


def loss_and_gradients(p, dtype, **options):
    x, y, v, u = (p[name].to(dtype) for name in ("x", "y", "v", "u"))
    x.requires_grad_()
    y.requires_grad_()
    loss = semivariogram_info_nce(
        x,
        y,
        p["query"],
        p["gallery"],
        torch.tensor(9.0),
        variogram=VariogramModel("stable", 0.1, 0.9, 2500.0, 0.45),
        policy=NegativePolicy.semivariogram(3, 5),
        query_embeddings=v,
        gallery_embeddings=u,
        **options,
    )
    upstream = torch.linspace(-1, 2, loss.numel()).reshape(loss.shape).to(loss.dtype)
    return loss.detach().double(), *(g.double() for g in torch.autograd.grad(loss, (x, y), upstream))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("way", ["float32", "high", "bfloat16", "float16"])
def test_loss_equals_float64(way, reduction, symmetric, monkeypatch):
    n, m = 150, 150 if symmetric else 333
    p = {"x": rows_of(n, 140, 1), "y": rows_of(m, 140, 2), "v": rows_of(n, 170, 3), "u": rows_of(m, 170, 4)}
    p = {name: 3 * rows + 0.05 for name, rows in p.items()} | {
        "query": random_latlon(n, 5),
        "gallery": random_latlon(m, 6),
    }
    p["u"][9], p["v"][4] = 0, 0  # no image
    dtype = F32 if way == "high" else getattr(torch, way)
    exact = {name: value.to(dtype).double() if value.ndim == 2 else value for name, value in p.items()}
    exact |= {"query": p["query"], "gallery": p["gallery"]}
    options = {"reduction": reduction, "symmetric": symmetric}
    wanted = loss_and_gradients(exact, torch.float64, backend="reference", **options)
    seen = spy_on_products(monkeypatch)
    with matmul_precision("tf32" if way == "high" else "none"):
        ours = loss_and_gradients(p, dtype, backend="native", **options)
    passes = 2 if symmetric or reduction == "none" else 1
    assert len(seen) == passes * (1 if way == "float32" else 2)
    tolerance = {"float32": 2e-5, "high": 2e-5, "bfloat16": 8e-3, "float16": 1e-3}[way]
    for got, value in zip(ours, wanted, strict=True):
        assert (got - value).abs().max() <= tolerance * value.abs().max()


def test_float32_is_had_by_asking_for_it(monkeypatch):
    seen = spy_on_products(monkeypatch)
    latlon = random_latlon(200, 1)
    with matmul_precision("ieee"):
        binned_semivariance(rows_of(200, 140, 1), latlon, edges_km=[0.0, 30000.0])
        assert not seen
        assert "torch was asked for float32 products" in explain_backend(latlon)


def test_products_that_are_not_wanted_are_neither_made_nor_read(monkeypatch):
    latlon = random_latlon(3001, 6)
    v = embeddings_of(latlon, dim=140).float()
    edges = log_edges_km(1.0, 900.0, 20)
    wanted = binned_semivariance(v, latlon, edges_km=edges, backend="native")
    kept = []

    def take(buffer, *shape):
        kept.append(torch.full(shape[:2], torch.nan))
        return kept[-1]

    monkeypatch.setattr(Buffer, "take", take)
    found = binned_semivariance(v, latlon, edges_km=edges, backend="native")
    np.testing.assert_array_equal(found.counts, wanted.counts)
    np.testing.assert_array_equal(found.gamma, wanted.gamma)
    assert sum(int(tile.isnan().sum()) for tile in kept) > 0.3 * sum(tile.numel() for tile in kept)
