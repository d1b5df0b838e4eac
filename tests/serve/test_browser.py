"""The page in a browser: a good and a broken image, the opacity, downloads, phone and dark, accessibility.

Wants playwright (extra `browser`) and Debian's `chromium`; axe-core, an npm package, where `AXE_CORE` names
its axe.min.js or node_modules beside the checkout's files has it. With `HFGD_SERVED` (a finished run on
`shapes`) and `HFGD_PICTURES` (a folder) the pictures of docs/serve.md are made with that run.
"""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browsers import AXE, chromium, playwright
from PIL import Image
from serve_load import started
from serving import encoded

from hfgd_jax.data.prepared import open_split
from hfgd_jax.inference.render import overlay

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(shapes_dir):
    split = open_split(shapes_dir, "shapes", "val")
    return [split.example(index)["image"] for index in range(3)], split.table


@pytest.fixture(scope="module")
def server(shapes_dir, images, tmp_path_factory, user_env):
    workdir = os.environ.get("HFGD_SERVED")
    if not workdir:
        workdir = tmp_path_factory.mktemp("run") / "demo"
        command = [sys.executable, "-m", "hfgd_jax.main", "--config=configs/demo.py:tiny"]
        command += [f"--config.data.data_dir={shapes_dir}", f"--workdir={workdir}", "--config.train.steps=4"]
        subprocess.run(command, check=True, capture_output=True, env=user_env, timeout=300)
    height, width = images[0][0].shape[:2]
    with started(f"--workdir={workdir}", f"--sizes={height}x{width}", env=user_env) as made:
        yield made


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture
def page(browser, server):
    """A fresh page of the server; nothing of it may fail or ask another server."""
    wrong = []
    context = browser.new_context(viewport={"width": 1100, "height": 900}, accept_downloads=True)
    made = context.new_page()
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
    address = f"http://127.0.0.1:{server.port}/"
    made.on("request", lambda r: None if r.url.startswith((address, "blob:")) else wrong.append(r.url))
    made.goto(address)
    made.wrong = wrong
    yield made
    context.close()


def _files(images, *names):
    return [
        {"name": name, "mimeType": "image/png", "buffer": encoded(image)}
        for name, image in zip(names, images, strict=False)
    ]


def _shown(page, name):
    playwright.expect(page.locator("#title")).to_have_text(name, timeout=60_000)
    playwright.expect(page.locator("#paint")).to_be_visible()
    playwright.expect(page.locator("#paint")).to_have_attribute("style", re.compile("opacity"))


def _saved(page, button):
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    name = download.value.suggested_filename
    return name, Image.open(io.BytesIO(Path(download.value.path()).read_bytes()))


def _axe(page):
    if not AXE.exists():
        pytest.skip(f"{AXE}: no axe-core: npm install axe-core, or AXE_CORE=PATH")
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    assert not found, json.dumps([(v["id"], [n["html"] for n in v["nodes"]]) for v in found], indent=1)


def test_an_image_is_predicted_shown_and_saved(page, images, server):
    (image, *_), table = images
    page.set_input_files("#files", _files([image], "scene.png"))
    _shown(page, "scene.png")
    status, content = server.post(encoded(image))
    want = np.asarray(Image.open(io.BytesIO(content)))
    assert status == 200
    name, mask = _saved(page, "Download mask")
    assert name == "scene_mask.png" and mask.mode == "P"
    np.testing.assert_array_equal(np.asarray(mask), want)
    for value, alpha in (("0", 0.0), ("40", 0.4), ("100", 1.0)):
        page.locator("#opacity").fill(value)
        assert page.locator("#shown").inner_text() == f"{value} %"
        shown = float(page.locator("#paint").evaluate("e => getComputedStyle(e).opacity"))
        assert shown == pytest.approx(alpha)
        name, picture = _saved(page, "Download overlay")
        assert name == "scene_overlay.png" and picture.size == image.shape[1::-1]
        expected = overlay(image, want, table.palette, alpha).astype(int)
        assert abs(np.asarray(picture.convert("RGB")).astype(int) - expected).max() <= 2  # rounding
    counts = np.bincount(want.ravel(), minlength=table.num_classes)
    rows = page.locator("#legend tr").all_inner_texts()
    assert len(rows) == np.count_nonzero(counts) and rows[0].startswith(table.classes[counts.argmax()])
    assert f"{image.shape[1]} x {image.shape[0]} pixels" in page.locator("#facts").inner_text()
    assert not page.wrong


def test_a_broken_image_is_told_and_the_others_are_predicted(page, images):
    broken = {"name": "<b>broken</b>.png", "mimeType": "image/png", "buffer": b"not an image"}
    page.set_input_files("#files", [broken, *_files(images[0], "a.png", "b.png")])
    _shown(page, "a.png")
    playwright.expect(page.locator("#status")).to_contain_text("b.png: predicted", timeout=60_000)
    entries = page.locator("#list button")
    assert entries.count() == 3 and "no image of the formats" in entries.nth(0).inner_text()
    assert entries.nth(0).inner_text().startswith("<b>broken</b>.png")  # shown as it is called
    entries.nth(2).click()
    _shown(page, "b.png")
    entries.nth(0).click()
    assert page.locator("#status").get_attribute("class") == "wrong"
    page.get_by_role("button", name="Clear").click()
    assert entries.count() == 0 and not page.locator("#result").is_visible()
    assert [line for line in page.wrong if "422" not in line] == []  # Chromium notes the answer itself


def test_it_works_by_keyboard_alone(page, images):
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    page.set_input_files("#files", _files(images[0], "a.png", "b.png"))
    _shown(page, "a.png")
    playwright.expect(page.locator("#status")).to_contain_text("b.png: predicted", timeout=60_000)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    _shown(page, "b.png")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "opacity"
    page.keyboard.press("ArrowRight")
    assert page.locator("#shown").inner_text() == "55 %"


def test_an_image_that_is_dropped_is_predicted(page, images):
    content = list(encoded(images[0][0]))
    page.evaluate(
        """content => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(content)], "dropped.png", { type: "image/png" }));
            const options = { dataTransfer: data, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new DragEvent("drop", options));
        }""",
        content,
    )
    _shown(page, "dropped.png")


def test_what_the_browser_cannot_show_is_predicted_all_the_same(page, images):
    tiff = {"name": "a.tif", "mimeType": "image/tiff", "buffer": encoded(images[0][0], "TIFF")}
    page.set_input_files("#files", [tiff])
    playwright.expect(page.locator("#overlay-caption")).to_contain_text("cannot show", timeout=60_000)
    assert page.locator("#save-overlay").is_disabled() and page.locator("#mask").is_visible()


@pytest.mark.parametrize(
    ("name", "scheme", "width"), [("light", "light", 1100), ("dark", "dark", 1100), ("phone", "light", 360)]
)
def test_it_is_accessible_and_fits(page, images, name, scheme, width):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"not an image"}
    page.set_input_files("#files", [*_files(images[0], "scene-1.png", "scene-2.png"), broken])
    _shown(page, "scene-1.png")
    playwright.expect(page.locator("#status")).to_contain_text("broken.png", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("HFGD_PICTURES"):
        page.screenshot(path=f"{folder}/serve_{name}.png", full_page=True)
    _axe(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_the_api_is_accessible_and_fits(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 800})
    page.get_by_role("link", name="API").click()
    playwright.expect(page.locator("h1")).to_have_text("API")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert "POST /predict" in page.inner_text("main") and not page.wrong
    _axe(page)
