import importlib
import sys
import types

import pytest
import torch

from geoclip.location_encoder import LocationEncoder, equal_earth
from geoclip.upstream import UpstreamUnavailable, fetch_upstream, read_gallery


@pytest.fixture(scope="module")
def upstream():
    try:
        return fetch_upstream()
    except UpstreamUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def theirs(upstream, monkeypatch):
    """Upstream's own location_encoder.py and rff, run from the wheel under another package name.

    Of its sibling misc.py they need only the constant file_dir (the folder of the weights); the rest of that
    file reads the gallery with pandas, which we do not install.
    """
    folder = upstream.folder / "geoclip" / "model"
    package = types.ModuleType("upstream_geoclip_model")
    package.__path__ = [str(folder)]
    misc = types.ModuleType("upstream_geoclip_model.misc")
    misc.file_dir = str(folder)
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, misc.__name__, misc)
    yield importlib.import_module("upstream_geoclip_model.location_encoder")
    for name in [name for name in sys.modules if name.startswith("upstream_geoclip_model.")]:
        if name != misc.__name__:
            del sys.modules[name]


def test_official_weights_load_strictly_both_ways(upstream):
    official = torch.load(upstream.location_encoder_weights, weights_only=True)
    encoder = LocationEncoder(from_pretrained=False)
    encoder.load_state_dict(official, strict=True)
    state = LocationEncoder().state_dict()
    assert list(state) == list(official)
    assert all(torch.equal(state[name], official[name]) for name in official)


def test_embeddings_of_gallery_coordinates_equal_upstreams(theirs):
    """Of a tenth of the places, with the outermost."""
    ours, reference, gallery = LocationEncoder(), theirs.LocationEncoder(), read_gallery().float()
    assert ours.sigma == reference.sigma == [1, 16, 256]
    assert len(gallery) == 100_000
    chosen = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(0))[:10_000]
    places = gallery[torch.cat((chosen, gallery.argmin(dim=0), gallery.argmax(dim=0)))]
    with torch.inference_mode():
        for chunk in places.split(2048):
            expected = reference(chunk)
            assert expected.abs().mean() > 1e-3
            torch.testing.assert_close(ours(chunk), expected, rtol=0, atol=1e-5)


def test_projection_equals_upstreams_at_the_edges(theirs):
    latlon = torch.tensor([[90.0, 0.0], [-90.0, 180.0], [0.0, -180.0], [0.0, 0.0], [51.5, -0.1]])
    assert torch.equal(equal_earth(latlon), theirs.equal_earth_projection(latlon))


def test_projection_keeps_areas():
    # Equal Earth is equal-area: the Jacobian divided by cos(latitude) is the same everywhere.
    latlon = torch.tensor([[0.0, 0.0], [30.0, 100.0], [-60.0, -170.0], [80.0, 20.0]], dtype=torch.float64)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda p: equal_earth(p[None])[0], p) for p in latlon]
    )
    area = torch.linalg.det(jacobian).abs() / torch.deg2rad(latlon[:, 0]).cos()
    torch.testing.assert_close(area, area[:1].expand(4), rtol=1e-5, atol=0)


def test_official_weights_do_not_fit_a_student():
    with pytest.raises(ValueError, match="from_pretrained=False"):
        LocationEncoder(width=256)
    with pytest.raises(ValueError, match="from_pretrained=False"):
        LocationEncoder(sigma=[1, 2])


def test_student_sizes_and_gradient():
    torch.manual_seed(0)
    student = LocationEncoder([1, 4, 16, 64], False, width=32, encoded_size=8, output_dim=24)
    assert student.sigma == [1, 4, 16, 64]
    frequencies = [student.get_submodule(f"LocEnc{i}.capsule.0").b for i in range(4)]
    before = [b.clone() for b in frequencies]
    output = student(torch.tensor([[48.85, 2.35], [-33.9, 151.2], [0.0, 0.0]]))
    assert output.shape == (3, 24)
    output.square().sum().backward()
    named = dict(student.named_parameters())
    assert len(named) == 4 * 8
    assert not any(name.endswith(".b") for name in named)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in named.values())
    torch.optim.SGD(student.parameters(), lr=0.1, weight_decay=0.1).step()
    assert all(
        torch.equal(b, old) and not b.requires_grad for b, old in zip(frequencies, before, strict=True)
    )


def test_features_are_the_sum_of_the_capsules():
    torch.manual_seed(0)
    student = LocationEncoder([1, 50], False, width=16, encoded_size=8, output_dim=4).double()
    latlon = torch.tensor([[10.0, 20.0]], dtype=torch.float64)
    expected = torch.zeros(1, 4, dtype=torch.float64)
    for i in range(2):
        phase = 2 * torch.pi * equal_earth(latlon) @ student.get_submodule(f"LocEnc{i}.capsule.0").b.T
        hidden = torch.cat((phase.cos(), phase.sin()), dim=1)
        for layer in (1, 3, 5):
            linear = student.get_submodule(f"LocEnc{i}.capsule.{layer}")
            hidden = torch.relu(hidden @ linear.weight.T + linear.bias)
        head = student.get_submodule(f"LocEnc{i}.head.0")
        expected += hidden @ head.weight.T + head.bias
    torch.testing.assert_close(student(latlon), expected, rtol=1e-12, atol=1e-14)


def test_float64_positions_are_projected_before_they_are_rounded():
    torch.manual_seed(0)
    student = LocationEncoder([1, 16], False, width=16, encoded_size=8, output_dim=4)
    latlon = torch.tensor([[48.8584, 2.2945], [-12.3, 179.99]], dtype=torch.float64)
    assert student(latlon).dtype == torch.float32
    torch.testing.assert_close(student(latlon), student(latlon.float()), rtol=1e-3, atol=1e-5)


def test_autocast_does_not_touch_the_phases():
    torch.manual_seed(0)
    encoder = LocationEncoder([256], False, width=16, encoded_size=64, output_dim=4)
    fourier = encoder.get_submodule("LocEnc0.capsule.0")
    plane = equal_earth(torch.rand(32, 2) * 80)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = fourier(plane)
    assert torch.equal(cast, fourier(plane))


@pytest.mark.parametrize("shape", [(2,), (3, 3), (2, 3, 2), (0,), ()])
def test_bad_shapes_are_refused(shape):
    encoder = LocationEncoder([1], False, width=8, encoded_size=4, output_dim=2)
    with pytest.raises(ValueError, match=r"location has shape .*wanted \(n, 2\)"):
        encoder(torch.zeros(shape))


def test_no_positions_give_no_features():
    assert LocationEncoder([1], False, width=8, encoded_size=4, output_dim=2)(torch.zeros(0, 2)).shape == (
        0,
        2,
    )


@pytest.mark.parametrize(
    "arguments", [{"sigma": []}, {"sigma": [1, 0]}, {"sigma": [-1]}, {"width": 0}, {"output_dim": -1}]
)
def test_bad_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match="wanted"):
        LocationEncoder(**{"sigma": [1], "from_pretrained": False, **arguments})


def test_longitudes_up_to_360_are_those_within_180():
    torch.manual_seed(0)
    student = LocationEncoder([1, 16], False, width=16, encoded_size=8, output_dim=4)
    latlon = torch.tensor([[10.0, -10.0], [48.0, -179.5], [-60.0, 170.0], [5.0, 0.0]])
    turned = latlon + torch.tensor([0.0, 1.0]) * torch.tensor([360.0, 360.0, -360.0, 360.0])[:, None]
    assert torch.equal(student(turned), student(latlon))
