import json
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import haversine_distances
from torch import nn

from geoclip import field as field_module
from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter
from geoclip.field import pretrained_field, write_field_world
from geoclip.upstream import UpstreamUnavailable, read_gallery
from semivario_kernels import binned_semivariance


class Waves(nn.Module):
    """A small smooth encoder that counts its work; its output is not normalised."""

    def __init__(self, dim=24, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("frequency", torch.randn(2, dim, generator=generator) / 20)
        self.places = 0

    def forward(self, latlon):
        assert latlon.dtype == torch.float32
        self.places += len(latlon)
        return 3 * torch.cos(latlon @ self.frequency + torch.arange(self.frequency.shape[1]))


def small_gallery(places=300, rows=420, seed=0):
    rng = np.random.default_rng(seed)
    distinct = np.column_stack([rng.uniform(-90, 90, places), rng.uniform(-180, 180, places)])
    return distinct[np.concatenate([np.arange(places), rng.integers(0, places, rows - places)])]


def world(out, **kwargs):
    kwargs = {"held_out": 60, "encoder": Waves(), "gallery": small_gallery(), "progress": False, **kwargs}
    return write_field_world(out, **kwargs)


def test_held_out_places_leave_training_and_appear_once(tmp_path):
    gallery = small_gallery()
    train, test = world(tmp_path)
    everywhere = {tuple(place) for place in gallery}
    held_out = {tuple(place) for place in test.latlon}
    assert len(test) == len(held_out) == 60
    assert {tuple(place) for place in train.latlon} == everywhere - held_out
    # every row of a place that stays is a training sample; ids are gallery rows, each used once
    assert len(train) == sum(tuple(place) not in held_out for place in gallery)
    for store in (train, test):
        np.testing.assert_array_equal(gallery[[int(i) for i in store.ids.to_pylist()]], store.latlon)
    ids = train.ids.to_pylist() + test.ids.to_pylist()
    assert len(set(ids)) == len(ids)
    places = np.load(tmp_path / "gallery.npy")
    assert places.dtype == np.float64
    assert len(places) == 300
    assert {tuple(place) for place in places} == everywhere


def test_a_sample_is_the_field_plus_noise_of_its_own(tmp_path):
    dim, noise = 24, 0.8
    train, _ = world(tmp_path, noise=noise)
    samples = train.read(np.arange(len(train)))
    field = pretrained_field(train.latlon, encoder=Waves()).numpy()
    np.testing.assert_allclose(np.linalg.norm(samples, axis=1), 1, atol=2e-3)
    # sample s = (f + noise n)/L with |n| = 1: L solves |L s - f| = noise. Of its two roots the larger one is
    # right unless n points back at f by more than noise, which in 24 dimensions is a matter of 1e-5
    cosine = (samples * field).sum(1)
    length = cosine + np.sqrt(cosine**2 - 1 + noise**2)
    directions = (length[:, None] * samples - field) / noise
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-2)
    spread = 1 / np.sqrt(dim)  # of one coordinate of a uniform unit vector
    assert np.abs(directions.mean(0)).max() < 4 * spread / np.sqrt(len(train))
    assert directions.std(0) == pytest.approx(spread, rel=0.2)
    assert len(np.unique(train.latlon, axis=0)) < len(train) == len(np.unique(samples, axis=0))


def test_without_noise_the_samples_are_the_field(tmp_path):
    train, test = world(tmp_path, noise=0)
    for store in (train, test):
        field = pretrained_field(store.latlon, encoder=Waves()).numpy()
        np.testing.assert_allclose(store.all(), field, atol=1e-3)


def test_the_world_is_reused_and_parameters_are_not_mixed(tmp_path):
    train, test = world(tmp_path, seed=3)
    encoder = Waves()
    again, _ = world(tmp_path, seed=3, encoder=encoder)
    assert encoder.places == 1  # asked for its dimension, not run over the gallery
    np.testing.assert_array_equal(again.all(), train.all())
    for change, match in (
        ({"noise": 0.5}, "noise 0.8 there and 0.5 here"),
        ({"seed": 4}, "seed 3 there and 4 here"),
        ({"held_out": 61}, "held_out 60 there and 61 here"),
        ({"encoder": Waves(seed=1)}, "encoder '.*' there and '.*' here"),
        ({"gallery": small_gallery(seed=1)}, "gallery '.*' there"),
        ({"encoder": Waves(dim=25)}, "dim 24 there and 25 here"),
    ):
        with pytest.raises(ValueError, match=match):
            world(tmp_path, **{"seed": 3, **change})
    other, other_test = world(tmp_path / "other", seed=4)
    assert not np.array_equal(other_test.latlon, test.latlon)
    assert not np.array_equal(other.all()[:9], train.all()[:9])
    repeated, _ = world(tmp_path / "repeated", seed=3)
    np.testing.assert_array_equal(repeated.all(), train.all())


