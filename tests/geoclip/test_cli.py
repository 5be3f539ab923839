"""What a user got wrong ends in one line and a non-zero code, never in a traceback."""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import geoclip
from geoclip.cli import main
from geoclip.fit import fit
from semivario_kernels import VariogramModel

from .rendered_photos import render_photos
from .small_world import write_settings, write_store

ROOT = Path(geoclip.__file__).parents[1]


def python(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def refused(capsys, *arguments):
    """Run a command that must fail; its one line."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    assert code == 2
    assert "Traceback" not in captured.err
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("geoclip")
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a store, a test store and a short run's checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    write_store(folder / "test", n=50, seed=9)
    fit(["--config", str(write_settings(folder, steps=3))])
    return folder


def test_help_is_there_at_once_and_names_every_command():
    start = time.monotonic()
    result = python("-m", "geoclip", "--help")
    seconds = time.monotonic() - start
    assert result.returncode == 0
    for command in ("embed", "variogram", "fit", "eval", "predict", "serve", "export", "demo"):
        assert f"geoclip {command}" in result.stdout
    assert seconds < 2
    slow = python("-X", "importtime", "-m", "geoclip", "--help").stderr
    assert not any(f" {module}\n" in slow for module in ("torch", "numpy", "lightning", "open_clip"))


@pytest.mark.parametrize("command", ["embed", "variogram", "eval", "predict", "serve", "export", "demo"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"geoclip {command}" in capsys.readouterr().out


def test_fit_prints_a_configuration_that_it_takes(trained, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", str(trained / "fit.yaml"), "--print_config"])
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed)
    assert config["model"]["sigma"] == [1.0, 4.0]
    assert config["data"]["batch_size"] == 24
    assert config["checkpoint_every"] == 4
    file = tmp_path / "printed.yaml"
    file.write_text(printed)
    assert main(["fit", "--config", str(file), "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "last.ckpt").exists()


def test_fit_without_lightnings_notes(trained):
    result = python("-m", "geoclip", "fit", "--config", trained / "fit.yaml")
    assert result.returncode == 0
    assert result.stderr == f"going on from {trained / 'run' / 'last.ckpt'}, after step 3\n"


def test_fit_in_one_line(trained, tmp_path, capsys):
    config = trained / "fit.yaml"
    assert "nowhere.yaml" in refused(capsys, "fit", "--config", tmp_path / "nowhere.yaml")
    assert "widht" in refused(capsys, "fit", "--config", config, "--model.widht", "3")
    assert "width" in refused(capsys, "fit", "--config", config, "--model.width", "wide")
    assert "nowhere" in refused(capsys, "fit", "--config", config, "--data.train", tmp_path / "nowhere")
    assert "train" in refused(capsys, "fit")
    line = refused(capsys, "fit", "--config", config, "--model.variogram", tmp_path / "nowhere.json")
    assert "nowhere.json" in line
    assert "batch_size" in refused(
        capsys, "fit", "--config", config, "--data.batch_size", "9999", "--out", tmp_path / "run"
    )
    (tmp_path / "file").write_text("")
    line = refused(capsys, "fit", "--config", config, "--out", tmp_path / "file" / "run")
    assert str(tmp_path / "file") in line
    (tmp_path / "broken.yaml").write_text("model: [1, {")
    refused(capsys, "fit", "--config", tmp_path / "broken.yaml")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("data.batch_size", "many", "--data.batch_size: wanted a whole number, got many"),
        ("data.batch_size", "0", "batch_size: wanted between 1 and the 300 rows of the data set, got 0"),
        ("model.learning_rate", "x", "--model.learning_rate: wanted a number, got x"),
        ("model.head", "round", "--model.head: wanted one of 'mlp', 'linear', got round"),
        ("model.sigma", "x", "--model.sigma: bad value, got x"),
        ("checkpoint_every", "0", "--checkpoint_every: wanted a whole number above 0, got 0"),
    ],
)
def test_bad_values_of_fit_are_named_as_they_are_typed(trained, capsys, option, value, words):
    line = refused(capsys, "fit", "--config", trained / "fit.yaml", f"--{option}", value)
    assert line == f"geoclip: {words}"


def test_recipes_by_name(trained, tmp_path, capsys, monkeypatch):
    for config in (["--config", "osv5m"], ["--config=osv5m"]):
        with pytest.raises(SystemExit, match="0"):
            main(["fit", *config, "--print_config"])
        assert yaml.safe_load(capsys.readouterr().out)["model"]["warm_up"] == 0.02
    line = refused(capsys, "fit", "--config", "osv6m")
    assert line == "geoclip: --config: wanted a YAML file or one of demo, geoclip, osv5m, got 'osv6m'"
    assert "cvact, cvusa" in refused(capsys, "crossview", "fit", "--config", "osv5m")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "osv5m").write_text("model: {warm_up: 0.5}")  # a file of that name goes first
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", "osv5m", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["warm_up"] == 0.5


def test_a_full_disk_in_one_line(trained, tmp_path, capsys):
    """RLIMIT_FSIZE refuses a write in its middle, as a full disk does; /dev/full refuses all."""
    checkpoint, train = trained / "run" / "last.ckpt", trained / "train"
    places = ["--gallery", train, "--gallery-cache", tmp_path / "cache"]
    commands = {
        tmp_path / "run" / "last.ckpt": ["fit", "--config", trained / "fit.yaml", "--out", tmp_path / "run"],
        tmp_path / "v.npz": ["variogram", train, "--out", tmp_path / "v.json", "--bins", 12],
        tmp_path / "release" / "model.safetensors": ["export", checkpoint, tmp_path / "release", *places[:2]],
        tmp_path / "m.json": ["eval", checkpoint, train, *places, "--out", tmp_path / "m.json"],
        Path("/dev/full"): ["predict", train, "--checkpoint", checkpoint, *places, "--out", "/dev/full"],
    }
    main([str(part) for part in (*commands[Path("/dev/full")][:-1], tmp_path / "p.csv")])  # fills the cache
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for file, command in commands.items():
        device = file.exists()
        capsys.readouterr()
        # Lightning's own logs are longer than the commands' other files
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000 if command[0] == "fit" else 500, hard))
        try:
            code = main([str(part) for part in command])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert code == 2
        line = capsys.readouterr().err.splitlines()[-1]  # after the progress bar
        reason = "No space left on device" if device else "File too large"
        assert line == f"geoclip: cannot write {file}: {reason}"
        assert device or not [f for f in file.parent.iterdir() if file.name in f.name]
    signal.signal(signal.SIGXFSZ, before)
    assert Path("/dev/full").is_char_device()  # and is not replaced by a file


def test_variogram_measures_fits_and_draws(trained, tmp_path, capsys):
    out = tmp_path / "deeper" / "v.json"
    options = ["--places", "200", "--first-km", "500", "--bins", "12"]
    assert main(["variogram", str(trained / "train"), "--out", str(out), *options]) == 0
    model = VariogramModel.load(out)
    assert 0.3 < model.sill < 2
    assert out.with_suffix(".npz").exists()
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    assert "R²" in captured.out
    assert "warning" not in captured.err
    assert model.metric == "chord"
    assert main(["variogram", str(trained / "train"), "--out", str(out), *options, "--metric", "arc"]) == 0
    assert VariogramModel.load(out).metric == "arc"


def test_variogram_in_one_line(trained, tmp_path, capsys):
    store = trained / "train"
    assert "nowhere" in refused(capsys, "variogram", tmp_path / "nowhere")
    assert "places" in refused(capsys, "variogram", store, "--places", "1")
    assert "--bins" in refused(capsys, "variogram", store, "--bins", "many")
    assert "kind" in refused(capsys, "variogram", store, "--kind", "cubic", "--out", tmp_path / "v.json")
    assert "first_km" in refused(capsys, "variogram", store, "--first-km", "-1")
    (tmp_path / "file").write_text("")
    refused(capsys, "variogram", store, "--out", tmp_path / "file" / "v.json")
    (tmp_path / "empty").mkdir()
    assert "meta.json" in refused(capsys, "variogram", tmp_path / "empty")


def test_eval_writes_metrics(trained, tmp_path, capsys):
    checkpoint, out = trained / "run" / "last.ckpt", tmp_path / "metrics.json"
    gallery = tmp_path / "gallery.csv"
    gallery.write_text(
        "LAT,LON\n" + "".join(f"{lat},{lon}\n" for lat in range(-60, 61, 20) for lon in (0, 90))
    )
    options = ["--gallery", str(gallery), "--gallery-cache", str(tmp_path), "--out", str(out)]
    assert main(["eval", str(checkpoint), str(trained / "test"), *options]) == 0
    metrics = json.loads(out.read_text())["metrics"]
    assert metrics["within_2500_km"]["low"] <= metrics["within_2500_km"]["value"]
    assert metrics["median_km"]["value"] > 500
    assert "50 photos, 14 places" in capsys.readouterr().out


def test_eval_in_one_line(trained, tmp_path, capsys):
    checkpoint, test = trained / "run" / "last.ckpt", trained / "test"
    np.save(tmp_path / "gallery.npy", np.array([[10.0, 20.0]]))
    gallery = ["--gallery", tmp_path / "gallery.npy"]
    assert "nowhere.ckpt" in refused(capsys, "eval", tmp_path / "nowhere.ckpt", test, *gallery)
    assert "nowhere" in refused(capsys, "eval", checkpoint, tmp_path / "nowhere", *gallery)
    assert "nowhere.csv" in refused(capsys, "eval", checkpoint, test, "--gallery", tmp_path / "nowhere.csv")
    (tmp_path / "no.ckpt").write_text("this is no checkpoint")
    assert "no.ckpt" in refused(capsys, "eval", tmp_path / "no.ckpt", test, *gallery)
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    line = refused(capsys, "eval", checkpoint, test, "--gallery", tmp_path / "columns.csv")
    assert "columns.csv" in line
    assert "latitude" in line
    (tmp_path / "words.csv").write_text("lat,lon\nhere,there\n")
    assert "words.csv" in refused(capsys, "eval", checkpoint, test, "--gallery", tmp_path / "words.csv")
    np.save(tmp_path / "swapped.npy", np.array([[120.0, 20.0]]))
    line = refused(capsys, "eval", checkpoint, test, "--gallery", tmp_path / "swapped.npy")
    assert "swapped" in line
    (tmp_path / "odd.txt").write_text("")
    assert "odd.txt" in refused(capsys, "eval", checkpoint, test, "--gallery", tmp_path / "odd.txt")
    (tmp_path / "file").write_text("")
    line = refused(capsys, "eval", checkpoint, test, *gallery, "--out", tmp_path / "file" / "metrics.json")
    assert str(tmp_path / "file") in line


def test_embed_in_one_line(tmp_path, capsys):
    csv = render_photos(tmp_path / "photos", 2)
    out = tmp_path / "out"
    assert "nowhere.csv" in refused(capsys, "embed", tmp_path / "nowhere.csv", out)
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    line = refused(capsys, "embed", tmp_path / "columns.csv", out)
    assert "latitude" in line
    assert "columns.csv" in line
    (tmp_path / "bare.csv").write_text("a.jpg,10,20\nb.jpg,11,21\n")
    line = refused(capsys, "embed", tmp_path / "bare.csv", out)
    assert line.endswith(
        "bare.csv has no header: wanted names of columns in its first line, such as path,latitude,longitude, "
        "got a.jpg,10,20"
    )
    for bad in ("x", "-1", "1.5", "200%", "nan"):
        line = refused(capsys, "embed", csv, out, "--max-broken", bad)
        assert "--max-broken: wanted a number of photos, or a part of them such as 1% or 0.01" in line
        assert f"got '{bad}'" in line
    (tmp_path / "half.json").write_text('{"embed_dim": 3}')
    assert "got no vision_cfg" in refused(capsys, "embed", csv, out, "--backbone", tmp_path / "half.json")
    assert "ViT-XXL" in refused(capsys, "embed", csv, out, "--backbone", "ViT-XXL")
    assert "nowhere.json" in refused(capsys, "embed", csv, out, "--backbone", tmp_path / "nowhere.json")
    assert not out.exists()


def test_predict_in_one_line(trained, capsys):
    line = refused(capsys, "predict", "photo.jpg", "--checkpoint", trained / "run" / "last.ckpt")
    assert "no photo" in line
    assert "nowhere.ckpt" in refused(capsys, "predict", "photo.jpg", "--checkpoint", "nowhere.ckpt")
    assert "PHOTO" in refused(capsys, "predict")


def test_demo_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "demo"), "--noise", "-1"]) == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first == "data …"
    assert last == "geoclip: noise is -1.0, wanted a finite number, 0 or larger"
    assert "steps" in refused(capsys, "demo", "--out", tmp_path / "demo", "--steps", "0")
    assert str(tmp_path / "file") in refused(capsys, "demo", "--out", tmp_path / "file" / "demo")


@pytest.mark.parametrize("arguments", [[], ["train"], ["--colour"], ["eval", "--top", "3"]])
def test_unknown_words_in_one_line(arguments, capsys):
    assert "--help" in refused(capsys, *arguments)


def test_a_traceback_on_request(monkeypatch, tmp_path):
    monkeypatch.setenv("GEOCLIP_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["variogram", str(tmp_path / "nowhere")])


def test_a_missing_package_is_named_with_its_extra():
    code = "import sys; sys.modules['rich'] = None; from geoclip.cli import main; sys.exit(main(['demo']))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    (line,) = run.stderr.strip().splitlines()
    assert "rich" in line
    assert line.endswith("pip install 'semivario-kernels[train]' (in a clone: pip install '.[train]')")
