import pytest
import torch
from torch import nn

from geoclip.chunked_encoding import encode_places
from geoclip.location_encoder import LocationEncoder
from semivario_kernels import NegativePolicy, VariogramModel, semivariogram_info_nce


def encoder(dtype=torch.float64, dropout=0.0):
    torch.manual_seed(0)
    module = LocationEncoder([1.0, 8.0], False, width=24, encoded_size=8, output_dim=10)
    return nn.Sequential(module, nn.Dropout(dropout)).to(dtype)


def places(n, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n, 2, generator=generator) * 160 - 80).to(dtype)


def gradients(module, features, latlon):
    """Of the fused loss of 7 queries against all features, with a policy that weighs them unevenly."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, 10, generator=generator).to(features.dtype).requires_grad_()
    v = torch.randn(len(latlon), 5, generator=generator).to(features.dtype)
    module.zero_grad()
    loss = semivariogram_info_nce(
        x,
        features,
        latlon[:7],
        latlon,
        torch.tensor(20.0),
        variogram=VariogramModel("exponential", 0.1, 0.8, 1500.0),
        policy=NegativePolicy.semivariogram(hard=2, false=3),
        query_embeddings=v[:7],
        gallery_embeddings=v,
    )
    loss.backward()
    return [loss.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize(("kept", "chunk"), [(7, 1), (7, 13), (20, 64), (1, 1000), (100, 5), (101, 3)])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_gradients_are_those_of_the_direct_step(kept, chunk, dtype, relative):
    module, latlon = encoder(dtype), places(101)
    direct = gradients(module, module(latlon.to(dtype)), latlon)
    chunked = gradients(module, encode_places(module, latlon.to(dtype), kept=kept, chunk=chunk), latlon)
    for got, want in zip(chunked, direct, strict=True):
        assert (got - want).abs().max() <= relative * want.abs().max()
        assert want.abs().max() > 0


def test_what_was_dropped_is_dropped_again():
    module, latlon = encoder(dropout=0.5), places(30)
    upstream = torch.randn(30, 10, dtype=torch.float64)
    torch.manual_seed(5)
    features = encode_places(module, latlon, kept=10, chunk=8)
    after = torch.rand(3)
    features.backward(upstream)
    later = torch.rand(3)
    chunked = [parameter.grad.clone() for parameter in module.parameters()]
    # the same draws, with a graph
    module.zero_grad()
    torch.manual_seed(5)
    direct = torch.cat([module(some) for some in (latlon[:10], *latlon[10:].split(8))])
    assert torch.equal(features, direct)
    assert torch.equal(after, torch.rand(3))
    # and the backward pass leaves the generator where it was
    assert torch.equal(later, torch.rand(3))
    direct.backward(upstream)
    for got, parameter in zip(chunked, module.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-12, atol=1e-14)


def test_autocast_holds_in_the_second_run_too():
    module, latlon = encoder(torch.float32), places(40, torch.float32)
    upstream = torch.randn(40, 10)
    results = []
    for kept in (40, 10):
        module.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = encode_places(module, latlon, kept=kept, chunk=10)
        assert features.dtype == torch.bfloat16
        features.backward(upstream.bfloat16())
        results.append([features.detach(), *(parameter.grad for parameter in module.parameters())])
    for got, want in zip(*results, strict=True):
        # sums of 40 or of 4 × 10 rows of bfloat16 products
        assert (got - want).abs().max() <= 2e-2 * want.abs().max()


def test_frozen_weights_get_no_gradient():
    module = encoder()
    first = next(module.parameters()).requires_grad_(False)
    encode_places(module, places(20), kept=5, chunk=6).sum().backward()
    assert first.grad is None
    assert all(p.grad is not None for p in module.parameters() if p is not first)


def test_no_graph_is_held_beyond_the_kept_places():
    module = encoder()
    held = []

    def pack(tensor):
        held.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encode_places(module, places(2000), kept=4, chunk=50)
    assert max(held) < 2000


@pytest.mark.parametrize("bad", [{"kept": 0, "chunk": 4}, {"kept": 4, "chunk": 0}])
def test_bad_sizes_are_refused(bad):
    with pytest.raises(ValueError, match=r"kept, chunk: wanted at least 1"):
        encode_places(encoder(), places(5), **bad)
