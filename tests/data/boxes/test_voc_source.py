"""Pascal VOC folders: splits, classes, coordinates, and what is wrong with real annotations."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from support.box_data import write_voc

from acmix_zoo.data.boxes.annotated_images import AnnotatedImages
from acmix_zoo.data.boxes.voc_source import VocSource

BOX = (11, 6, 40, 30)


def annotated(source: VocSource, split: str) -> AnnotatedImages:
    images = source.splits[split]
    assert isinstance(images, AnnotatedImages)
    return images


def test_boxes_start_at_pixel_one_and_end_with_their_last_pixel(tmp_path: Path) -> None:
    source = VocSource(str(write_voc(tmp_path, {"train": [[("cell", (1, 1, 64, 48))]]})))
    assert annotated(source, "train").objects[0].boxes.tolist() == [[0, 0, 64, 48]]


def test_splits_and_classes(tmp_path: Path) -> None:
    write_voc(
        tmp_path,
        {"train": [[("b", BOX)], [("a", BOX)]], "val": [[("a", BOX)], []], "test": [[("b", BOX), ("new", BOX)]]},
    )
    source = VocSource(str(tmp_path))
    assert source.class_names == ("a", "b")
    assert {name: len(images) for name, images in source.splits.items()} == {"train": 2, "val": 2, "test": 1}
    assert [objects.classes.tolist() for objects in annotated(source, "train").objects] == [[1], [0]]
    assert annotated(source, "val").objects[1].boxes.shape == (0, 4)
    assert annotated(source, "test").objects[0].classes.tolist() == [1]
    assert source.check.summary() == "boxes: left out 1 of unknown classes new (in test_0.png)"


def test_a_classes_file_takes_precedence(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [[("b", BOX)]]})
    (tmp_path / "classes.txt").write_text("z\nb\n")
    source = VocSource(str(tmp_path))
    assert source.class_names == ("z", "b")
    assert annotated(source, "train").objects[0].classes.tolist() == [1]


def test_difficult_objects_are_treated_like_crowds(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [[("a", BOX), ("a", BOX)]]})
    file = tmp_path / "Annotations/train_0.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    assert annotated(VocSource(str(tmp_path)), "train").objects[0].is_crowd.tolist() == [True, False]


def test_training_images_with_difficult_objects_alone_are_rejected(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [[("a", BOX), ("a", BOX)]]})
    file = tmp_path / "Annotations/train_0.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    with pytest.raises(ValueError, match=r"All boxes \(2\) are marked as crowd or difficult"):
        _ = VocSource(str(tmp_path)).splits


def test_two_images_of_one_name_are_rejected(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [[("a", BOX)]]})
    image = next((tmp_path / "JPEGImages").iterdir())
    shutil.copy(image, image.with_suffix(".jpeg"))
    shutil.copy(image, image.with_name("unlisted.png"))
    shutil.copy(image, image.with_name("unlisted.jpeg"))
    with pytest.raises(ValueError, match=r"train_0\..* differ only in their extension, so they would share one"):
        VocSource(str(tmp_path))


def test_trainval_is_used_without_train(tmp_path: Path) -> None:
    write_voc(tmp_path, {"trainval": [[("a", BOX)]], "test": [[("a", BOX)]]})
    assert set(VocSource(str(tmp_path)).splits) == {"train", "test"}


def test_validation_images_are_not_trained_on(tmp_path: Path) -> None:
    write_voc(tmp_path, {"trainval": [[("a", BOX)]] * 3, "val": [[("a", BOX)]]})
    (tmp_path / "ImageSets/Main/val.txt").write_text("trainval_1\n")
    splits = VocSource(str(tmp_path)).splits
    names = {split: [Path(images.describe(i)).stem for i in range(len(images))] for split, images in splits.items()}
    assert names == {"train": ["trainval_0", "trainval_2"], "val": ["trainval_1"]}


def test_without_lists_all_images_are_for_training(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [[("a", BOX)]], "val": [[("a", BOX)]]})
    for file in (tmp_path / "ImageSets/Main").iterdir():
        file.unlink()
    assert {name: len(images) for name, images in VocSource(str(tmp_path)).splits.items()} == {"train": 2}


def test_images_without_annotation_file_are_left_out(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [[("a", BOX)], [("a", BOX)]]})
    (tmp_path / "Annotations/train_1.xml").unlink()
    source = VocSource(str(tmp_path))
    assert len(source.splits["train"]) == 1
    assert source.remarks == ["train: left out 1 image without an image file or an annotation file (train_1)"]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [[("a", BOX)]]})
    (tmp_path / "Annotations/train_0.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"train_0\.xml is not a valid XML file.*Repair it"):
        VocSource(str(tmp_path))


def test_a_missing_number_is_counted(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [[("a", BOX), ("a", BOX)]]})
    file = tmp_path / "Annotations/train_0.xml"
    file.write_text(file.read_text().replace("<xmin>11</xmin>", "<xmin>?</xmin>", 1))
    source = VocSource(str(tmp_path))
    assert len(annotated(source, "train").objects[0].boxes) == 1
    assert source.check.summary() == "boxes: left out 1 without coordinates (in train_0.png)"


def test_training_images_need_boxes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the training images have no boxes"):
        VocSource(str(write_voc(tmp_path, {"train": [[]]})))


def test_the_fingerprint_follows_the_boxes(tmp_path: Path) -> None:
    prints = [
        VocSource(str(write_voc(tmp_path / str(x), {"train": [[("a", (x, 6, 40, 30))]]}))).fingerprint()
        for x in (11, 12)
    ]
    assert prints[0] != prints[1] and len(prints[0]) == 16


def test_the_fingerprint_follows_the_images(tmp_path: Path) -> None:
    source = str(write_voc(tmp_path, {"train": [[("a", BOX)], [("a", BOX)]]}))
    before = VocSource(source).fingerprint()
    assert VocSource(source).fingerprint() == before
    Image.new("RGB", (64, 48), (1, 90, 200)).resize((64, 49)).save(tmp_path / "JPEGImages/train_1.png")
    assert VocSource(source).fingerprint() != before


def test_a_class_listed_twice_is_one_class(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [[("b", BOX)]]})
    (tmp_path / "classes.txt").write_text("a\na\nb\n")
    source = VocSource(str(tmp_path))
    assert source.class_names == ("a", "b")
    assert annotated(source, "train").objects[0].classes.tolist() == [1]


@pytest.mark.parametrize(
    "lines",
    ["{0}\n{1}\n", "{0}.png\n{1}.png\n", "{0} 1\n{1} -1\n", "{0}.png 0\r\n{1}.png  1\r\n", "\ufeff{0}\n{1}"],
    ids=["names", "extensions", "flags", "both", "byte order mark"],
)
@pytest.mark.parametrize("name", ["train_0", "my image", "image 1"])
def test_lists_of_images(tmp_path: Path, lines: str, name: str) -> None:
    write_voc(tmp_path, {"train": [[("a", BOX)], [("a", BOX)]]})
    (tmp_path / "JPEGImages/train_0.png").rename(tmp_path / f"JPEGImages/{name}.png")
    (tmp_path / "Annotations/train_0.xml").rename(tmp_path / f"Annotations/{name}.xml")
    (tmp_path / "ImageSets/Main/train.txt").write_text(lines.format(name, "train_1"), encoding="utf-8", newline="")
    source = VocSource(str(tmp_path))
    assert len(source.splits["train"]) == 2 and not source.remarks
    assert Path(annotated(source, "train").describe(0)).stem == name


def test_an_image_listed_twice_is_one_image(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [[("a", BOX)], [("a", BOX)]]})
    (tmp_path / "ImageSets/Main/train.txt").write_text("train_0\ntrain_1\ntrain_1.png\ntrain_1\n")
    assert len(VocSource(str(tmp_path)).splits["train"]) == 2


def test_lists_that_name_no_image_are_rejected(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [[("a", BOX)]]})
    path = tmp_path / "ImageSets/Main/train.txt"
    path.write_text("images/1.jpg\nimages/2.jpg\n")
    with pytest.raises(ValueError, match=r"no line of the list of training images .* images/1\.jpg, .*train_0"):
        VocSource(str(tmp_path))
    path.write_text("train_0", encoding="utf-16")
    with pytest.raises(ValueError, match=r"train\.txt is not a UTF-8 text file"):
        VocSource(str(tmp_path))


def test_a_byte_order_mark_is_not_part_of_a_class(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": [[("b", BOX)]]})
    (tmp_path / "classes.txt").write_text("b\na\n", encoding="utf-8-sig")
    assert VocSource(str(tmp_path)).class_names == ("b", "a")


@pytest.mark.parametrize("encoding", ["gb2312", "gbk", "big5", "latin-1", "utf-8", "utf-16"])
def test_annotations_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    name = "café" if encoding == "latin-1" else "大"
    file = write_voc(tmp_path, {"train": [[(name, BOX)], [(name, BOX)]]}) / "Annotations/train_0.xml"
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n' + file.read_text(encoding="utf-8")
    file.write_text(text, encoding=encoding)
    source = VocSource(str(tmp_path))
    assert source.class_names == (name,)
    assert annotated(source, "train").objects[0].boxes.tolist() == annotated(source, "train").objects[1].boxes.tolist()
    file.write_text('<?xml version="1.0" encoding="foo"?><annotation/>')
    with pytest.raises(ValueError, match=r"train_0\.xml is not a valid XML file: unknown encoding: foo"):
        VocSource(str(tmp_path))
