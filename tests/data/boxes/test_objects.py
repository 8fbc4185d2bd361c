"""Boxes that cannot be used are left out and counted."""

import numpy as np
import pytest

from acmix_zoo.data.boxes.coco_api import decode_masks, encode_mask
from acmix_zoo.data.boxes.objects import BoxCheck, Objects, make_objects

SIZE = (64, 48)


def clean(check: BoxCheck, *boxes: tuple[float, ...], image: str = "a.png") -> list[list[float]]:
    """Return the usable boxes of an image of 64×48 pixels."""
    found: list[list[float]] = check.clean(make_objects(boxes, np.arange(len(boxes))), SIZE, image).boxes.tolist()
    return found


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((5, 5, 5, 20), "without area"),
        ((5, 5, 4, 4), "without area"),
        ((70, 5, 80, 20), "outside their image"),
        ((-9, -9, 0, 0), "outside their image"),
        ((float("nan"), 5, 9, 9), "without coordinates"),
        ((float("inf"), 5, 9, 9), "without coordinates"),
    ],
)
def test_unusable_boxes_are_left_out(box: tuple[float, ...], kind: str) -> None:
    check = BoxCheck()
    assert clean(check, (1, 2, 30, 40), box) == [[1, 2, 30, 40]]
    assert check.summary() == f"boxes: left out 1 {kind} (in a.png)"


def test_boxes_that_leave_the_image_are_clipped() -> None:
    check = BoxCheck()
    assert clean(check, (-5, 10, 80, 30)) == [[0, 10, 64, 30]]
    assert check.summary() == "boxes: 1 clipped to their image (in a.png)"


def test_a_deviation_of_one_pixel_is_not_reported() -> None:
    check = BoxCheck()
    assert clean(check, (-1, 0, 65, 48)) == [[0, 0, 64, 48]]
    assert not check.summary()


def test_the_summary_is_one_line_with_all_kinds() -> None:
    check = BoxCheck()
    for name in ("a", "b", "c", "d"):
        clean(check, (5, 5, 5, 5), (5, 5, 5, 6), (60, 40, 90, 90), image=name)
        check.count_unknown_class(name, "dog")
    assert check.summary() == (
        "boxes: left out 4 of unknown classes dog (in a, b, c and 1 more), 8 without area (in a, b, c and 1 more); "
        "4 clipped to their image (in a, b, c and 1 more)"
    )


def test_the_size_of_an_image_may_be_unknown() -> None:
    kept = BoxCheck().clean(make_objects([(5, 5, 900, 900), (5, 5, 5, 5)], [0, 1]), None, "a")
    assert kept.classes.tolist() == [0]


def test_all_fields_follow_the_boxes() -> None:
    masks = [encode_mask([[0, 0, side, 0, side, side]], 20, 20) for side in (4, 9)]
    objects = Objects(
        np.array([[0, 0, 0, 0], [1, 1, 9, 9]], np.float32),
        np.array([4, 5]),
        np.array([True, False]),
        np.array([1, 2], np.float32),
        masks,
    )
    kept = BoxCheck().clean(objects, SIZE, "a")
    assert (kept.classes.tolist(), kept.is_crowd.tolist(), kept.areas.tolist(), kept.masks) == (
        [5],
        [False],
        [2],
        masks[1:],
    )


def test_missing_areas_are_those_of_the_masks_or_boxes() -> None:
    boxes = [(0, 0, 4, 4), (0, 0, 4, 4)]
    triangles = [encode_mask([[0, 0, 4, 0, 0, 4]], 48, 64)] * 2
    assert make_objects(boxes, [0, 0]).areas.tolist() == [16, 16]
    assert make_objects(boxes, [0, 0], areas=[None, 9]).areas.tolist() == [16, 9]
    assert make_objects(boxes, [0, 0], areas=[9, None], masks=triangles).areas.tolist() == [
        9,
        decode_masks(triangles, 48, 64)[0].sum(),
    ]
