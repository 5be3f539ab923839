from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from geoclip.datamodule import PhotoBatches
from geoclip.fit import fit, load_trained
from geoclip.gallery_negatives import GalleryNegatives
from geoclip.queue import NO_ROW
from geoclip.training import GeoCLIPTraining
from geoclip.training_ranks import TrainingRanks
from semivario_kernels import NegativePolicy, semivariogram_info_nce

from .small_world import VARIOGRAM, write_settings, write_store
from .stopped_run import fit_in_two_parts
from .test_training import SMALL, batch, step, trainer


def draw(source, size, store=None, seed=0, ranks=TrainingRanks()):  # noqa: B008
    return GalleryNegatives.draw(source, size, store=store, dim=16, seed=seed, ranks=ranks)


def test_places_of_training_photos_come_with_their_embeddings(tmp_path):
    store = write_store(tmp_path / "train")
    gallery = draw("train", 100, store)
    assert len(gallery) == len(set(gallery.rows.tolist())) == 100
    assert torch.equal(gallery.latlon, torch.from_numpy(store.latlon[gallery.rows]))
    assert torch.equal(gallery.embeddings, torch.from_numpy(store.read(gallery.rows.numpy())).half())
    assert torch.equal(gallery.rows, draw("train", 100, store).rows)
    assert not torch.equal(gallery.rows, draw("train", 100, store, seed=1).rows)
    assert draw("train", 10**6, store).rows.tolist() == list(range(300))


def test_other_places_have_no_image(tmp_path):
    latlon = np.random.default_rng(0).uniform(-80, 80, (50, 2))
    np.save(tmp_path / "places.npy", latlon)
    gallery = draw(str(tmp_path / "places.npy"), 20)
    assert {tuple(place) for place in gallery.latlon.tolist()} <= {tuple(place) for place in latlon.tolist()}
    assert (gallery.rows == NO_ROW).all()
    assert gallery.embeddings.shape == (20, 16)
    assert not gallery.embeddings.any()


def test_the_ranks_shares_make_the_whole(tmp_path):
    store = write_store(tmp_path / "train")
    whole = draw("train", 31, store)
    shares = [draw("train", 31, store, ranks=TrainingRanks(rank, 3)) for rank in range(3)]
    assert torch.equal(torch.cat([share.embeddings for share in shares]), whole.embeddings)
    assert all(torch.equal(share.latlon, whole.latlon) for share in shares)


def test_others_stand_before_it_as_if_put_together(tmp_path):
    gallery = draw("train", 31, write_store(tmp_path / "train"), ranks=TrainingRanks(1, 3))
    own = gallery.embeddings.clone()
    generator = torch.Generator().manual_seed(0)
    at = []
    for lengths in ((5, 0), (5, 4), (3, 6), (2, 1), (1, 20), (0, 0)):
        others = [torch.randn(n, 16, generator=generator) for n in lengths]
        others[1] = others[1].half()
        together = gallery.behind(*others)
        assert torch.equal(together, torch.cat([other.half() for other in (*others, own)]))
        assert torch.equal(gallery.embeddings, own)
        at.append(together[-1].data_ptr())
    # it is copied where there is too little room, at the first, second and fifth call, and then only
    assert [a == b for a, b in pairwise(at)] == [False, True, True, False, True]


def test_precision_and_checkpoints_leave_it_alone(tmp_path):
    gallery = draw("train", 10, write_store(tmp_path / "train"))
    before = gallery.latlon.clone()
    gallery.bfloat16()
    assert torch.equal(gallery.latlon, before)
    assert gallery.embeddings.dtype == torch.float16
    assert not gallery.state_dict()


@pytest.mark.parametrize(
    ("source", "size", "message"),
    [("train", -1, r"gallery: .*got -1"), ("train", 5, "gallery_source: 'train' reads cached embeddings")],
)
def test_bad_galleries_are_named(source, size, message):
    with pytest.raises(ValueError, match=message):
        draw(source, size)


