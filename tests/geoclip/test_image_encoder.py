import io
import json
import struct
import tracemalloc
import zlib

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageOps

from geoclip.image_encoder import ImageEncoder, read_image

E = 24


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A CLIP of open_clip's own classes, small enough to run in a test."""
    config = {
        "embed_dim": E,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    path = tmp_path_factory.mktemp("config") / "tiny-image-encoder-test.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return path.stem


@pytest.fixture(scope="module")
def tiny_coca(tmp_path_factory):
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    config = {
        "embed_dim": E,
        "vision_cfg": {
            "image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8,
            "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True,
        },
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**text, "attn_pooler_heads": 2},
        "custom_text": True,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("config") / "coca-tiny-image-encoder-test.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return path.stem


def photo(width=48, height=40, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def test_embeddings_are_open_clips_and_the_head_has_upstreams_names(tiny):
    encoder = ImageEncoder(tiny, None, output_dim=5)
    assert encoder.embedding_dim == E
    assert {name: tuple(value.shape) for name, value in encoder.state_dict().items()} == {
        "mlp.0.weight": (E, E),
        "mlp.0.bias": (E,),
        "mlp.2.weight": (5, E),
        "mlp.2.bias": (5,),
    }
    images = torch.cat([encoder.preprocess_image(photo(seed=i)) for i in range(3)])
    assert images.shape == (3, 3, 32, 32)

    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(tiny, pretrained=None)
    torch.testing.assert_close(images[0], preprocess(photo(seed=0)), rtol=0, atol=0)
    embeddings = encoder.embed(images)
    with torch.no_grad():
        torch.testing.assert_close(embeddings, model.eval().encode_image(images), rtol=1e-5, atol=1e-6)
    first, last = encoder.mlp[0], encoder.mlp[2]
    expected = torch.relu(embeddings @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(encoder(images), expected)
    torch.testing.assert_close(encoder(embeddings), expected)


def test_preprocessing_uses_clips_statistics(tiny):
    white = ImageEncoder(tiny, None).preprocess_image(Image.new("RGB", (64, 64), "white"))
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
    torch.testing.assert_close(white[0, :, 16, 16], (1 - mean) / std)


def test_backbone_is_frozen_and_stays_in_eval_mode(tiny):
    encoder = ImageEncoder(tiny, None)
    images = encoder.preprocess_image(photo())
    before = encoder.embed(images)
    tower, _ = encoder._load()
    encoder.train()
    assert not tower.training
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    encoder(images).square().sum().backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in encoder.mlp.parameters())
    assert torch.equal(encoder.embed(images), before)


def test_random_backbone_is_the_same_every_time_and_leaves_the_generator_alone(tiny):
    images = torch.randn(2, 3, 32, 32)
    torch.manual_seed(5)
    first = ImageEncoder(tiny, None).embed(images)
    expected_head = ImageEncoder(tiny, None).mlp[0].weight
    torch.manual_seed(5)
    second = ImageEncoder(tiny, None)
    other_head = ImageEncoder(tiny, None).mlp[0].weight
    assert torch.equal(second.embed(images), first)
    assert torch.equal(other_head, expected_head)


def test_local_checkpoint(tiny, tmp_path):
    torch.manual_seed(123)
    model, _, _ = open_clip.create_model_and_transforms(tiny, pretrained=None)
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    images = torch.randn(2, 3, 32, 32)
    embeddings = ImageEncoder(tiny, path).embed(images)
    with torch.no_grad():
        torch.testing.assert_close(embeddings, model.eval().encode_image(images), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(embeddings, ImageEncoder(tiny, None).embed(images), atol=1e-2)


def test_tag_trained_with_quick_gelu_gets_quick_gelu(tiny, tmp_path, monkeypatch):
    torch.manual_seed(1)
    model, _, _ = open_clip.create_model_and_transforms(tiny, pretrained=None, force_quick_gelu=True)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    # An entry in open_clip's own table of tags, as ViT-L-14's "openai" is one.
    tag = {"file": str(tmp_path / "weights.pt"), "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, tiny, {"quick": tag})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval().encode_image(images)
    torch.testing.assert_close(ImageEncoder(tiny, "quick").embed(images), expected, rtol=1e-5, atol=1e-6)
    plain = ImageEncoder(tiny, str(tmp_path / "weights.pt")).embed(images)
    assert (plain - expected).abs().max() > 1e-4
    assert open_clip.get_pretrained_cfg("ViT-L-14", "openai")["quick_gelu"] is True


def test_coca_gives_its_pooled_embedding(tiny_coca):
    assert ImageEncoder(tiny_coca, None).embed(torch.randn(2, 3, 32, 32)).shape == (2, E)


def test_default_is_clip_vit_l_14_and_nothing_is_loaded_to_build_it():
    encoder = ImageEncoder()
    assert (encoder.backbone, encoder.pretrained, encoder.embedding_dim) == ("ViT-L-14", "openai", 768)
    assert sum(p.numel() for p in encoder.parameters()) == 768 * 768 + 768 + 768 * 512 + 512
    assert encoder(torch.randn(2, 768)).shape == (2, 512)
    assert encoder._loaded == {}


def test_unreachable_hub_is_one_readable_error(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"cannot load backbone 'ViT-L-14' with pretrained='openai'"):
        ImageEncoder().embed(torch.zeros(1, 3, 224, 224))


def test_unknown_names_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"backbone 'ViT-Q' is unknown, wanted one of .*ViT-"):
        ImageEncoder("ViT-Q")
    with pytest.raises(RuntimeError, match=rf"{tiny}.*no-such-tag"):
        _ = ImageEncoder(tiny, "no-such-tag").preprocess
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no weights")
    with pytest.raises(RuntimeError, match=r"broken\.pt"):
        _ = ImageEncoder(tiny, broken).preprocess


def test_head_alone_takes_embeddings_only():
    encoder = ImageEncoder(None, embedding_dim=10, output_dim=3)
    assert encoder(torch.randn(4, 10)).shape == (4, 3)
    for use in (
        lambda: encoder(torch.zeros(1, 3, 32, 32)),
        lambda: encoder.embed(torch.zeros(1, 3, 32, 32)),
        lambda: encoder.preprocess_image(photo()),
    ):
        with pytest.raises(ValueError, match="no backbone"):
            use()


def test_dimensions_must_agree(tiny):
    with pytest.raises(ValueError, match="embedding_dim is None"):
        ImageEncoder(None)
    with pytest.raises(ValueError, match=f"embedding_dim is 7, {tiny} has {E}"):
        ImageEncoder(tiny, None, embedding_dim=7)
    assert ImageEncoder(tiny, None, embedding_dim=E).embedding_dim == E
    with pytest.raises(ValueError, match=rf"embeddings have shape \(2, 7\), wanted \(n, {E}\)"):
        ImageEncoder(tiny, None)(torch.zeros(2, 7))
    for shape in [(3, 32, 32), (1, 1, 32, 32), (5,)]:
        with pytest.raises(ValueError, match=r"wanted \(n, 3, H, W\)"):
            ImageEncoder(tiny, None)(torch.zeros(shape))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_read_image_gives_rgb(tmp_path, mode):
    path = tmp_path / ("photo.jpg" if mode in ("RGB", "L", "CMYK") else "photo.png")
    photo().convert(mode).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (48, 40))


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.linspace(0, 65535, 48 * 40).reshape(40, 48).astype(np.uint16)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(values).save(tmp_path / name)
        seen = np.asarray(read_image(tmp_path / name)).astype(int)
        assert seen.shape == (40, 48, 3)
        assert np.abs(seen - (values / 257)[..., None]).max() <= 1


def test_cmyk_keeps_its_colours(tmp_path):
    photo().convert("CMYK").save(tmp_path / "photo.jpg", quality=95)
    difference = np.asarray(read_image(tmp_path / "photo.jpg")).astype(int) - np.asarray(
        photo().convert("RGB")
    )
    assert np.abs(difference).mean() < 6


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "white")]
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    with Image.open(path) as image:
        assert image.n_frames == 3
    seen = read_image(path)
    assert (seen.mode, seen.size) == ("RGB", (20, 10))
    assert np.abs(np.asarray(seen).astype(int) - (255, 0, 0)).max() < 8


