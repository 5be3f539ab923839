"""Every script of examples/ runs as it stands, in under a minute, and says what it should."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def numbers(pattern, text):
    """The groups of a pattern's only match, as numbers."""
    (found,) = re.findall(pattern, text)
    return [float(value.replace(",", "")) for value in ([found] if isinstance(found, str) else found)]


def geoclip_criterion(printed):
    range_km, r2 = numbers(r"range ([\d,]+) km.*R² ([\d.]+)", printed)
    before, after = numbers(r"loss ([\d.]+) -> ([\d.]+)", printed)
    assert 1000 < range_km < 5000
    assert r2 > 0.95
    assert before > 6  # ln(128 + 1024) = 7.05 without a policy
    assert after < 0.5


def open_clip_loss(printed):
    theirs, ours = numbers(r"ClipLoss +([\d.]+)\nGalleryInfoNCE +([\d.]+)", printed)
    assert ours == pytest.approx(theirs, rel=1e-6)
    (apart,) = numbers(r"relative: (\S+)", printed)
    assert apart < 2e-5


def sample4geo_info_nce(printed):
    published, ours = numbers(r"published ([\d.]+), ours ([\d.]+)", printed)
    (masked,) = numbers(r"semi-positives ([\d.]+)", printed)
    assert ours == pytest.approx(published, rel=1e-6)
    assert published - 0.1 < masked < published  # one negative of 1,023 is gone


def lightning_module(printed):
    loss, steps = numbers(r"loss ([\d.]+) after (\d+) steps", printed)
    assert steps == 64
    assert loss < 8.5  # ln(1 + 255·e⁵) = 10.5
    (range_km,) = numbers(r"checkpoint: a stable semivariogram, range ([\d,]+) km", printed)
    assert 2000 < range_km < 4500


def semivariogram_of_embeddings(printed):
    nugget, sill, range_km = numbers(r"nugget ([\d.]+), sill ([\d.]+), range ([\d,]+) km", printed)
    assert nugget == pytest.approx(0.16 / 1.16, abs=0.02)  # noise of 0.4 beside a field of variance 1
    assert sill == pytest.approx(1, abs=0.05)
    low, high = numbers(r"interval ([\d,]+) to ([\d,]+) km", printed)
    assert low < range_km / 3 < high


def sensor_semivariogram(printed):
    nugget, sill = numbers(r"nugget ([\d.]+) of a sill of ([\d.]+)", printed)
    (range_km,) = numbers(r"beyond ([\d,]+) km", printed)
    assert nugget / sill == pytest.approx(0.25 / 1.25, abs=0.04)
    assert 350 < range_km < 550  # 3 × 150 km
    assert len(re.findall(r"^ +\d+ +[\d,]+ [ \d.]+$", printed, re.MULTILINE)) == 20


CHECKS = (
    geoclip_criterion,
    open_clip_loss,
    sample4geo_info_nce,
    lightning_module,
    semivariogram_of_embeddings,
    sensor_semivariogram,
)


def test_every_example_is_checked():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {check.__name__ for check in CHECKS}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_example_runs(check, tmp_path):
    script = EXAMPLES / f"{check.__name__}.py"
    # warnings of the script's own lines are errors, those of the libraries it uses are not
    run = subprocess.run(
        [sys.executable, "-W", "error:::__main__", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    check(run.stdout)
