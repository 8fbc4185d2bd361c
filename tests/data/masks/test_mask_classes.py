"""Class lists, and the masks of every kind that they decode."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acmix_zoo.data.images import UnreadableImage
from acmix_zoo.data.masks.class_list import read_class_list
from acmix_zoo.data.masks.mask_classes import VOID, MaskClasses, default_palette, palette_image

VALUES = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
EXPECTED = np.array([[0, 1, 2], [2, VOID, 0]], np.uint8)
CLASSES = MaskClasses(("sky", "road", "car"))


@pytest.mark.parametrize("kind", ["L", "P", "I;16", "I", "RGB"])
def test_masks_of_numbers_decode(kind: str) -> None:
    """Grey with 8, 16 or 32 bits, a palette (whose numbers count, not its colours), and grey saved as RGB."""
    if kind in ("L", "P"):
        image = Image.fromarray(VALUES)
        if kind == "P":
            image.putpalette([9, 9, 9] * 256)
    elif kind == "RGB":
        image = Image.fromarray(VALUES).convert("RGB")
    else:
        image = Image.fromarray(VALUES.astype(np.uint16 if kind == "I;16" else np.int32))
    assert image.mode == kind
    assert np.array_equal(CLASSES.decode(image, "m.png"), EXPECTED)


def test_the_first_class_may_have_another_value() -> None:
    classes = MaskClasses(("wall", "sky"), first_value=1, ignore_values=(0,))
    assert classes.decode(Image.fromarray(np.array([[0, 1, 2]], np.uint8)), "m").tolist() == [[VOID, 0, 1]]


def test_colours_decode_by_the_class_list(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("# r g b name\n128 64 128 road surface\n0 0 0 void\nsky, 70, 130, 180\n\n")
    listed = read_class_list(tmp_path / "classes.txt")
    assert listed == (["road surface", "sky"], [(128, 64, 128), (70, 130, 180)], [(0, 0, 0)])
    names, colours, ignored = map(tuple, listed)
    classes = MaskClasses(names, colours=colours, ignore_colours=ignored)
    pixels = np.array([[[70, 130, 180], [128, 64, 128], [0, 0, 0]]], np.uint8)
    assert classes.decode(Image.fromarray(pixels), "m").tolist() == [[1, 0, VOID]]
    with pytest.raises(UnreadableImage, match=r"m\.png has pixels of the colour \(1, 2, 3\), which the class list"):
        classes.decode(Image.fromarray(np.array([[[1, 2, 3]]], np.uint8)), "m.png")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.array([[0, 7]], np.uint8),
            r"m\.png has pixels of the value 7\. Expected 0 to 2 for the 3 classes, or one of",
        ),
        (np.array([[0, 700]], np.uint16), "pixels of the value 700"),
        (np.array([[[1, 2, 3]]], np.uint8), "is an RGB image, but the class list has no colours"),
    ],
)
def test_unknown_values_are_named(mask: np.ndarray, message: str) -> None:
    with pytest.raises(UnreadableImage, match=message):
        CLASSES.decode(Image.fromarray(mask), "m.png")


def test_contradictory_classes_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"ignore_values=\[1\] contains 1, but the values 0 to 1 stand for the 2 classes"
    ):
        MaskClasses(("a", "b"), ignore_values=(1,))
    with pytest.raises(ValueError, match="names a twice"):
        MaskClasses(("a", "a"))
    with pytest.raises(ValueError, match=r"has 1 class\. Expected 2 to 254"):
        MaskClasses(("a",))
    with pytest.raises(ValueError, match=r"has the colour \(1, 2, 3\) twice"):
        MaskClasses(("a", "b"), colours=((1, 2, 3), (4, 5, 6)), ignore_colours=((1, 2, 3),))
    (tmp_path / "list.txt").write_text("1 2 3 a\nb\n")
    with pytest.raises(ValueError, match="1 of 2 classes have a colour"):
        read_class_list(tmp_path / "list.txt")


@pytest.mark.parametrize("values", [{"ignore_values": (255, -1)}, {"first_value": -1}])
def test_negative_values_are_rejected(values: dict[str, Any]) -> None:
    """As an index, -1 would be the last class."""
    with pytest.raises(ValueError, match=r"is negative, but mask files contain no negative values"):
        MaskClasses(("a", "b"), **values)


def test_void_in_a_list_without_colours_is_rejected(tmp_path: Path) -> None:
    """Leaving it out would give every class after it the wrong number."""
    (tmp_path / "classes.txt").write_text("void\nroad\nsky\n")
    with pytest.raises(ValueError, match=r"lists 'void' without a colour.*set data\.ignore_values"):
        read_class_list(tmp_path / "classes.txt")


def test_written_masks_hold_the_numbers_of_classes(tmp_path: Path) -> None:
    palette_image(EXPECTED, 3).save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as mask:
        assert mask.mode == "P" and np.array_equal(np.asarray(mask), EXPECTED)
        assert np.array_equal(CLASSES.decode(mask, "m"), EXPECTED)
        assert mask.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert default_palette(16)[15] == (192, 128, 128) and len(set(default_palette(150))) == 150  # person, in Pascal VOC
