import copy
import json
import math

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from geoclip import GeoCLIP, ImageEncoder, LocationEncoder
from geoclip.upstream import UpstreamUnavailable, fetch_upstream, read_gallery

D = 16


@pytest.fixture(scope="module")
def upstream():
    try:
        return fetch_upstream()
    except UpstreamUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    path = tmp_path_factory.mktemp("config") / "tiny-model-test.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return path.stem


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return GeoCLIP(
        False,
        8,
        image_encoder=ImageEncoder(tiny, None, output_dim=D),
        location_encoder=LocationEncoder([1, 16], False, width=32, encoded_size=8, output_dim=D),
        gallery=(torch.rand(300, 2) - 0.5) * torch.tensor([180.0, 360.0]),
    )


@pytest.fixture
def photo_path(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return path


def test_logits_are_scaled_cosines(model):
    images, latlon = torch.randn(3, 3, 32, 32), model.gps_gallery[:7]
    logits = model(images, latlon)
    assert logits.shape == (3, 7)
    x, y = model.image_encoder(images), model.location_encoder(latlon)
    expected = torch.stack([cosine_similarity(row[None], y) for row in x]) / 0.07
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    logits.sum().backward()
    assert model.logit_scale.grad is not None
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_state_dict_names(model):
    names = set(model.state_dict())
    assert {"logit_scale", "gps_queue", "gps_queue_ptr", "image_encoder.mlp.2.bias"} <= names
    assert "location_encoder.LocEnc1.capsule.0.b" in names
    assert "gps_gallery" not in names
    assert model.state_dict()["gps_queue"].shape == (2, 8)
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict(), strict=True)


def test_predict_gives_the_best_of_the_whole_gallery(model, photo_path):
    gps, probability = model.predict(str(photo_path), top_k=5)
    image = model.image_encoder.preprocess_image(Image.open(photo_path).convert("RGB"))
    expected = model(image, model.gps_gallery)[0].softmax(0)
    order = expected.argsort(descending=True)
    assert gps.shape == (5, 2)
    assert torch.equal(gps, model.gps_gallery[order[:5]])
    torch.testing.assert_close(probability, expected[order[:5]].detach(), rtol=1e-4, atol=1e-7)
    everything = model.predict(photo_path, top_k=300)[1]
    assert everything.sum().item() == pytest.approx(1, abs=1e-5)


def test_predict_turns_the_photo_as_its_exif_says(model, photo_path, tmp_path):
    image = Image.open(photo_path)
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "upright.png")
    turned, upright = (model.predict(tmp_path / name, 3) for name in ("turned.png", "upright.png"))
    assert torch.equal(turned[0], upright[0])
    assert torch.equal(turned[1], upright[1])


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.location_encoder.LocEnc0.head[0].weight.data.neg_(),
        lambda m: m.location_encoder.load_state_dict(
            LocationEncoder([1, 16], False, width=32, encoded_size=8, output_dim=D).state_dict()
        ),
        lambda m: m.location_encoder.LocEnc1.capsule[0].b.mul_(2),
        lambda m: setattr(m, "gps_gallery", m.gps_gallery.flip(0)[:200].clone()),
        lambda m: m.gps_gallery.copy_(m.gps_gallery.roll(1, 0)),
        lambda m: setattr(
            m, "location_encoder", LocationEncoder([2, 3], False, width=8, encoded_size=4, output_dim=D)
        ),
        lambda m: m.double().float(),
    ],
)
def test_cached_gallery_features_follow_every_change(model, photo_path, change):
    model.predict(photo_path, 3)
    change(model)
    gps, probability = model.predict(photo_path, 3)
    image = model.image_encoder.preprocess_image(Image.open(photo_path))
    expected = model(image, model.gps_gallery)[0].softmax(0).topk(3)
    assert torch.equal(gps, model.gps_gallery[expected.indices])
    torch.testing.assert_close(probability, expected.values.detach(), rtol=1e-4, atol=1e-7)


def test_gallery_is_encoded_once(model, photo_path):
    calls = []
    model.location_encoder.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        model.predict(photo_path, 1)
    assert len(calls) == 1


def test_gallery_features_made_under_autocast_are_not_coarse(model, photo_path):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.predict(photo_path, 1)
    kept = model._gallery_features()
    model._gallery_cache = None
    assert torch.equal(model._gallery_features(), kept)
    assert kept.dtype == torch.float32


