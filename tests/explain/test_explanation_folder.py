"""The page: self-contained, complete, with the numbers of the explanation, and safe against names with markup."""

import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.explained import explained_network, smooth_image

pytest.importorskip("matplotlib")

from acmix_zoo.explain import Explanation, Subject, explain, write_explanation
from acmix_zoo.explain.explanation_folder import NUMBERS, PAGE
from acmix_zoo.explain.pictures import draw_attention
from acmix_zoo.explain.pixel_attention import PixelAttention

PICTURE = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
NAMES = [f"class {i}" for i in range(9)] + ["<script>alert(1)</script> $x$"]
PNGS = {"contributions.png", "layers.png", "layer_maps.png", "attention.png", "kernels.png"}


def count_greys(image: Image.Image) -> int:
    """Return how many shades a picture has in grey."""
    return sum(count > 0 for count in image.convert("L").histogram())


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return explain(explained_network("acmix_swin_pico"), smooth_image(), target=9)


@pytest.fixture(scope="module")
def folder(explanation: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explained") / "new"
    files = write_explanation(explanation, PICTURE, Subject("a&b.png", "my/model", NAMES), folder)
    assert files[0].name == PAGE and {path.name for path in folder.iterdir()} == {path.name for path in files}
    return folder


class _Tags(HTMLParser):
    """Collects the tags of a page, and checks that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_contains_every_picture_and_loads_nothing(folder: Path) -> None:
    text = (folder / PAGE).read_text(encoding="utf-8")
    tags = _Tags(text)
    assert not tags.open
    images = [attributes for tag, attributes in tags.found if tag == "img"]
    assert {path.name for path in folder.glob("*.png")} == PNGS and len(images) == len(PNGS)
    for attributes in images:
        assert attributes["alt"] and str(attributes["src"]).startswith("data:image/png;base64,")
    assert not {tag for tag, _ in tags.found} & {"script", "link", "iframe"} and not re.search(r"https?://|url\(", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x$" in text and "a&amp;b.png" in text


def test_pictures_are_drawn(folder: Path) -> None:
    for name in PNGS:
        with Image.open(folder / name) as image:
            assert min(image.size) > 200 and count_greys(image) > 50, name


def test_page_and_numbers_are_those_of_the_explanation(folder: Path, explanation: Explanation) -> None:
    parts = explanation.contributions
    assert parts and explanation.attention
    numbers = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    score = numbers["score"]
    assert score["attention"] == pytest.approx(parts.attention) and score["total"] == parts.scores.both
    total = score["attention"] + score["convolution"] + score["rest"] + score["integration_error"]
    assert total == pytest.approx(score["total"])
    for row, layer in zip(numbers["layers"], parts.layers, strict=True):
        assert row["name"] == layer.name and row["alpha"] == layer.alpha and layer.attention
        assert np.sum(row["attention"]["positions"]) == pytest.approx(layer.attention.total)
    assert np.shape(numbers["attention"]["weights"]) == explanation.attention.weights.shape
    text = (folder / PAGE).read_text(encoding="utf-8")
    for value in (parts.attention, parts.convolution, parts.rest, parts.scores.both):
        assert f"{value:+.3f}" in text


def test_a_head_can_be_chosen(explanation: Explanation, folder: Path, tmp_path: Path) -> None:
    assert explanation.attention
    drawn = [draw_attention(PICTURE, explanation.attention, head) for head in (None, 0, 1)]
    assert len(set(drawn)) == 3 and (folder / "attention.png").read_bytes() == drawn[0]
    count = len(explanation.attention.weights)
    with pytest.raises(ValueError, match=rf"no head {count}\. Expected a number from 0 to {count - 1}"):
        write_explanation(explanation, PICTURE, Subject("a.png", "model", NAMES, head=count), tmp_path)


def test_a_plain_network_has_a_page_that_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    for name in ("kernels.png", NUMBERS):  # of an earlier explanation
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    plain = explain(explained_network("resnet_pico"), smooth_image())
    write_explanation(plain, PICTURE, Subject("a.png", "resnet_pico", NAMES), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {PAGE, NUMBERS, "contributions.png"}
    assert "No ACmix layers" in (tmp_path / PAGE).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"no head 0\. The network has no attention"):
        write_explanation(plain, PICTURE, Subject("a.png", "resnet_pico", NAMES, head=0), tmp_path)


def test_attention_weights_that_may_be_negative_are_drawn() -> None:
    """Those of patchwise SAN may. The first heads of many are drawn."""
    weights = torch.randn(20, 6, 6, generator=torch.Generator().manual_seed(0))
    attention = PixelAttention("layer", (3, 4), (1, 0), (6, 6), weights)
    with Image.open(BytesIO(draw_attention(PICTURE, attention))) as image:
        assert count_greys(image) > 50
    token = attention._replace(pixel="token", query=None)
    assert draw_attention(PICTURE, token, head=1) != draw_attention(PICTURE, attention, head=1)


def test_pictures_of_the_user_are_not_replaced(explanation: Explanation, tmp_path: Path) -> None:
    subject = Subject("image.png", "my/model", NAMES)
    mine = tmp_path / "attention.png"
    mine.write_bytes(b"a photograph")
    with pytest.raises(FileExistsError, match=r"already has a file attention.png that is not part of an explanation"):
        write_explanation(explanation, PICTURE, subject, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["attention.png"] and mine.read_bytes() == b"a photograph"
    with pytest.raises(FileExistsError, match=r"attention.png is a file. Expected a folder"):
        write_explanation(explanation, PICTURE, subject, mine)
