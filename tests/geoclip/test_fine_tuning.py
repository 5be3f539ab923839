"""Training from images: augmentation, broken photos, and a backbone of which a part moves."""

import csv
import io
import json
import warnings

import open_clip
import pytest
import torch

from geoclip.cli import main
from geoclip.commands.options import image_encoder
from geoclip.datamodule import PhotoBatches
from geoclip.datasets import read_photos
from geoclip.embedding_store import EmbeddingStore
from geoclip.finetune import FineTunedTower
from geoclip.fit import fit, load_trained
from geoclip.image_batches import ImageRows, training_transform
from geoclip.image_encoder import read_image
from geoclip.training import GeoCLIPTraining
from geoclip.weights import Weights

from .rendered_photos import render_photos
from .small_world import small_model
from .stopped_run import fit_in_two_parts
from .test_resume import same
from .test_training import SMALL, trainer

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "tiny-tuning.json").write_text(json.dumps(TINY))
    render_photos(folder / "photos", 60).rename(folder / "photos" / "list.csv")
    return folder


@pytest.fixture
def encoder(folder):
    return image_encoder(str(folder / "tiny-tuning.json"), "none")


def settings(folder, *more):
    options = {
        "data.images": folder / "photos" / "list.csv",
        "data.backbone": folder / "tiny-tuning.json",
        "data.pretrained": "none",
        "data.batch_size": 16,
        "trainer.max_steps": 4,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.log_every_n_steps": 1,
        "checkpoint_every": 2,
        "model.output_dim": 16,
        "model.sigma": "[1.0, 4.0]",
        "model.width": 16,
        "model.encoded_size": 8,
        "model.queue_size": 20,
        "model.policy": "none",
        "model.backbone_learning_rate": 0.01,
    }
    return [*(f"--{name}={value}" for name, value in options.items()), *more]


def weights_of(encoder):
    return {name: p.detach().clone() for name, p in encoder._load()[0].named_parameters()}


