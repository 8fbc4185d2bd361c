"""Folders in COCO's format: layouts, classes, crowds, masks, and what is wrong with real annotations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.box_data import write_coco, write_coco_split

from acmix_zoo.data.boxes import annotated_images
from acmix_zoo.data.boxes.annotated_images import AnnotatedImages
from acmix_zoo.data.boxes.coco_api import decode_masks
from acmix_zoo.data.boxes.coco_source import CocoSource


def annotated(source: CocoSource, split: str = "train") -> AnnotatedImages:
    images = source.splits[split]
    assert isinstance(images, AnnotatedImages)
    return images


def change(folder: Path, **fields: Any) -> dict[str, Any]:
    """Update the training annotations with fields, and return them."""
    path = folder / "annotations/instances_train2017.json"
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps(content))
    return content


def annotation(**fields: Any) -> dict[str, Any]:
    return {"id": 900, "image_id": 10, "category_id": 3, "bbox": [4, 5, 10, 20], **fields}


def test_categories_are_numbered_by_their_id(tmp_path: Path) -> None:
    source = CocoSource(str(write_coco(tmp_path)))
    assert (source.class_names, source.category_ids) == (("red", "green", "blue"), (3, 7, 9))
    assert {name: len(images) for name, images in source.splits.items()} == {"train": 8, "val": 4}
    assert set(np.concatenate([objects.classes for objects in annotated(source).objects])) == {0, 1, 2}


def test_boxes_are_corners_and_images_are_found(tmp_path: Path) -> None:
    source = CocoSource(str(write_coco_split(tmp_path, "train2017", 1, annotations=[annotation()])))
    images = annotated(source)
    assert images.objects[0].boxes[-1].tolist() == [4, 5, 14, 25]
    assert images.objects[0].areas[-1] == 200
    assert images.image(0).size == (64, 48)


@pytest.mark.parametrize("layout", ["images/train2017", "images/train", "train", "images", "."])
def test_image_folders(tmp_path: Path, layout: str) -> None:
    write_coco_split(tmp_path, "train2017", 1)
    target = tmp_path / layout
    target.mkdir(parents=True, exist_ok=True)
    (tmp_path / "train2017/000000.png").rename(target / "000000.png")
    assert annotated(CocoSource(str(tmp_path))).image(0).size == (64, 48)


def test_exports_of_labelling_services(tmp_path: Path) -> None:
    """train/_annotations.coco.json next to the images, and valid/ for validation."""
    write_coco(tmp_path)
    for split, name in (("train2017", "train"), ("val2017", "valid")):
        (tmp_path / split).rename(tmp_path / name)
        (tmp_path / f"annotations/instances_{split}.json").rename(tmp_path / name / "_annotations.coco.json")
    source = CocoSource(str(tmp_path))
    assert {name: len(images) for name, images in source.splits.items()} == {"train": 8, "val": 4}
    assert annotated(source, "val").image(0).size == (64, 48)


def test_unusable_annotations_are_counted(tmp_path: Path) -> None:
    unusable = [
        annotation(category_id=99),
        annotation(image_id=404),
        annotation(bbox=[4, 5, 0, 20]),
        annotation(bbox=[100, 5, 10, 10]),
        annotation(bbox=None),
    ]
    source = CocoSource(str(write_coco_split(tmp_path, "train2017", 1, annotations=unusable)))
    expected = write_coco_split(tmp_path / "clean", "train2017", 1)
    assert np.array_equal(annotated(source).objects[0].boxes, annotated(CocoSource(str(expected))).objects[0].boxes)
    kinds = ("unknown classes 99 (in 000000.png)", "area", "their image", "unknown images (in 404)", "coordinates")
    assert all(kind in source.check.summary() for kind in kinds), source.check.summary()
    assert "\n" not in source.check.summary()


def test_masks(tmp_path: Path) -> None:
    outline = [[4, 5, 14, 5, 14, 25, 4, 25]]
    counts = [0, 48 * 2, 48 * 62]  # column by column: the first two columns of the image
    rle = {"size": [48, 64], "counts": counts}
    extra = [annotation(segmentation=outline), annotation(segmentation=rle, iscrowd=1)]
    images = annotated(CocoSource(str(write_coco_split(tmp_path, "train2017", 1, annotations=extra)), has_masks=True))
    masks = decode_masks(images.objects[0].masks or [], 48, 64)[-2:]
    assert masks.shape == (2, 48, 64) and masks.sum((1, 2)).tolist() == [200, 96]
    assert masks[0, 5:25, 4:14].all() and masks[1, :, :2].all()
    assert images.objects[0].is_crowd.tolist()[-2:] == [False, True]


def test_masks_need_the_size_of_their_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read from the file, however many there are. A broken file is reported and skipped, as in a table."""
    monkeypatch.setattr(annotated_images, "CHECK_LIMIT", 0)
    folder = write_coco_split(tmp_path, "train2017", 2)
    content = change(folder)
    change(folder, images=[{k: value for k, value in image.items() if k != "width"} for image in content["images"]])
    (mask, *_) = annotated(CocoSource(str(folder), has_masks=True)).objects[0].masks or []
    assert mask["size"] == [48, 64]  # of the file
    (folder / "train2017/000000.png").write_bytes(b"broken")
    images = annotated(CocoSource(str(folder), has_masks=True))
    assert [len(objects.boxes) > 0 for objects in images.objects] == [False, True]
    assert "000000.png cannot be read" in images.inspect([0]).problems[0]