def test_bytes_are_read_under_the_name_given(tmp_path):
    assert read_image(jpeg(photo())).size == (48, 40)
    with pytest.raises(ValueError, match=r"^00\.zip/7: not a readable image: the file is empty$"):
        read_image(b"", "00.zip/7")


def png_header(width, height):
    """A PNG of a few bytes that claims to be of any size."""
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("size", "match"),
    [
        ((60_000, 60_000), r"3600000000 pixels.* decompression bomb"),
        ((12_000, 12_000), r"12,000 × 12,000 pixels are 144 megapixels"),
        ((1, 101), r"1 × 101 pixels: a strip, wanted sides within 1:100"),
    ],
)
def test_bombs_are_refused_by_their_header(size, match):
    tracemalloc.start()
    with pytest.raises(ValueError, match=match):
        read_image(png_header(*size), "bomb.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 2**20


@pytest.mark.filterwarnings("error")
def test_a_hundred_megapixels_are_read_without_a_warning(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 10_000), 1).save(path)
    assert read_image(path).size == (10_000, 10_000)
    with pytest.raises(ValueError, match="100 megapixels, wanted at most 50"):
        read_image(path, max_pixels=50_000_000)


def test_read_image_applies_the_exif_orientation(tmp_path):
    image = Image.new("RGB", (48, 40), "white")
    image.paste("black", (0, 0, 48, 20))  # black above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: the upper half is shown on the right
    path = tmp_path / "turned.jpg"
    path.write_bytes(jpeg(image, exif=exif))
    seen = read_image(str(path))
    assert seen.size == (40, 48)
    assert min(seen.getpixel((5, 24))) > 240
    assert max(seen.getpixel((35, 24))) < 15


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_that_of_pillow(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    photo().save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
        assert (expected.shape[:2] == (40, 48)) == (orientation not in (5, 6, 7, 8))
    np.testing.assert_array_equal(np.asarray(read_image(path)), expected)


def test_a_photo_with_exif_that_cannot_be_written_again_is_read_and_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0
    raw = exif.tobytes()
    order = "<" if raw[6:8] == b"II" else ">"
    resolution, as_text = (struct.pack(order + "HH", 0x011A, kind) for kind in (5, 2))
    assert raw.count(resolution) == 1
    content = jpeg(photo(), exif=raw.replace(resolution, as_text))
    with Image.open(io.BytesIO(content)) as image, pytest.raises(TypeError):
        ImageOps.exif_transpose(image)
    assert read_image(content).size == (40, 48)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_is_transparent_shows_white(mode):
    """The left half is transparent over black, the right half opaque grey."""
    file = io.BytesIO()
    if mode in ("RGBA", "LA"):
        pixels = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
        pixels.paste((102, 102, 102, 255), (4, 0, 8, 4))
        pixels.convert(mode).save(file, "PNG")
    else:
        pixels = Image.new("RGB", (8, 4), (0, 0, 0))
        pixels.paste((102, 102, 102), (4, 0, 8, 4))
        pixels = pixels.convert(mode)
        pixels.save(file, "PNG", transparency=pixels.getpixel((0, 0)))
    seen = np.asarray(read_image(file.getvalue()))
    assert (seen[:, :4] == 255).all()
    assert (seen[:, 4:] == 102).all()


def test_what_is_half_transparent_is_mixed_with_white():
    file = io.BytesIO()
    Image.new("RGBA", (4, 4), (200, 0, 0, 128)).save(file, "PNG")
    seen = np.asarray(read_image(file.getvalue())).astype(int)
    assert np.abs(seen - (227, 127, 127)).max() <= 1


def test_broken_images_raise_a_value_error_that_names_the_file(tmp_path):
    good = jpeg(photo())
    png = io.BytesIO()
    photo().save(png, "PNG")
    broken = {
        "empty.jpg": b"",
        "text.jpg": b"not an image at all",
        "half.jpg": good[: len(good) // 2],
        "head.jpg": good[:200],
        "half.png": png.getvalue()[: len(png.getvalue()) // 2],
        "chunk.png": png.getvalue()[:60] + b"\xff" * 40 + png.getvalue()[100:],
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a readable image") as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[1] = "N"
    path = tmp_path / "damaged.jpg"
    refused = 0
    for _ in range(150):
        content = bytearray(jpeg(photo(), exif=exif))
        for position in rng.integers(0, 400, 6):
            content[position] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            read_image(path)
        except ValueError:  # anything else fails the test
            refused += 1
    assert refused > 10


def test_missing_file_keeps_its_own_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)
