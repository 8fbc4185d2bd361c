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


BINARY = MaskClasses(("background", "building"), colours=((0, 0, 0), (255, 255, 255)))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "I;16"])
def test_grey_colours_decode_grey_masks(mode: str) -> None:
    """Masks with the values 0 and 255, whatever their format."""
    pixels = np.array([[0, 255, 0]], np.uint8)
    image = Image.fromarray(pixels.astype(np.uint16)) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    assert image.mode == mode
    assert BINARY.decode(image, "m").tolist() == [[0, 1, 0]]


def test_grey_colours_leave_other_values_ignored_or_unknown() -> None:
    greys = {"colours": ((200, 200, 200), (100, 100, 100)), "ignore_colours": ((7, 7, 7), (1, 2, 3))}
    classes = MaskClasses(("a", "b"), **greys)
    assert classes.decode(Image.fromarray(np.array([[100, 200, 7, 255]], np.uint8)), "m").tolist() == [
        [1, 0, VOID, VOID]
    ]
    with pytest.raises(UnreadableImage, match=r"the value 0, 1\. Expected 200, 100 for the 2.*remove the colours from"):
        classes.decode(Image.fromarray(np.array([[0, 1, 100]], np.uint8)), "m")
    with pytest.raises(ValueError, match=r"contains 100, but the values 200, 100 stand .* change the colours in the"):
        MaskClasses(("a", "b"), ignore_values=(100,), **greys)


ROAD, WALK = (128, 64, 128), (0, 0, 192)


def palette_mask(numbers: list[int], *palette: tuple[int, int, int]) -> Image.Image:
    mask = Image.fromarray(np.array([numbers], np.uint8))
    mask.putpalette([value for colour in palette for value in colour])
    return mask


def test_palette_masks_decode_by_colours_that_are_all_listed() -> None:
    """A PNG optimiser or `quantize` turns RGB masks into palette masks, and numbers the colours in any order."""
    classes = MaskClasses(("walk", "road"), colours=(WALK, ROAD), ignore_colours=((9, 9, 9),))
    assert classes.decode(palette_mask([0, 1, 2, 1], ROAD, WALK, (9, 9, 9)), "m").tolist() == [[1, 0, VOID, 0]]
    ignored = palette_mask([0, 255], ROAD, *[(5, 5, 5)] * 255)  # as in Pascal VOC, whose list has no colour for 255
    assert classes.decode(ignored, "m").tolist() == [[1, VOID]]


def test_palette_masks_of_other_colours_hold_numbers() -> None:
    classes = MaskClasses(("walk", "road"), colours=(WALK, ROAD))
    assert classes.decode(palette_mask([1, 0, 255], (1, 1, 1), (2, 2, 2)), "m").tolist() == [[1, 0, VOID]]
    assert classes.decode(palette_mask([1, 0], WALK, (2, 2, 2)), "m").tolist() == [[1, 0]]
    assert BINARY.decode(palette_mask([1, 0], (0, 0, 0), (9, 0, 0)), "m").tolist() == [[1, 0]]
    with pytest.raises(UnreadableImage, match=r"another order, and with the colour \(2, 2, 2\), which .* numbers of"):
        classes.decode(palette_mask([1, 0], ROAD, (2, 2, 2)), "m")


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


