"""The page in Chromium, as a visitor uses it: at the width of a desktop and of a phone, and without a network.

With ACMIX_SCREENSHOTS=FOLDER, every step writes a screenshot. docs/images/app.png is one of them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from glob import glob
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from support.documents import ROOT
from support.web_page import running_app

pytest.importorskip("gradio", reason="the page needs gradio: pip install '.[app]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[browser]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]
DEVICES: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}
BOOT = ROOT / "examples/ankle_boot.png"
LONG = 120_000  # milliseconds; explanations take seconds, and the machine may be busy


class Site(NamedTuple):
    """A running page.

    Attributes:
        address: where it is.
        folder: the folder for temporary files of the server.
        outside: addresses of other machines that the server asked for.
        process: the server.
    """

    address: str
    folder: Path
    outside: list[bytes]
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start the command. A proxy notes whatever it wants from other machines, and answers nothing."""
    folder = tmp_path_factory.mktemp("server")
    outside: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=_note_requests, args=(proxy, outside), daemon=True).start()
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        environment = {**dict.fromkeys(names, address), "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        with running_app(folder, **environment, TMPDIR=str(folder), HF_HUB_OFFLINE="0") as page:
            yield Site(page.address, folder, outside, page.process)


def _note_requests(proxy: socket.socket, outside: list[bytes]) -> None:
    while True:
        try:
            connection, _ = proxy.accept()
        except OSError:  # closed, because the tests are done
            return
        with connection:
            outside.append(connection.recv(200))


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        # The browser cannot resolve any name, so a page that loads fonts or scripts from elsewhere shows it.
        offline = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        found = started.chromium.launch(executable_path=CHROMIUM, args=offline)
        yield found
        found.close()


class Visitor:
    """Someone who has opened the page."""

    def __init__(self, browser: playwright.Browser, site: Site, device: str) -> None:
        self.device = device
        self.page = browser.new_page(**DEVICES[device])
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(site.address)
        self.expect("#first-summary", "The score of “Dress” is")  # the first example

    def expect(self, selector: str, pattern: str) -> str:
        """Wait until an element contains a pattern, and return its text."""
        element = self.page.locator(selector)
        playwright.expect(element).to_contain_text(re.compile(pattern), timeout=LONG)
        return str(element.inner_text())

    def choose(self, name: str, option: str) -> None:
        """Choose an option of a dropdown."""
        self.page.locator(f"#{name} input").click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def picture(self, name: str) -> str:
        """Return what is shown in an image component."""
        return str(self.page.locator(f"#{name} img").first.get_attribute("src"))

    def look(self, name: str) -> None:
        """Write a screenshot if screenshots are wanted, and check that nothing is wider than the window."""
        if folder := os.environ.get("ACMIX_SCREENSHOTS"):
            self.page.wait_for_function("!document.querySelector('.generating')", timeout=LONG)
            self.page.evaluate("for (const image of document.images) image.loading = 'eager'")
            self.page.wait_for_timeout(1000)
            self.page.screenshot(path=Path(folder) / f"{self.device}-{name}.png", full_page=True)
        widths = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1], f"{name}: the page is {widths[0]} pixels wide, the window {widths[1]}"


@pytest.fixture(params=DEVICES)
def visitor(request: pytest.FixtureRequest, browser: playwright.Browser, site: Site) -> Iterator[Visitor]:
    found = Visitor(browser, site, request.param)
    yield found
    found.page.close()
    assert not found.problems
    elsewhere = [url for url in found.requests if not url.startswith((site.address, "data:", "blob:"))]
    assert not elsewhere and not site.outside


