"""The gallery's features are computed once per weights and places, and a damaged or torn file is no cache."""

import copy
import multiprocessing
import os
import resource
import signal
import time

import numpy as np
import pytest
import torch

from geoclip import gallery_cache
from geoclip.gallery import Gallery
from geoclip.gallery_cache import default_cache

from .rendered_photos import random_latlon
from .small_world import small_model


@pytest.fixture
def model():
    return small_model()


def encoded(model, places, folder):
    """The features of a gallery, and how many places the location encoder saw for them."""
    seen = []
    hook = model.location_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    features = Gallery(model, places, cache=folder).features
    hook.remove()
    return features, sum(seen)


def files(folder):
    return sorted(folder.glob("*.npy"))


def test_the_second_gallery_is_read_from_disk(model, tmp_path):
    places = random_latlon(9000)  # more than a chunk
    first, seen = encoded(model, places, tmp_path)
    assert seen == 9000
    second, seen = encoded(model, places, tmp_path)
    assert seen == 0
    assert torch.equal(first, second)
    assert torch.equal(first, Gallery(model, places).features)
    assert len(files(tmp_path)) == 1
    # whoever writes to the features does not write to the file
    second.zero_()
    assert torch.equal(first, encoded(model, places, tmp_path)[0])


def test_other_weights_and_other_places_are_other_files(model, tmp_path):
    places = random_latlon(50)
    encoded(model, places, tmp_path)
    changed = copy.deepcopy(model)
    changed.location_encoder.LocEnc0.head[0].bias.data[3] += 1e-6
    moved = places.copy()
    moved[49, 1] += 1e-4
    for other, latlon in (
        (changed, places),
        (model, moved),
        (model, places[::-1].copy()),
        (model, places[:49]),
    ):
        features, seen = encoded(other, latlon, tmp_path)
        assert seen == len(latlon)
        assert torch.equal(features, Gallery(other, latlon).features)
    assert len(files(tmp_path)) == 5
    # the image head and the logit scale say nothing about places
    model.image_encoder.mlp[0].weight.data.zero_()
    model.logit_scale.data.zero_()
    assert encoded(model, places, tmp_path)[1] == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "other shape", "other type"])
def test_a_damaged_file_is_computed_again(model, tmp_path, damage):
    places = random_latlon(50)
    first, _ = encoded(model, places, tmp_path)
    first = first.clone()
    (file,) = files(tmp_path)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        np.save(file, np.zeros((50, 24 if damage == "other type" else 25), np.float64))
    again, seen = encoded(model, places, tmp_path)
    assert seen == 50
    assert torch.equal(first, again)
    assert encoded(model, places, tmp_path)[1] == 0


def _slowly(model, places, folder, started):
    def wait(*_):
        started.set()
        time.sleep(60)

    model.location_encoder.register_forward_hook(wait)
    Gallery(model, places, cache=folder)


def test_a_kill_leaves_no_half_file(model, tmp_path):
    places = random_latlon(50)
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_slowly, args=(model, places, tmp_path, started))
    process.start()
    assert started.wait(20)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert files(tmp_path) == []
    features, seen = encoded(model, places, tmp_path)  # the lock died with its process
    assert seen == 50
    assert torch.equal(features, Gallery(model, places).features)


def _once(model, places, folder, seen):
    def count(_, inputs):
        seen.put(len(inputs[0]))
        time.sleep(0.3)

    model.location_encoder.register_forward_pre_hook(count)
    Gallery(model, places, cache=folder)


def test_of_two_processes_one_computes(model, tmp_path):
    context = multiprocessing.get_context("fork")
    seen = context.Queue()
    arguments = (model, random_latlon(50), tmp_path, seen)
    processes = [context.Process(target=_once, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert seen.get(timeout=5) == 50
    assert seen.empty()


def test_a_folder_that_cannot_be_written_costs_a_warning(model, tmp_path):
    (tmp_path / "file").write_text("")
    places = random_latlon(50)
    with pytest.warns(UserWarning, match=r"not cached: .*file"):
        features, _ = encoded(model, places, tmp_path / "file" / "cache")
    assert torch.equal(features, Gallery(model, places).features)


def test_a_full_disk_costs_a_warning(model, tmp_path):
    places = random_latlon(50)
    whole = Gallery(model, places).features
    small = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, small[1]))
        with pytest.warns(UserWarning, match="not cached: cannot write"):
            features, _ = encoded(model, places, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, small)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(features, whole)
    assert files(tmp_path) == []


def test_the_files_used_last_stay(model, tmp_path, monkeypatch):
    galleries = [random_latlon(50, seed) for seed in range(4)]
    monkeypatch.setattr(gallery_cache, "LARGEST_BYTES", 3 * (128 + 50 * 24 * 4))
    for day, places in enumerate(galleries[:3]):
        before = set(files(tmp_path))
        encoded(model, places, tmp_path)
        (new,) = set(files(tmp_path)) - before
        os.utime(new, (day, day))
    assert encoded(model, galleries[0], tmp_path)[1] == 0  # used now
    encoded(model, galleries[3], tmp_path)
    assert len(files(tmp_path)) == 3
    assert [encoded(model, galleries[i], tmp_path)[1] for i in (0, 2, 3)] == [0, 0, 0]


def test_the_cache_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "semivario-kernels" / "galleries"
