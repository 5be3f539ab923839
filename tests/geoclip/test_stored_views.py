"""What training and evaluation make of the pictures of a photo that a store holds."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from geoclip.datamodule import PhotoBatches
from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter
from geoclip.evaluation import place_store
from geoclip.gallery import Gallery
from geoclip.image_encoder import ImageEncoder
from geoclip.location_encoder import LocationEncoder
from geoclip.metrics import great_circle_km
from geoclip.model import GeoCLIP

from .rendered_photos import random_latlon


def write(folder, pictures, count=60, views=3):
    rng = np.random.default_rng(0)
    info = {"backbone": None, "pictures": pictures}
    with EmbeddingWriter(folder, 16, info=info, views=views, rows_per_shard=25) as writer:
        others = rng.normal(size=(count, views, 16))
        writer.append(range(count), random_latlon(count), others.mean(axis=1), views=others)
    return EmbeddingStore.open(folder)


def test_training_draws_a_view_of_each_photo_for_each_step(tmp_path):
    store = write(tmp_path / "train", "augmented")
    rows = PhotoBatches(str(store.path), batch_size=20, seed=7)._rows()
    index = np.random.default_rng(1).permutation(60)[:40]
    batches = [rows.__getitems__([step, *index])["embeddings"].numpy() for step in (0, 1, 0)]
    np.testing.assert_array_equal(batches[0], batches[2])
    assert not np.array_equal(batches[0], batches[1])
    pictures = np.stack([store.read(index, view) for view in range(4)])
    drawn = (pictures == batches[0]).all(axis=2)
    assert (drawn.sum(axis=0) == 1).all()
    assert (drawn.sum(axis=1) > 0).all()


def test_training_takes_the_mean_of_ten_crops(tmp_path):
    store = write(tmp_path / "train", "tencrop")
    rows = PhotoBatches(str(store.path), batch_size=20)._rows()
    embeddings = rows.__getitems__([5, 3, 1])["embeddings"].numpy()
    np.testing.assert_array_equal(embeddings, store.read([3, 1]))


@pytest.mark.parametrize("pictures", ["tencrop", "augmented"])
def test_evaluation_averages_the_cosines_of_crops_but_not_of_augmentations(tmp_path, pictures):
    torch.manual_seed(3)
    model = GeoCLIP(
        from_pretrained=False,
        image_encoder=ImageEncoder(None, embedding_dim=16, output_dim=24),
        location_encoder=LocationEncoder([2.0], from_pretrained=False, width=32, output_dim=24),
        gallery=torch.zeros(1, 2),
    )
    store = write(tmp_path / "test", pictures)
    places = random_latlon(300, seed=4)
    placed = place_store(Gallery(model, places), store)
    views = range(1, 4) if pictures == "tencrop" else [0]
    with torch.no_grad():
        of_places = normalize(model.location_encoder(torch.from_numpy(places).float()), dim=1)
        cosines = sum(
            normalize(model.image_encoder(torch.from_numpy(store.read(np.arange(60), view))), dim=1)
            @ of_places.T
            for view in views
        )
    np.testing.assert_array_equal(placed.latlon, places[cosines.argmax(dim=1).numpy()])
    nearest = np.array([great_circle_km(places, np.tile(place, (300, 1))).argmin() for place in store.latlon])
    own = cosines[torch.arange(60), torch.from_numpy(nearest)]
    ranks = 1 + (cosines > own[:, None]).sum(dim=1).numpy()
    np.testing.assert_allclose(placed.rank, ranks, atol=1)  # float32 may order two places otherwise
    assert len(np.unique(placed.rank)) > 20
