"""`geoclip serve` as a process of its own, asked by httpx and by a browser."""

import io
import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from geoclip import GeoCLIP, ImageEncoder, LocationEncoder
from geoclip.cli import main
from semivario_kernels import VariogramModel

from .rendered_photos import random_latlon, render_photos

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    render_photos(folder / "photos", 4)
    (folder / "tiny-server.json").write_text(json.dumps(TINY))
    torch.manual_seed(0)
    GeoCLIP(
        False,
        image_encoder=ImageEncoder(None, embedding_dim=32, output_dim=24),
        location_encoder=LocationEncoder([2.0], False, width=32, output_dim=24),
        gallery=torch.zeros(1, 2),
    ).save_pretrained(folder / "release")
    np.save(folder / "gallery.npy", random_latlon(500))
    return folder


def arguments(folder):
    options = {"checkpoint": "release", "gallery": "gallery.npy", "gallery-cache": "cache"}
    given = [part for name, value in options.items() for part in (f"--{name}", str(folder / value))]
    return [*given, "--backbone", str(folder / "tiny-server.json"), "--pretrained", "none", "--device", "cpu"]


def start(folder, *options):
    """The process and the address that it prints."""
    command = [sys.executable, "-m", "geoclip", "serve", "--port", "0", *arguments(folder), *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts background jobs with SIGINT ignored, and the tests may be one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    line = process.stdout.readline()
    if not line.startswith("http"):
        process.kill()
        raise AssertionError(line + process.communicate()[1])
    return process, line.split()[0]


@pytest.fixture(scope="module")
def served(folder):
    process, address = start(folder, "--max-megabytes", "0.5")
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client
    process.terminate()
    process.communicate(timeout=20)


def photo(folder, i=0):
    return (folder / "photos" / f"{i:05d}.jpg").read_bytes()


def refused(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    ((name, message),) = response.json().items()
    assert name == "error"
    assert "\n" not in message
    return message


def test_the_answer_is_that_of_predict(served, folder, capsys):
    capsys.readouterr()
    files = [str(folder / "photos" / f"{i:05d}.jpg") for i in range(4)]
    command = ["predict", *files, *arguments(folder), "--format", "json", "--density", "2", "--top-k", "7"]
    assert main(command) == 0
    for i, expected in enumerate(json.loads(capsys.readouterr().out)):
        response = served.post("/predict?top_k=7", content=photo(folder, i), headers=JPEG)
        answer = response.raise_for_status().json()
        assert len(answer["places"]) == 7
        for mine, theirs in zip(answer["places"], expected["places"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
        assert answer["radius_50_km"] == pytest.approx(expected["radius_50_km"], rel=1e-3)
        cells = {tuple(cell[:2]): cell[2] for cell in expected["density"]["cells"]}
        assert {tuple(cell[:2]): cell[2] for cell in answer["density"]["cells"]} == pytest.approx(
            cells, rel=1e-3
        )


def test_the_place_with_the_most_support_comes_first(folder, capsys):
    VariogramModel("exponential", 0.0, 1.0, 3000.0).save(folder / "variogram.json")
    supported = ["--variogram", str(folder / "variogram.json"), "--logit-scale", "5"]
    process, address = start(folder, *supported)
    try:
        url = f"{address}/predict?top_k=3"
        answer = httpx.post(url, content=photo(folder), headers=JPEG, timeout=60).raise_for_status().json()
    finally:
        process.terminate()
        process.communicate(timeout=20)
    file = str(folder / "photos" / "00000.jpg")
    found = []
    for options in (supported, []):
        capsys.readouterr()
        assert main(["predict", file, *arguments(folder), "--format", "json", "--top-k", "3", *options]) == 0
        found.append(json.loads(capsys.readouterr().out)[0]["places"][0])
    assert answer["places"][0] == pytest.approx(found[0], rel=1e-4)
    assert found[0]["latitude"] != found[1]["latitude"]


def test_many_at_once_get_their_own_answers(served, folder):
    def ask(i):
        response = served.post("/predict", content=photo(folder, i % 4), headers=JPEG)
        return response.raise_for_status().json()["places"]

    alone = [ask(i) for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(12)))
    assert together == alone * 3
    assert alone[0] != alone[1]


def test_the_page_and_the_world(served):
    page = served.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    world = served.get("/world").json()
    assert world["places"] == 500
    places = random_latlon(500)
    cells = {tuple(cell) for cell in (np.floor(places) + 0.5).tolist()}
    assert {tuple(cell) for cell in world["land"]} == cells


def png(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "png")
    return file.getvalue()


def test_what_is_no_photo_is_refused(served, folder):
    def post(content, **headers):
        return served.post("/predict", content=content, headers={**JPEG, **headers})

    good = photo(folder)
    for content in (b"", b"no picture", good[:300], good[:20]):
        assert "the photo: not a readable image" in refused(post(content), 422)
    bomb = png(12_000, 9_000)
    assert len(bomb) < 100_000
    assert "108 megapixels, wanted at most 100" in refused(post(bomb, **{"Content-Type": "image/png"}), 422)
    assert "strip" in refused(post(png(3000, 2)), 422)
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/json", ""):
        assert "content-type" in refused(post(good, **{"Content-Type": kind}), 415)
    assert post(good, **{"Content-Type": "image/webp"}).status_code == 200  # the bytes say what it is


def test_what_is_too_long_is_refused(served, folder):
    long = photo(folder) + bytes(600_000)
    assert "500,000 bytes" in refused(served.post("/predict", content=long, headers=JPEG), 413)

    def chunks():
        for start in range(0, len(long), 50_000):
            yield long[start : start + 50_000]

    # without a length in the header
    assert "500,000 bytes" in refused(served.post("/predict", content=chunks(), headers=JPEG), 413)
    assert served.post("/predict", content=photo(folder), headers=JPEG).status_code == 200


def test_other_requests_are_refused(served, folder):
    for query in ("top_k=0", "top_k=101", "top_k=many"):
        response = served.post(f"/predict?{query}", content=photo(folder), headers=JPEG)
        assert "top_k" in refused(response, 422)
    refused(served.get("/nowhere"), 404)
    refused(served.get("/predict"), 405)
    for host in ("elsewhere.example", "elsewhere.example:80", "127.0.0.1.example", ""):
        assert "host" in refused(served.get("/world", headers={"Host": host}), 421)
    assert served.get("/world", headers={"Host": "localhost:9"}).status_code == 200


def test_the_command_in_one_line(folder, served, capsys):
    port = str(served.base_url.port)
    for options, word in (
        (["--port", port], f"--port {port}"),
        (["--port", "99999"], "--port 99999"),
        (["--host", "nowhere.invalid"], "nowhere.invalid"),
        (["--max-megabytes", "0"], "--max-megabytes"),
        (["--gallery", str(folder / "nowhere.npy")], "nowhere.npy"),
        (["--backbone", str(folder / "nowhere.json")], "nowhere.json"),
    ):
        capsys.readouterr()
        assert main(["serve", *arguments(folder), *options]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert word in line


def test_ctrl_c_ends_it(folder):
    process, address = start(folder)
    assert httpx.get(f"{address}/world", timeout=60).status_code == 200
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_without_its_packages_the_extra_is_named():
    code = (
        "import sys; sys.modules['uvicorn'] = None; from geoclip.cli import main; sys.exit(main(['serve']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    (line,) = run.stderr.strip().splitlines()
    assert line.endswith("(in a clone: pip install '.[serve]')")


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((path for name in names if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip("no Chromium on PATH")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, served):
    """The page, loaded; what it asked of the network and complained of is checked at the end."""
    page = browser.new_page(viewport={"width": 900, "height": 900})
    page.set_default_timeout(30_000)
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(str(served.base_url))
    page.get_by_text("500 places to choose from").wait_for()
    yield page
    # Chromium itself notes a refused photo
    assert all("responded with a status of 422" in complaint for complaint in complaints)
    assert all(url.startswith((str(served.base_url), "blob:", "data:")) for url in asked)
    page.close()


def painted(page, latitude, longitude):
    """The map's colour at a place: red, green, blue, alpha."""
    script = """([latitude, longitude]) => { const map = document.getElementById("map");
        const x = (longitude + 180) / 360 * map.width, y = (90 - latitude) / 180 * map.height;
        return [...map.getContext("2d").getImageData(x, y, 1, 1).data]; }"""
    return page.evaluate(script, [latitude, longitude])


def test_a_photo_chosen_in_the_browser_appears_on_the_map(page, served, folder):
    expected = served.post("/predict", content=photo(folder), headers=JPEG).json()
    best = expected["places"][0]
    before = painted(page, best["latitude"], best["longitude"])
    sea = np.array([[a, b] for a in range(-60, 61, 15) for b in range(-170, 171, 10)]) + 0.5
    cells = {tuple(cell) for cell in served.get("/world").json()["land"]}
    empty = next(cell for cell in sea.tolist() if tuple(cell) not in cells)
    assert painted(page, *empty)[3] == 0
    assert before[3] == 255  # land: a place of the gallery
    page.set_input_files("#file", str(folder / "photos" / "00000.jpg"))
    page.get_by_text("Half of the probability lies within").wait_for()
    rows = page.locator("#places tr").all()
    assert len(rows) == 5
    texts = rows[0].locator("td").all_inner_texts()
    assert texts[:3] == ["1", f"{best['latitude']:.4f}", f"{best['longitude']:.4f}"]
    assert painted(page, best["latitude"], best["longitude"]) == [217, 98, 43, 255]  # the mark's colour


def test_a_photo_dropped_on_the_page_is_placed(page, folder):
    script = """bytes => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "a.jpg", {type: "image/jpeg"}));
        document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})); }"""
    page.evaluate(script, list(photo(folder, 1)))
    page.get_by_text("Half of the probability lies within").wait_for()
    assert page.locator("#places tr").count() == 5


def test_the_page_says_what_is_wrong_with_a_file(page, tmp_path):
    (tmp_path / "words.jpg").write_text("no picture")
    page.set_input_files("#file", str(tmp_path / "words.jpg"))
    page.get_by_text("the photo: not a readable image").wait_for()
    assert not page.locator("table").is_visible()