def test_predict_refuses_bad_input(model, photo_path, tmp_path):
    for top_k in (0, -1, 301):
        with pytest.raises(ValueError, match=f"top_k is {top_k}, wanted 1 to 300"):
            model.predict(photo_path, top_k)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        model.predict(tmp_path / "nowhere.jpg", 1)
    for name, content in {"text.jpg": b"hello", "cut.jpg": photo_path.read_bytes()[:700]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: not a readable image"):
            model.predict(tmp_path / name, 1)
    head = GeoCLIP(
        False,
        image_encoder=ImageEncoder(None, embedding_dim=24, output_dim=D),
        location_encoder=model.location_encoder,
        gallery=model.gps_gallery,
    )
    with pytest.raises(ValueError, match="no backbone"):
        head.predict(photo_path, 1)


def test_queue_counts_only_what_was_written(model):
    assert model.gps_queue_filled == 0
    assert model.get_gps_queue().shape == (0, 2)
    written = torch.arange(60.0).reshape(30, 2)
    model.dequeue_and_enqueue(written[:3])
    assert model.gps_queue_filled == 3
    assert torch.equal(model.get_gps_queue(), written[:3])
    model.dequeue_and_enqueue(written[3:8])
    assert (model.gps_queue_filled, model.gps_queue_ptr.item()) == (8, 0)
    model.dequeue_and_enqueue(written[8:14])
    model.dequeue_and_enqueue(written[14:19])  # wraps around
    assert model.gps_queue_ptr.item() == 3
    assert torch.equal(model.get_gps_queue(), torch.cat([written[16:19], written[11:16]]))
    model.dequeue_and_enqueue(written[10:30])  # more than fit
    assert model.gps_queue_ptr.item() == 0
    assert torch.equal(model.get_gps_queue(), written[22:30])
    with pytest.raises(ValueError, match=r"gps has shape \(2,\)"):
        model.dequeue_and_enqueue(torch.zeros(2))


def test_queue_of_no_length(model):
    model = GeoCLIP(
        False,
        0,
        image_encoder=model.image_encoder,
        location_encoder=model.location_encoder,
        gallery=torch.zeros(1, 2),
    )
    model.dequeue_and_enqueue(torch.ones(3, 2))
    assert model.get_gps_queue().shape == (0, 2)


def test_a_full_queue_of_upstream_loads(model):
    state = model.state_dict()
    state["gps_queue"] = torch.nn.functional.normalize(torch.randn(2, 8), dim=0)
    model.load_state_dict(state, strict=True)
    assert model.gps_queue_filled == 8


@pytest.mark.parametrize(
    "gallery",
    [torch.zeros(0, 2), torch.zeros(3, 3), torch.tensor([[91.0, 0]]), torch.tensor([[0.0, math.inf]])],
)
def test_bad_gallery_is_refused(model, gallery):
    with pytest.raises(ValueError, match="gallery"):
        GeoCLIP(
            False, image_encoder=model.image_encoder, location_encoder=model.location_encoder, gallery=gallery
        )


def test_bad_queue_size_is_refused():
    with pytest.raises(ValueError, match="queue_size is -1"):
        GeoCLIP(False, -1, gallery=torch.zeros(1, 2))


def test_from_upstream_scores_cached_embeddings_with_the_official_weights(upstream):
    model = GeoCLIP.from_upstream(ImageEncoder(None, embedding_dim=768))
    torch.manual_seed(0)
    embeddings, latlon = torch.randn(4, 768), read_gallery()[:50].float()
    head = torch.load(upstream.image_head_weights, weights_only=True)
    hidden = torch.relu(embeddings @ head["0.weight"].T + head["0.bias"])
    x = hidden @ head["2.weight"].T + head["2.bias"]
    y = LocationEncoder()(latlon)
    scale = torch.load(upstream.logit_scale_weights, weights_only=True).exp()
    expected = scale * torch.stack([cosine_similarity(row[None], y) for row in x])
    torch.testing.assert_close(model(embeddings, latlon), expected, rtol=1e-4, atol=1e-4)
    assert scale.item() == pytest.approx(39.687, abs=0.01)
    assert torch.equal(model.gps_gallery, read_gallery().float())


def test_pretrained_model_is_upstreams(upstream):
    model = GeoCLIP()
    assert model.gps_queue.shape == (2, 4096)
    official = {
        "image_encoder.mlp.": upstream.image_head_weights,
        "location_encoder.": upstream.location_encoder_weights,
    }
    state = model.state_dict()
    for prefix, path in official.items():
        for name, value in torch.load(path, weights_only=True).items():
            assert torch.equal(state[prefix + name], value), prefix + name
    scale = torch.load(upstream.logit_scale_weights, weights_only=True)
    assert model.logit_scale.requires_grad
    assert torch.equal(model.logit_scale.detach(), scale)


def test_from_upstream_refuses_a_head_of_another_size(tiny):
    with pytest.raises(ValueError, match="maps 24 to 512 dimensions, the official head 768 to 512"):
        GeoCLIP.from_upstream(ImageEncoder(tiny, None))