def test_file_names_may_not_leave_the_folder(tmp_path: Path) -> None:
    folder = write_coco_split(tmp_path / "data", "train2017", 1)
    content = change(folder)
    (tmp_path / "secret.png").write_bytes((folder / "train2017/000000.png").read_bytes())
    change(folder, images=[{**content["images"][0], "file_name": "../../secret.png"}])
    with pytest.raises(ValueError, match=r"train2017\.json lists the image .*secret\.png, which is not below"):
        CocoSource(str(folder)).load()


def test_an_image_that_is_listed_twice_is_named(tmp_path: Path) -> None:
    folder = write_coco_split(tmp_path, "train2017", 2)
    images = change(folder)["images"]
    change(folder, images=[*images, {**images[0], "id": 99}])
    source = CocoSource(str(folder))
    assert len(annotated(source)) == 3
    assert source.remarks == ["train: 1 image listed more than once: 000000.png"]


def test_messages_for_unusable_files(tmp_path: Path) -> None:
    folder = write_coco_split(tmp_path, "train2017", 1)
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match="has no list of annotations and categories, only images"):
        CocoSource(str(folder))
    path.write_text("{")
    with pytest.raises(ValueError, match="is not a JSON file"):
        CocoSource(str(folder))
    content["images"][0]["file_name"] = "missing.png"
    path.write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=r"lists the image missing\.png, which is in none of images/train2017"):
        CocoSource(str(folder)).load()
    path.rename(folder / "annotations/instances_val2017.json")
    with pytest.raises(ValueError, match="annotations for val, but not for training"):
        CocoSource(str(folder))


def categories(*names: str, first_id: int = 0) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in enumerate(names, first_id)]


def test_categories_of_the_same_name(tmp_path: Path) -> None:
    """Labelling services export {id: 0, name: face} for the project and {id: 1, name: face} for its class."""
    boxes = [annotation(id=901 + i, category_id=1) for i in range(2)]
    folder = write_coco_split(tmp_path, "train2017", 1)
    change(folder, annotations=boxes, categories=categories("face", "face", "nose"))
    source = CocoSource(str(folder))
    assert (source.class_names, source.category_ids) == (("face", "nose"), (1, 2))
    assert annotated(source).objects[0].classes.tolist() == [0, 0] and not source.remarks
    boxes[0]["category_id"] = 0
    change(folder, annotations=boxes)
    source = CocoSource(str(folder))
    assert (source.class_names, source.category_ids) == (("face", "face (id 1)", "nose"), (0, 1, 2))
    assert annotated(source).objects[0].classes.tolist() == [0, 1]
    assert source.remarks == ["several categories have the name face. All but the first are shown with their id"]


def test_classes_of_other_splits_are_found_by_name(tmp_path: Path) -> None:
    """Each file may number its categories in its own way."""
    folder = write_coco(tmp_path, train=1, val=1)
    boxes = [annotation(category_id=1), annotation(category_id=2)]
    path = folder / "annotations/instances_val2017.json"
    change(folder, annotations=[annotation(category_id=1)], categories=categories("bird", "cat"))
    val = {**json.loads(path.read_text()), "annotations": boxes}
    path.write_text(json.dumps({**val, "categories": categories("ox", "bird", "cat")}))
    source = CocoSource(str(folder))
    assert annotated(source, "val").objects[0].classes.tolist() == [0, 1]
    path.write_text(json.dumps({**val, "categories": categories("cat", "ox", "bird")}))
    source = CocoSource(str(folder))
    assert annotated(source, "val").objects[0].classes.tolist() == [0]
    assert "left out 1 of unknown classes ox (in 000000.png)" in source.check.summary()
    path.write_text(json.dumps({**val, "categories": []}))
    assert annotated(CocoSource(str(folder)), "val").objects[0].classes.tolist() == [1]


def test_files_of_windows(tmp_path: Path) -> None:
    """They start with a byte order mark, and have backslashes in the names of files."""
    folder = write_coco_split(tmp_path, "train2017", 2)
    content = change(folder)
    for image in content["images"]:
        image["file_name"] = f"train2017\\{image['file_name']}"
    path = folder / "annotations/instances_train2017.json"
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    assert annotated(CocoSource(str(folder))).image(1).size == (64, 48)
    path.write_text(json.dumps(content), encoding="utf-16")
    with pytest.raises(ValueError, match=r"instances_train2017\.json is not a UTF-8 text file"):
        CocoSource(str(folder))