def test_the_gallery_stands_beside_batch_and_queue(tmp_path):
    """The loss and every gradient are those of one call with all places, the same photo left out."""
    VARIOGRAM.save(tmp_path / "v.json")
    store = write_store(tmp_path / "train")
    module = GeoCLIPTraining(
        **SMALL,
        strengths={"hard": 2, "false": 5},
        variogram=str(tmp_path / "v.json"),
        queue_size=12,
        batch_noise_m=0,
        queue_noise_m=0,
    ).double()
    module.gallery = draw("train", 100, store)
    first, second = (
        {
            "rows": torch.arange(start, start + 12),
            "latlon": torch.from_numpy(store.latlon[start : start + 12]),
            "embeddings": torch.from_numpy(store.read(np.arange(start, start + 12))).double(),
        }
        for start in (0, 12)
    )
    step(module, first)  # fills the queue
    module.zero_grad()
    loss = step(module, second)
    loss.backward()
    got = [loss.detach(), *(p.grad.clone() for p in module.model.parameters())]

    places = torch.cat((second["latlon"], first["latlon"], module.gallery.latlon))
    v = torch.cat((second["embeddings"], first["embeddings"], module.gallery.embeddings)).half()
    rows = torch.cat((second["rows"], first["rows"], module.gallery.rows))
    same = rows[None] == second["rows"][:, None]
    same[torch.arange(12), torch.arange(12)] = False
    assert same.any()
    exclude = torch.full((12, 2), -1)
    for i, j in same.nonzero().tolist():
        exclude[i, int((exclude[i] >= 0).sum())] = j
    module.zero_grad()
    wanted = semivariogram_info_nce(
        module.model.image_encoder(second["embeddings"]),
        module.model.location_encoder(places.float()),
        second["latlon"],
        places,
        module.model.logit_scale.exp(),
        variogram=VARIOGRAM,
        policy=NegativePolicy.explained(hard=2, false=5),
        query_embeddings=v[:12],
        gallery_embeddings=v,
        exclude=exclude,
    )
    wanted.backward()
    for a, b in zip(got, [wanted.detach(), *(p.grad for p in module.model.parameters())], strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


def test_a_place_without_image_is_a_plain_negative(tmp_path):
    VARIOGRAM.save(tmp_path / "v.json")
    module = GeoCLIPTraining(
        **SMALL,
        strengths={"hard": 3, "false": 9, "far": 0},
        variogram=str(tmp_path / "v.json"),
        queue_size=0,
        batch_noise_m=0,
        queue_noise_m=0,
    )
    now = {name: tensor[:1] for name, tensor in batch().items()}  # one photo: all negatives are the gallery's
    np.save(tmp_path / "places.npy", np.random.default_rng(0).uniform(-80, 80, (30, 2)))
    module.gallery = draw(str(tmp_path / "places.npy"), 30)
    with torch.no_grad():
        places = torch.cat((now["latlon"], module.gallery.latlon)).float()
        plain = F.cross_entropy(module.model(now["embeddings"], places), torch.tensor([0]))
    assert float(step(module, now).detach()) == pytest.approx(float(plain), rel=1e-5)


def test_a_run_with_a_gallery_resumes_and_is_evaluated(tmp_path):
    settings = ["--config", str(write_settings(tmp_path, steps=8)), "--model.gallery", "150"]
    whole = torch.load(fit([*settings, "--out", str(tmp_path / "whole")]), weights_only=True)
    parts = fit_in_two_parts(settings, tmp_path / "parts", 6)
    state = torch.load(parts, weights_only=True)["state_dict"]
    assert all(torch.equal(t, state[n]) for n, t in whole["state_dict"].items() if torch.is_tensor(t))
    assert not [name for name in state if "gallery" in name and "gps" not in name]
    assert load_trained(parts).hparams["gallery"] == 150


def test_a_bad_source_ends_before_the_first_step(tmp_path):
    write_store(tmp_path / "train")
    data = PhotoBatches(str(tmp_path / "train"), batch_size=16)
    module = GeoCLIPTraining(**SMALL, policy="none", gallery=5, gallery_source=str(tmp_path / "nowhere.csv"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        trainer(2).fit(module, data)
    with pytest.raises(ValueError, match=r"gallery: wanted at least 0, got -3"):
        GeoCLIPTraining(**SMALL, policy="none", gallery=-3)