def test_an_image_is_classified_explained_and_compared(visitor: Visitor, site: Site) -> None:
    visitor.look("start")
    visitor.page.locator("#upload input[type=file]").set_input_files(BOOT)
    visitor.expect("#first-classes", r"Ankle boot\s+95%")
    text = visitor.expect("#first-summary", r"The score of “Ankle boot” is 4\.\d\d")
    assert "Attention contributes" in text and "layer3.1.conv2" in text
    assert not [path for path in site.folder.rglob("*") if path.is_file()], "images are only in memory"

    before = visitor.picture("first-seen")
    seen = visitor.page.locator("#first-seen img").first
    box = seen.bounding_box()
    seen.click(position={"x": 0.2 * box["width"], "y": 0.9 * box["height"]})
    playwright.expect(seen).not_to_have_attribute("src", before, timeout=LONG)
    visitor.expect("#first-caption", "attends to the orange positions")
    before = visitor.picture("first-seen")
    visitor.choose("first-head", "head 1")
    visitor.expect("#first-caption", r"\(head 1\)")
    assert visitor.picture("first-seen") != before
    visitor.look("attention")

    visitor.choose("second", "acmix_pvt_pico.fashion_mnist")
    visitor.expect("#second-classes", r"Ankle boot\s+\d+%")
    visitor.expect("#second-summary", "Attention contributes")
    visitor.expect("#second-caption", "attends to")
    visitor.look("comparison")


def test_bad_files_get_a_message(visitor: Visitor, tmp_path: Path) -> None:
    broken = tmp_path / "holiday.png"
    broken.write_bytes(b"%PDF-1.7 this is no image")
    visitor.page.locator("#upload input[type=file]").set_input_files(broken)
    visitor.expect(
        "#problem", r"Image holiday\.png cannot be read: it is a PDF file\. Choose a JPEG, PNG or WebP image"
    )
    visitor.look("problem")
    visitor.page.get_by_role("tab", name="Fine-tune on your photos").click()
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../outside.png", b"x")
    visitor.page.locator("#zip input[type=file]").set_input_files(archive)
    visitor.expect("#found", "lies outside of its folder")
    playwright.expect(visitor.page.locator("#train")).to_be_disabled()


def photos(folder: Path) -> Path:
    """Return a zip archive of two classes that differ in colour."""
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "lights.zip", "w") as file:
        for name, level in (("dark", 60), ("light", 200)):
            for i in range(24):
                image, photo = BytesIO(), generator.normal(level, 20, (40, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(photo).save(image, "PNG")
                file.writestr(f"lights/{name}/{i}.png", image.getvalue())
    return folder / "lights.zip"


def test_a_network_is_fine_tuned_downloaded_and_used(visitor: Visitor, site: Site, tmp_path: Path) -> None:
    page = visitor.page
    page.get_by_role("tab", name="Fine-tune on your photos").click()
    page.locator("#zip input[type=file]").set_input_files(photos(tmp_path))
    visitor.expect("#found", r"lights: 48 training images of 2 classes \(dark 24, light 24\)")
    page.locator("#epochs input[type=number]").fill("4")
    page.locator("#train").click()
    visitor.expect("#message", r"Epoch [234] of 4")
    visitor.look("training")
    visitor.expect("#message", r"Finished\. The best epoch has \d+\.\d\d % accuracy")
    visitor.look("trained")
    images = {path.parent.name for path in site.folder.rglob("*.png")}
    assert images == {"pictures"}, "the photos are deleted, and the plots of the model card are kept"
    with page.expect_download() as download:
        page.locator("#download").click()
    with zipfile.ZipFile(download.value.path()) as file:
        file.extractall(tmp_path / "weights")
    verify = [sys.executable, "-m", "acmix_zoo.cli", "verify", str(tmp_path / "weights")]
    assert subprocess.run(verify, cwd=ROOT).returncode == 0
    page.get_by_role("tab", name="Look at an image").click()
    visitor.choose("network", "your network (lights)")
    visitor.expect("#first-classes", "dark|light")
    assert weights_in(site.folder)
    page.close()
    for _ in range(100):
        if not weights_in(site.folder):
            break
        threading.Event().wait(0.2)
    assert not weights_in(site.folder), "the weights are deleted when the visitor leaves"


def weights_in(folder: Path) -> list[str]:
    """Return the weights anywhere below a folder. Path.rglob would fail if a folder is deleted at the same time."""
    return glob(f"{folder}/**/model.safetensors", recursive=True)


def test_stopping_the_command_deletes_everything(site: Site) -> None:
    """The last test of this file, because it ends the server."""
    assert list(site.folder.iterdir())
    site.process.send_signal(signal.SIGTERM)
    assert site.process.wait(30) == 0
    assert not [path for path in site.folder.rglob("*") if path.is_file()]