@pytest.mark.parametrize(("train_shards", "test_shards"), [(0, 0), (1, 0), (5, 0), (None, 0), (None, 1)])
def test_an_interrupted_world_is_finished_as_if_it_had_not_been(
    tmp_path, monkeypatch, train_shards, test_shards
):
    monkeypatch.setattr(field_module, "_CHUNK", 25)
    monkeypatch.setattr(field_module, "EmbeddingWriter", partial(EmbeddingWriter, rows_per_shard=40))
    train, test = world(tmp_path / "whole")
    world(tmp_path / "killed")
    for split, shards in (("train", train_shards), ("test", test_shards)):
        if shards is not None:  # as a kill after so many shards leaves it
            file = tmp_path / "killed" / split / "meta.json"
            meta = json.loads(file.read_text())
            file.write_text(json.dumps({**meta, "shards": meta["shards"][:shards], "complete": False}))
            for orphan in sorted((tmp_path / "killed" / split).glob("shard-*"))[2 * shards :]:
                orphan.unlink()
            with pytest.raises(ValueError, match="unfinished"):
                EmbeddingStore.open(tmp_path / "killed" / split)
    for whole, finished in zip((train, test), world(tmp_path / "killed"), strict=True):
        np.testing.assert_array_equal(finished.all(), whole.all())
        np.testing.assert_array_equal(finished.latlon, whole.latlon)
        assert finished.ids == whole.ids


def test_the_info_says_that_no_photo_was_used(tmp_path):
    for store in world(tmp_path):
        assert "no photo was used" in store.info["source"]
        assert {"noise": 0.8, "held_out": 60, "seed": 0}.items() <= store.info.items()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"noise": -0.1}, r"noise is -0\.1, wanted a finite number"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"held_out": 0}, "held_out is 0, wanted 1 to 299: gallery has 300 places"),
        ({"held_out": 300}, "held_out is 300, wanted 1 to 299"),
        ({"gallery": [[91.0, 0.0], [0.0, 0.0]]}, "gallery: row 1 has latitude 91"),
        ({"gallery": [1.0, 2.0]}, r"gallery: latlon has shape \(2,\)"),
    ],
)
def test_bad_arguments(tmp_path, change, match):
    with pytest.raises(ValueError, match=match):
        world(tmp_path / "world", **change)
    assert not (tmp_path / "world").exists()


def test_the_field_is_encoded_in_chunks_without_a_graph():
    encoder = Waves()
    latlon = small_gallery(places=5000, rows=5000)
    field = pretrained_field(latlon, encoder=encoder)
    assert field.shape == (5000, 24)
    assert field.dtype == torch.float32
    assert not field.requires_grad
    assert encoder.places == 5000
    whole = nn.functional.normalize(encoder(torch.from_numpy(latlon).float()), dim=1)
    torch.testing.assert_close(field, whole)
    with pytest.raises(ValueError, match="latlon: row 2 has latitude nan"):
        pretrained_field([[0.0, 0.0], [float("nan"), 0.0]], encoder=encoder)
    with pytest.raises(ValueError, match="latlon has no rows"):
        pretrained_field(np.empty((0, 2)), encoder=encoder)


# Mean dissimilarity of the official field, by km, as one draw of 6,000 places once gave it. Between 12 other
# draws it scatters by 0.0014, 0.0058, 0.0041, 0.0045, 0.0024, 0.0017 and 0.0010 (standard deviations; 3,700
# pairs are nearer than 1 km). The tolerances are three standard deviations of the difference of two draws.
EXPECTED = {
    (0, 1): (0.024, 0.006),
    (2, 5): (0.273, 0.025),
    (10, 25): (0.570, 0.018),
    (50, 100): (0.686, 0.019),
    (200, 400): (0.793, 0.010),
    (750, 1500): (0.898, 0.007),
    (5000, 20100): (0.955, 0.005),
}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_official_field_has_the_known_semivariogram(seed):
    try:
        gallery = read_gallery().numpy()
        places = gallery[np.unique(gallery.astype(np.float32), axis=0, return_index=True)[1]]
        assert len(gallery) == 100_000
        assert len(places) == 94_100
        places = places[np.random.default_rng(seed).choice(len(places), 6000, replace=False)]
        field = pretrained_field(places).numpy().astype(np.float64)
    except UpstreamUnavailable as reason:
        pytest.skip(str(reason))
    np.testing.assert_allclose(np.linalg.norm(field, axis=1), 1, atol=1e-6)
    total, count = np.zeros(len(EXPECTED)), np.zeros(len(EXPECTED))
    radians = np.radians(places)
    for start in range(0, 6000, 500):
        upper = np.arange(6000) > np.arange(start, start + 500)[:, None]
        km = 6371.0088 * haversine_distances(radians[start : start + 500], radians)
        dissimilarity = 1 - field[start : start + 500] @ field.T
        for k, (low, high) in enumerate(EXPECTED):
            inside = upper & (km >= low) & (km < high)
            total[k] += dissimilarity[inside].sum()
            count[k] += inside.sum()
    for mean, (bin_km, (expected, tolerance)) in zip(total / count, EXPECTED.items(), strict=True):
        assert mean == pytest.approx(expected, abs=tolerance), bin_km
    edges_km = sorted({edge for bin_km in EXPECTED for edge in bin_km})
    measured = binned_semivariance(field.astype(np.float32), places, edges_km=edges_km)
    of_table = [edges_km.index(low) for low, _ in EXPECTED]
    # none of the pairs lies within rounding of an edge
    np.testing.assert_array_equal(measured.counts[of_table], count)
    np.testing.assert_allclose(measured.gamma[of_table], total / count, rtol=1e-5)