@pytest.mark.parametrize(
    ("method", "moves"),
    [
        ("last_k", lambda name: name.startswith(("transformer.resblocks.2", "ln_post", "proj"))),
        ("lora", lambda name: "lora_" in name and "resblocks" in name),
    ],
)
def test_the_right_weights_move_and_no_others(encoder, method, moves):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 32, 32, generator=generator)
    untuned = encoder.embed(images)
    tower = FineTunedTower(encoder, method, blocks=1, rank=4)
    torch.testing.assert_close(tower(images), untuned, rtol=1e-5, atol=1e-6)  # adapters start as nothing
    before = weights_of(encoder)
    optimizer = torch.optim.SGD(tower.parameters(), lr=0.1)
    for _ in range(2):  # LoRA's first factor gets its first gradient when the second has moved
        optimizer.zero_grad()
        tower(images).square().sum().backward()
        optimizer.step()
    after = weights_of(encoder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if moves(name)}
    assert len(moved) == len(list(tower.parameters())) == len(tower.state_dict())
    if method == "lora":
        for block in range(3):
            for layer in ("mlp.c_fc", "mlp.c_proj"):
                assert any(f"resblocks.{block}.{layer}" in name for name in moved), (block, layer)
    # the encoder gives what was tuned
    assert not torch.allclose(encoder.embed(images), untuned, rtol=1e-3)
    torch.testing.assert_close(encoder.embed(images), tower(images).detach(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["last_k", "lora"])
def test_a_tuned_run_resumes_exactly_and_predicts_with_its_backbone(
    folder, tmp_path, method, capsys, monkeypatch
):
    options = settings(folder, f"--model.finetune={method}", "--model.finetune_blocks=1", "--model.ema=0.5")
    checkpoint = fit([*options, "--out", str(tmp_path / "whole")])
    whole = torch.load(checkpoint, weights_only=True)
    parts = torch.load(fit_in_two_parts(options, tmp_path / "parts", 3), weights_only=True)
    for part in ("state_dict", "optimizer_states"):
        same(whole[part], parts[part], part)
    names = [name for name in whole["state_dict"] if name.startswith("tower.")]
    assert names
    # nothing of the frozen part is in the file
    assert all("lora_" in name if method == "lora" else "resblocks/0" not in name for name in names)
    rates = {group["initial_lr"] for group in whole["optimizer_states"][0]["param_groups"]}
    assert rates == {0.01 / 25, 0.001 / 25}

    module = load_trained(checkpoint)
    images = torch.randn(3, 3, 32, 32)
    untuned = image_encoder(str(folder / "tiny-tuning.json"), "none").embed(images)
    assert not torch.allclose(module.model.image_encoder.embed(images), untuned, rtol=1e-3)
    photo = next((folder / "photos").rglob("*.jpg"))
    (tmp_path / "gallery.csv").write_text("lat,lon\n10,20\n-30,40\n50,-60\n")
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})  # as in another process
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
    capsys.readouterr()
    command = ["predict", str(photo), "--checkpoint", str(checkpoint), "--top-k", "3"]
    assert main([*command, "--gallery", str(tmp_path / "gallery.csv")]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert main(["export", str(checkpoint), str(tmp_path / "release")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has a backbone of its own training, which the release format does not hold" in line
    assert not (tmp_path / "release").exists()
    embedding = module.model.image_encoder.embed(
        module.model.image_encoder.preprocess_image(read_image(photo))
    )
    gallery = torch.tensor([[10.0, 20.0], [-30.0, 40.0], [50.0, -60.0]])
    best = int(module.model(embedding, gallery)[0].argmax())
    assert float(rows[0]["latitude"]) == pytest.approx(float(gallery[best, 0]))
    assert (
        main(
            ["export", str(checkpoint), str(tmp_path / "release"), "--gallery", str(tmp_path / "gallery.csv")]
        )
        == 2
    )
    assert "backbone" in capsys.readouterr().err


def test_a_tuned_run_is_evaluated_on_embeddings_of_its_own_backbone(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos, config = folder / "photos" / "list.csv", folder / "tiny-tuning.json"
    tuned = fit(settings(folder, "--model.finetune=last_k", "--model.ema=0.5", "--out=tuned"))
    frozen = fit(settings(folder, "--out=frozen"))
    places = ["--gallery", photos, "--gallery-cache", "cache"]

    def line_of(*arguments, code):
        """What the command says in its last line."""
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        return (captured.err if code else captured.out).splitlines()[-1]

    for store, options in {
        "named": ["--backbone", config, "--pretrained", "none"],
        "averaged": ["--checkpoint", tuned],
        "last": ["--checkpoint", tuned, "--weights", "last"],
        "unmoved": ["--checkpoint", frozen],
    }.items():
        line_of("embed", photos, store, *options, "--workers", "0", code=0)
    info = {store: EmbeddingStore.open(store).info for store in ("named", "averaged", "last", "unmoved")}
    assert info["named"] == info["unmoved"] == {key: info["last"][key] for key in info["named"]}
    assert len(info["averaged"].pop("tuned")) == len(info["last"].pop("tuned")) == 16
    assert info["averaged"] == info["last"] == info["named"]

    # what is stored of a photo is what `predict` computes of it
    encoder = load_trained(tuned).model.image_encoder
    image = encoder.preprocess_image(read_image(folder / "photos" / "00007.jpg"))
    stored = torch.from_numpy(EmbeddingStore.open("averaged").read([7]))
    torch.testing.assert_close(stored, encoder.embed(image), rtol=2e-3, atol=2e-3)
    line_of("eval", tuned, "averaged", *places, code=0)
    line_of("eval", tuned, "last", "--weights", "last", *places, code=0)
    line_of("eval", frozen, "named", *places, code=0)
    line_of("predict", "averaged", "--checkpoint", tuned, *places, code=0)

    advice = f"geoclip embed PHOTOS OUT --checkpoint {tuned} --weights averaged makes them"
    for command in (["eval", tuned, "named"], ["predict", "named", "--checkpoint", tuned]):
        line = line_of(*command, *places, code=2)
        assert line == (
            "geoclip: named: embeddings of a backbone as it was, wanted those of the one that "
            f"{tuned} fine-tuned: {advice}"
        )
    line = line_of("eval", tuned, "last", *places, code=2)
    assert "last: embeddings of a backbone fine-tuned otherwise" in line
    assert line.endswith(advice)
    line = line_of("eval", frozen, "last", *places, code=2)
    assert "last: embeddings of a fine-tuned backbone, wanted those of tiny-tuning as it was" in line
    line = line_of("embed", photos, "x", "--checkpoint", tuned, "--backbone", "RN50", code=2)
    assert f"wanted neither with --checkpoint {tuned}, which has its own" in line
    line = line_of("embed", photos, "x", "--weights", "last", code=2)
    assert "--weights: wanted with --checkpoint alone, got last" in line


def test_a_head_trained_on_tuned_embeddings_wants_the_like(folder, tmp_path, capsys):
    """Its photos cannot be embedded: the backbone is in another run's checkpoint."""
    photos = str(folder / "photos" / "list.csv")
    tuned = fit(settings(folder, "--model.finetune=last_k", f"--out={tmp_path / 'tuned'}"))
    store = str(tmp_path / "store")
    assert main(["embed", photos, store, "--checkpoint", str(tuned), "--workers", "0"]) == 0
    on_images = ("--data.images", "--data.backbone", "--data.pretrained")
    options = [option for option in settings(folder) if not option.startswith(on_images)]
    head = str(fit([*options, f"--data.train={store}", f"--out={tmp_path / 'head'}"]))
    places = ["--gallery", photos, "--gallery-cache", str(tmp_path / "cache")]
    assert main(["predict", store, "--checkpoint", head, *places]) == 0
    capsys.readouterr()
    assert main(["predict", str(folder / "photos"), "--checkpoint", head, *places]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "embeddings of a backbone as it was" in line
    assert line.endswith("--checkpoint of the run that trained it makes them")
    assert main(["export", head, str(tmp_path / "release")]) == 2


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (
            {"backbone": "ViT-L-14", "pretrained": "laion2b"},
            "pretrained is laion2b, wanted the openai of upstr",
        ),
        (
            {"backbone": "ViT-H", "pretrained": "openai"},
            "embeddings whose backbone is ViT-H, wanted the ViT-L-14 of",
        ),
        (
            {"backbone": "ViT-L-14", "backbone_config": {"embed_dim": 3}},
            "backbone_config is {'embed_dim': 3}",
        ),
        ({"backbone": "ViT-L-14", "pretrained": None}, "pretrained is None, wanted the openai"),
        ({"backbone": "ViT-L-14", "pretrained": "openai", "split": "test"}, None),
        ({"backbone": "ViT-L-14-quickgelu", "pretrained": "openai"}, None),
        ({"backbone": "ViT-L-14"}, None),
        ({"backbone": None}, None),
        ({}, None),
    ],
)
def test_embeddings_of_another_backbone_are_refused_where_it_is_known(info, message):
    known = {"backbone": "ViT-L-14", "pretrained": "openai", "backbone_config": {}}
    weights = Weights("upstream", small_model(), known)
    Weights("other", small_model(), {"backbone": None}).check_embeddings("store", 16, info)
    if message is None:
        weights.check_embeddings("store", 16, info)
    else:
        with pytest.raises(ValueError, match=message):
            weights.check_embeddings("store", 16, info)


def test_a_backbones_file_may_lie_elsewhere():
    weights = Weights("run", small_model(), {"backbone": "ViT-L-14", "pretrained": "/here/weights.pt"})
    weights.check_embeddings("store", 16, {"backbone": "ViT-L-14", "pretrained": "/there/weights.pt"})
    with pytest.raises(ValueError, match=r"pretrained is others.pt, wanted the weights.pt of run"):
        weights.check_embeddings("store", 16, {"backbone": "ViT-L-14", "pretrained": "/here/others.pt"})


def test_a_run_starts_from_a_tuned_backbone_or_refuses_it(folder, tmp_path):
    tuned = fit(settings(folder, "--model.finetune=last_k", "--model.finetune_blocks=1", f"--out={tmp_path}"))
    trained = torch.load(tuned, weights_only=True)["state_dict"]
    tower = {name: tensor for name, tensor in trained.items() if name.startswith("tower.")}
    config = {"backbone": "tiny-tuning", "pretrained": None, "backbone_config": TINY}
    own = {**SMALL, **config, "policy": "none", "queue_size": 20, "start_from": str(tuned)}
    for blocks in (1, 2):
        module = GeoCLIPTraining(**own, finetune="last_k", finetune_blocks=blocks, ema=0.5)
        for name, tensor in tower.items():
            assert torch.equal(module.state_dict()[name], tensor), name
        images = torch.randn(3, 3, 32, 32)
        embeddings = load_trained(tuned).model.image_encoder.embed(images)
        assert torch.equal(module.model.image_encoder.embed(images), embeddings)
        average = list(module.averaged.parameters())[-len(list(module.tower.parameters())) :]
        assert all(torch.equal(a, b) for a, b in zip(average, module.tower.parameters(), strict=True))
    other = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 4}}
    for change in (
        {},
        {"finetune": "lora"},
        {"finetune": "last_k", "finetune_blocks": 2, "backbone": "other-tuning", "backbone_config": other},
    ):
        with pytest.raises(ValueError, match=r"start_from: .*last.ckpt has a fine-tuned backbone; wanted .*"):
            GeoCLIPTraining(**{**own, **change})


def test_a_frozen_backbone_stays_frozen_and_out_of_the_checkpoint(folder, tmp_path):
    checkpoint = fit(settings(folder, f"--out={tmp_path / 'run'}"))
    module = load_trained(checkpoint)
    assert not [name for name in module.state_dict() if "resblocks" in name]
    fresh = image_encoder(str(folder / "tiny-tuning.json"), "none")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(module.model.image_encoder.embed(images), fresh.embed(images))
    assert module.embedding_info == {
        "backbone": "tiny-tuning",
        "pretrained": None,
        "backbone_config": TINY,
    }


def test_augmentation_follows_seed_step_and_row(folder, encoder):
    photos = read_photos(folder / "photos" / "list.csv")
    augmented = training_transform(encoder, {"scale": (0.3, 1.0)})
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    batch = ImageRows(photos, augmented, 0).__getitems__([5, 3, 9])
    assert torch.equal(torch.rand(2), expected)
    assert batch["images"].shape == (2, 3, 32, 32)
    assert torch.equal(batch["latlon"], torch.from_numpy(photos.latlon[[3, 9]]))
    again = ImageRows(photos, augmented, 0).__getitems__([5, 9, 1, 3])
    assert torch.equal(again["images"][2], batch["images"][0])
    for seed, step in ((1, 5), (0, 6)):
        other = ImageRows(photos, augmented, seed).__getitems__([step, 3, 9])
        assert not torch.equal(other["images"], batch["images"])
    with pytest.raises(ValueError, match=r"augmentation: .*zoom"):
        training_transform(encoder, {"zoom": 3})


def test_broken_photos_are_left_out_up_to_a_limit(folder, tmp_path):
    table = (folder / "photos" / "list.csv").read_text().splitlines()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 not much")
    lines = [line.replace(",", f",{folder / 'photos'}/", 1) for line in table[1:16]]  # id,path,…
    (tmp_path / "list.csv").write_text("\n".join([table[0], *lines, f"x,{broken},10,20"]) + "\n")
    for limit, steps in ((0, 0), (1, 4)):  # every step meets the one broken photo
        data = PhotoBatches(
            images=str(tmp_path / "list.csv"),
            backbone=str(folder / "tiny-tuning.json"),
            pretrained="none",
            batch_size=16,
            max_broken=limit,
            workers=limit,  # the count is kept where batches arrive, not in the workers
        )
        module = GeoCLIPTraining(
            **SMALL,
            policy="none",
            queue_size=31,
            backbone=str(folder / "tiny-tuning.json"),
            pretrained="none",
        )
        run = trainer(4, default_root_dir=tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if steps:
                run.fit(module, data)
            else:
                with pytest.raises(ValueError, match=r"broken\.jpg.*max_broken is 0"):
                    run.fit(module, data)
        assert run.global_step == steps
    # ragged batches of 15 filled the queue of 31
    assert module.queue.full
    assert set(module.queue.rows.tolist()) == set(range(15))
    (listed,) = (tmp_path / "broken.txt").read_text().splitlines()  # of both runs
    assert listed.startswith(f"{broken}\t{broken}: not a readable image")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "last_k", "blocks": 4}, "finetune_blocks: wanted 1 to 3.*got 4"),
        ({"method": "last_k", "blocks": 0}, "finetune_blocks: .*got 0"),
        ({"method": "lora", "rank": 0}, "lora_rank: .*got 0"),
        ({"method": "all"}, "finetune: wanted 'last_k' or 'lora', got 'all'"),
    ],
)
def test_bad_fine_tuning_is_named(encoder, options, message):
    with pytest.raises(ValueError, match=message):
        FineTunedTower(encoder, **options)


def test_cached_embeddings_cannot_tune_a_backbone(tmp_path):
    with pytest.raises(ValueError, match=r"finetune: 'lora' trains on images \(data.images\)"):
        GeoCLIPTraining(**SMALL, policy="none", finetune="lora")
    with pytest.raises(ValueError, match=r"data.train, data.images: wanted exactly one"):
        PhotoBatches()
    with pytest.raises(ValueError, match=r"data.train, data.images: wanted exactly one"):
        PhotoBatches(str(tmp_path), str(tmp_path))