def test_a_class_list_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As Notepad and PowerShell write it."""
    (tmp_path / "classes.txt").write_text("0 0 0 sky\n1 1 1 road\n", encoding="utf-8-sig")
    assert read_class_list(tmp_path / "classes.txt") == (["sky", "road"], [(0, 0, 0), (1, 1, 1)], [])


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


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("name,r,g,b\nclass 1,255,0,0\nclass 2,0,255,0\n", ["class 1", "class 2"]),
        ("road,255,0,0\nlane 2,0,255,0\n", ["road", "lane 2"]),
        ("class,R,G,B\nclass 1,255,0,0\nclass 2,0,255,0\n", ["class 1", "class 2"]),
        ("id,name,r,g,b\n0,road,255,0,0\n1,lane 2,0,255,0\n", ["road", "lane 2"]),
        ("id;name;r;g;b\n0;road;255;0;0\n1;lane 2;0;255;0\n", ["road", "lane 2"]),
        ("road (255, 0, 0)\nlane 2 [0, 255, 0]\n", ["road", "lane 2"]),
        ("(255, 0, 0) road\n0;255;0;lane 2;\n", ["road", "lane 2"]),
        ("name,r,g,b,\nroad,255,0,0,\nlane 2,0,255,0,\n", ["road", "lane 2"]),
        ("id\tname\tr\tg\tb\n0\troad\t255\t0\t0\n1\tlane 2\t0\t255\t0\n", ["road", "lane 2"]),
        ("# names\nid,name,r,g,b\n# lanes, both directions\n0,road,255,0,0\n1,lane 2,0,255,0\n", ["road", "lane 2"]),
        ('name,r,g,b\n"road, paved",255,0,0\nlane 2,0,255,0\n', ["road, paved", "lane 2"]),
        ("name r g b\nmy road 255 0 0\nlane 0 255 0\n", ["my road", "lane"]),
        ("255,0,0,1 lane\n0 255 0, 2 lanes\n", ["1 lane", "2 lanes"]),
        ("255 0 0 class 1\n0 255 0 class 2\n", ["class 1", "class 2"]),
    ],
)
def test_names_of_classes_may_contain_numbers(tmp_path: Path, text: str, names: list[str]) -> None:
    (tmp_path / "class_dict.csv").write_text(text)
    assert read_class_list(tmp_path / "class_dict.csv") == (names, [(255, 0, 0), (0, 255, 0)], [])


@pytest.mark.parametrize("line", ["7 128 64 128 road", "road 128 64 128 255", "road,128,64,128,255", "road 256 0 0"])
def test_unclear_colours_are_rejected(tmp_path: Path, line: str) -> None:
    (tmp_path / "classes.txt").write_text(f"0 0 0 sky\n{line}\n")
    with pytest.raises(ValueError, match=f"classes.txt: the line '{line}' does not say clearly .* Separate a name"):
        read_class_list(tmp_path / "classes.txt")


def test_numbers_in_a_list_without_colours_belong_to_the_names(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0 sky\n1 lane 2\n2 lane 3\n")
    assert read_class_list(tmp_path / "classes.txt") == (["0 sky", "1 lane 2", "2 lane 3"], [], [])
    (tmp_path / "classes.txt").write_text("sky\nvoid 255\n")
    with pytest.raises(ValueError, match="lists 'void' without a colour"):
        read_class_list(tmp_path / "classes.txt")


@pytest.mark.parametrize("value", [0.7, float("nan"), float("inf")])
def test_values_between_classes_are_an_error(value: float) -> None:
    assert CLASSES.decode(Image.fromarray(VALUES.astype(np.float32)), "m").tolist() == EXPECTED.tolist()
    with pytest.raises(UnreadableImage, match=rf"mask m has pixels of the value {value}\. Expected whole numbers"):
        CLASSES.decode(Image.fromarray(np.array([[0, value]], np.float32)), "m")


def test_masks_may_have_an_alpha_channel() -> None:
    grey = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    assert CLASSES.decode(grey.convert("LA"), "m").tolist() == [[0, 1, 2]]
    classes = MaskClasses(("walk", "road"), colours=(WALK, ROAD))
    for mode in ("PA", "RGBA"):
        assert classes.decode(palette_mask([0, 1, 0], ROAD, WALK).convert(mode), "m").tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_masks_of_other_modes_are_rejected(mode: str) -> None:
    mask = Image.new("RGB", (2, 2)).convert(mode)
    with pytest.raises(UnreadableImage, match=rf"mask m is a {mode} image\. Expected .* Save it"):
        CLASSES.decode(mask, "m")