def test_one_missing_image_is_not_taken_for_a_missing_folder(tmp_path: Path) -> None:
    folder = write_coco_split(tmp_path, "train2017", 2)
    (folder / "train2017/000000.png").unlink()
    images = annotated(CocoSource(str(folder)))
    assert images.image(1).size == (64, 48)
    assert images.inspect([0, 1]).problems == [f"image {folder}/train2017/000000.png does not exist"]


@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        ("categories", {"id": 3}, r"entry 0 of categories is \{.id.: 3\}\. Expected a name"),
        ("categories", {"name": "a"}, "entry 0 of categories .* Expected an integer as id"),
        ("categories", {"id": 7, "name": "a"}, "entry 1 of categories .* Expected an id that 'a' does not have"),
        ("images", {"id": 10}, r"train2017\.json: the entry 0 of images .* Expected a file_name"),
        ("images", {"id": "x7", "file_name": "1.png"}, "entry 1 of images .* Expected an id"),
        ("images", {"id": 11, "file_name": "1.png"}, "entry 1 of images .* Expected an id that no other image has"),
        ("images", {"id": 10, "file_name": "1.png", "width": "64"}, "entry 0 of images .* Expected numbers as width"),
        ("annotations", {"image_id": [10]}, "entry 0 of annotations .* Expected an integer as image_id"),
        ("annotations", {"image_id": "10"}, "Expected an integer as image_id, like the ids of the images"),
        ("annotations", {"image_id": 10, "category_id": "3"}, "entry 0 .* Expected an integer as category_id"),
        ("annotations", {"image_id": 10, "category_id": 3, "iscrowd": "0"}, "Expected iscrowd to be the number 0 or 1"),
        ("annotations", 5, "entry 0 of annotations is 5. Expected an object"),
    ],
)
def test_wrong_entries_are_named(tmp_path: Path, key: str, entry: Any, message: str) -> None:
    folder = write_coco_split(tmp_path, "train2017", 2)
    content = change(folder)
    change(folder, **{key: [entry, *content[key][1:]]})
    with pytest.raises(ValueError, match=message):
        CocoSource(str(folder))


@pytest.mark.parametrize("segmentation", [[4, 5, 14, 5, 14, 25], {"size": [48, 64]}, {"counts": "abc"}, 5])
def test_unreadable_masks_are_named(tmp_path: Path, segmentation: Any) -> None:
    wrong = [annotation(segmentation=segmentation)]
    source = CocoSource(str(write_coco_split(tmp_path, "train2017", 1, annotations=wrong)), has_masks=True)
    with pytest.raises(
        ValueError, match=r"train2017\.json: the annotation of id 900 \(of 000000\.png\) has .* Expected polyg"
    ):
        source.load()


def test_objects_without_a_mask_are_left_out(tmp_path: Path) -> None:
    """Otherwise, the mask head would learn that they are background. Crowds are not trained on."""
    square = [[4, 5, 14, 5, 14, 25, 4, 25]]
    kinds: list[dict[str, Any]] = [{"segmentation": square}, {"segmentation": []}, {"segmentation": [[1, 2, 3, 4]]}]
    boxes = [annotation(**kind) for kind in kinds] + [annotation(segmentation=[], iscrowd=1)]
    source = CocoSource(str(write_coco_split(tmp_path, "train2017", 1, annotations=boxes)), has_masks=True)
    source._contents["train"]["annotations"] = boxes  # without those of the squares
    assert len(annotated(source).objects[0].boxes) == 2
    assert source.check.summary() == "boxes: left out 2 without a mask (in 000000.png)"
    source = CocoSource(str(tmp_path), has_masks=True)
    source._contents["train"]["annotations"] = boxes[1:3]
    with pytest.raises(ValueError, match=r"no usable boxes\. .* left out 2 without a mask .*Set data\.masks to false"):
        source.splits  # noqa: B018


def test_sizes_may_be_floating_point_numbers(tmp_path: Path) -> None:
    folder = write_coco_split(tmp_path, "train2017", 1)
    expected = annotated(CocoSource(str(folder), has_masks=True)).objects[0].masks
    change(folder, images=[{**change(folder)["images"][0], "width": 64.0, "height": 48.0}])
    assert annotated(CocoSource(str(folder), has_masks=True)).objects[0].masks == expected


def test_values_that_are_no_numbers_are_replaced_or_left_out(tmp_path: Path) -> None:
    """Exports have null, NaN and texts in fields that can be measured instead."""
    folder = write_coco_split(tmp_path, "train2017", 1)
    content = change(folder)
    first = content["annotations"][0]
    wrong = [{**first, "area": value} for value in ("big", float("nan"), None)]
    without = [{**first, "category_id": None}, {key: value for key, value in first.items() if key != "image_id"}]
    image = {**content["images"][0], "width": float("inf")}
    change(folder, images=[image], annotations=[*wrong, *without])
    source = CocoSource(str(folder))
    (objects,) = annotated(source).objects
    width, height = (objects.boxes[0, 2:] - objects.boxes[0, :2]).tolist()
    assert objects.areas.tolist() == [width * height] * 3 and annotated(source).sizes == [(64, 48)]
    assert "1 of unknown classes None" in source.check.summary() and "1 of unknown images" in source.check.summary()
