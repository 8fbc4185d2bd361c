"""Tables with a column of boxes, as the detection data sets on the Hub have."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from acmix_zoo.data.boxes.annotated_images import AnnotatedImages
from acmix_zoo.data.boxes.box_table import BoxTable
from acmix_zoo.data.boxes.coco_api import decode_masks
from acmix_zoo.data.images import UnreadableImage
from acmix_zoo.data.sources.open import open_source

NAMES = ["mask", "glove"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for tables; the cache of the `datasets` library is next to it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "table"


def write_table(
    folder: Path,
    cells: list[dict[str, list[Any]]],
    category: Any = None,
    split: str = "train",
    images: Sequence[Any] = (),
    **columns: Any,
) -> Path:
    """Write a parquet file with one image for each cell of "objects"; by default, a grey one of 64×48 pixels."""
    fields = {
        "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
        "category": datasets.List(category or datasets.ClassLabel(names=NAMES)),
    }
    fields |= {"area": datasets.List(datasets.Value("int64"))} if "area" in cells[0] else {}
    polygons = datasets.List(datasets.List(datasets.List(datasets.Value("float32"))))
    fields |= {"segmentation": polygons} if "segmentation" in cells[0] else {}
    images = images or [Image.new("RGB", (64, 48), (value, 0, 0)) for value in range(len(cells))]
    features = {"image": datasets.Image(), "objects": fields, **{name: datasets.Value("int64") for name in columns}}
    table = datasets.Dataset.from_dict(
        {"image": images, "objects": cells, **columns}, features=datasets.Features(features)
    )
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def annotated(source: BoxTable, split: str = "train") -> AnnotatedImages:
    images = source.splits[split]
    assert isinstance(images, AnnotatedImages)
    return images


def test_declared_classes_and_coco_boxes(folder: Path) -> None:
    cells = [
        {"bbox": [[4, 5, 10, 20], [0, 0, 9, 9]], "category": [1, 0], "area": [150, 81]},
        {"bbox": [], "category": [], "area": []},
    ]
    source = BoxTable(str(write_table(folder, cells)))
    assert (source.class_names, source.category_ids) == (("mask", "glove"), (0, 1))
    first, second = annotated(source).objects
    assert first.boxes.tolist() == [[4, 5, 14, 25], [0, 0, 9, 9]] and first.classes.tolist() == [1, 0]
    assert first.areas.tolist() == [150, 81]
    assert second.boxes.shape == (0, 4)
    assert np.array(annotated(source).image(1)).max() == 1


def test_boxes_as_corners(folder: Path) -> None:
    source = BoxTable(str(write_table(folder, [{"bbox": [[4, 5, 14, 25]], "category": [0]}])), box_format="xyxy")
    assert annotated(source).objects[0].boxes.tolist() == [[4, 5, 14, 25]]


@pytest.mark.parametrize(("wrong", "is_suspected"), [(1, False), (2, True)])
def test_the_wrong_box_format_is_suspected(folder: Path, wrong: int, is_suspected: bool) -> None:
    """It is if boxes of most images extend beyond the image, however many boxes that are."""
    beyond, within = [[30, 20, 60, 40]] * 4, [[1, 2, 3, 4]] * 4
    cells = [{"bbox": beyond if i < wrong else within, "category": [0] * 4} for i in range(3)]
    source = BoxTable(str(write_table(folder, cells)))
    assert annotated(source).objects[0].boxes.tolist() == [[30, 20, 64, 48]] * 4
    assert any("set data.box_format to xyxy" in remark for remark in source.remarks) == is_suspected


@pytest.mark.parametrize("is_list", [False, True], ids=["dict of lists", "list of dicts"])
def test_masks_of_images_without_objects_and_of_unreadable_images(folder: Path, is_list: bool) -> None:
    square = [[4, 5, 14, 5, 14, 25, 4, 25]]
    cells: list[Any] = [{"bbox": [[4, 5, 10, 20]], "category": [1], "segmentation": [square]}] * 2
    cells.append({name: [] for name in cells[0]})
    write_table(folder, cells)
    table = datasets.Dataset.from_parquet(str(folder / "train-00000-of-00001.parquet"))
    rows = table.cast_column("image", datasets.Image(decode=False)).to_list()
    rows[1]["image"] = {"bytes": b"broken", "path": None}
    if is_list:
        for row in rows:
            objects = row["objects"]
            row["objects"] = [dict(zip(objects, values, strict=True)) for values in zip(*objects.values(), strict=True)]
    shutil.rmtree(folder)
    folder.mkdir()
    image = {"image": datasets.Image()}
    written = datasets.Dataset.from_list(rows)
    written.cast(datasets.Features({**written.features, **image})).to_parquet(folder / "train.parquet")
    found = annotated(BoxTable(str(folder), has_masks=True)).objects
    assert [len(objects.masks or []) for objects in found] == [1, 0, 0]
    assert decode_masks(found[0].masks or [], 48, 64)[0, 5:25, 4:14].all()


def test_masks_need_a_column(folder: Path) -> None:
    write_table(folder, [{"bbox": [[4, 5, 14, 25]], "category": [0]}])
    with pytest.raises(ValueError, match=r"has no masks\. Expected a field `segmentation`.*which has bbox, category"):
        BoxTable(str(folder), has_masks=True)


@pytest.mark.parametrize("value", [datasets.Value("string"), datasets.Value("int64")], ids=["names", "numbers"])
def test_undeclared_classes_are_those_of_the_training_split(folder: Path, value: Any) -> None:
    is_text = value.dtype == "string"
    labels = ["cat", "dog"] if is_text else [3, 5]
    write_table(folder, [{"bbox": [[0, 0, 9, 9]] * 2, "category": labels[::-1]}], value)
    write_table(folder, [{"bbox": [[0, 0, 9, 9]] * 2, "category": ["cow" if is_text else 4, labels[1]]}], value, "test")
    source = BoxTable(str(folder))
    expected = (("cat", "dog"), (1, 2)) if is_text else (("3", "5"), (3, 5))
    assert (source.class_names, source.category_ids) == expected
    assert annotated(source).objects[0].classes.tolist() == [1, 0]
    assert annotated(source, "test").objects[0].classes.tolist() == [1]
    assert f"left out 1 of unknown classes {'cow' if is_text else 4} (in table/test[0])" in source.check.summary()


def test_stated_sizes_are_used(folder: Path) -> None:
    cells = [{"bbox": [[4, 5, 100, 20]], "category": [0]}]
    source = BoxTable(str(write_table(folder, cells, width=[50], height=[48])))
    assert annotated(source).objects[0].boxes.tolist() == [[4, 5, 50, 25]]
    remark = "train: 1 image of another size than the columns width and height state, so that the boxes may be wrong"
    assert source.remarks[:1] == [f"{remark} (in table/train[0])"]


def encoded(image: Image.Image, kind: str, **options: Any) -> dict[str, Any]:
    """Return the cell of an image that is stored as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def test_boxes_and_masks_belong_to_the_turned_image(folder: Path) -> None:
    """The camera was held upright: the file has 64×48 pixels, and its orientation turns it to 48×64."""
    exif = Image.Exif()
    exif[0x0112] = 6
    cell: dict[str, list[Any]] = {"bbox": [[4, 50, 10, 10]], "category": [0]}
    cell["segmentation"] = [[[4, 50, 14, 50, 14, 60, 4, 60]]]
    image = encoded(Image.new("RGB", (64, 48)), "JPEG", exif=exif)
    source = BoxTable(str(write_table(folder, [cell], images=[image])), has_masks=True)
    (objects,) = annotated(source).objects
    assert objects.boxes.tolist() == [[4, 50, 14, 60]] and not source.check.summary()
    assert decode_masks(objects.masks or [], 64, 48)[0, 50:60, 4:14].all()


def test_an_image_that_is_too_large_is_unreadable(folder: Path) -> None:
    images = [encoded(Image.new("1", (20_000, 10_000)), "PNG"), encoded(Image.new("1", (64, 48)), "PNG")]
    cells = [{"bbox": [[4, 5, 10, 20]], "category": [0]}] * 2
    images_with_boxes = annotated(BoxTable(str(write_table(folder, cells, images=images))))
    with pytest.raises(UnreadableImage, match="million pixels"):
        images_with_boxes.image(0)


def test_a_classifier_is_not_offered_the_column_of_boxes(folder: Path) -> None:
    """It has no classes of images. The error says how to read it."""
    write_table(folder, [{"bbox": [[4, 5, 10, 20]], "category": [0]}])
    with pytest.raises(ValueError, match=r"no column is clearly the class column\. Add .* data --task detection`"):
        open_source(str(folder))
    with pytest.raises(ValueError, match=r"'objects' has no text or numbers\. Expected .* none\. For the boxes"):
        open_source(str(folder), "objects")


def test_tables_without_boxes_are_rejected(folder: Path) -> None:
    table = datasets.Dataset.from_dict({"image": [Image.new("RGB", (9, 9))], "label": [0]})
    folder.mkdir()
    table.cast_column("image", datasets.Image()).to_parquet(folder / "train.parquet")
    with pytest.raises(ValueError, match="has no column 'objects', only image, label"):
        BoxTable(str(folder))
