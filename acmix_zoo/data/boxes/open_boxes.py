"""`open_box_source`: find out which kind of data set with boxes a name or path refers to, and open it."""

from __future__ import annotations

from pathlib import Path

from acmix_zoo.data.boxes.annotated_images import BoxSource
from acmix_zoo.data.boxes.box_table import BoxTable
from acmix_zoo.data.boxes.coco_source import CocoSource, is_coco_folder
from acmix_zoo.data.boxes.voc_source import VocSource, is_voc_folder
from acmix_zoo.data.sources.load_table import is_table
from acmix_zoo.data.sources.open import is_hub_id, source_not_found
from acmix_zoo.data.sources.recorded import RecordedSource, current_recorded_source

SOURCE_KINDS = (
    "a folder with annotations in COCO's format (annotations/instances_train….json, or train/_annotations.coco.json), "
    "a folder like Pascal VOC's (JPEGImages and Annotations), a parquet file or a folder of such files, or the id of a "
    "Hub data set (org/name)"
)
"""What a source of images with boxes is, in words."""


def open_box_source(
    source: str | Path, has_masks: bool = False, box_format: str = "xywh"
) -> BoxSource | RecordedSource:
    """Open a data set with boxes.

    Args:
        source: a folder in the format of COCO or Pascal VOC; a parquet file, a folder of such files, or an imagefolder
            with a metadata file; or the id of a data set for `datasets.load_dataset`.
        has_masks: read the mask of each object.
        box_format: what the numbers of a box in a table are, "xywh" or "xyxy".

    Returns:
        The source, or within `use_recorded_source`, the recorded one, which has no images.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: `source` exists but has no boxes, or no masks although they are requested.
    """
    recorded = current_recorded_source()
    if recorded is not None:
        return recorded
    name = str(source)
    path = Path(name).expanduser()
    if is_coco_folder(path):
        return CocoSource(name, has_masks)
    if is_voc_folder(path):
        if has_masks:
            raise ValueError(f"{name} has the format of Pascal VOC, whose boxes have no masks. Set data.masks to false")
        return VocSource(name)
    if is_table(path) or is_hub_id(name):
        return BoxTable(name, box_format, has_masks)
    if path.is_dir():
        raise ValueError(f"source {name} is a folder without boxes. Expected {SOURCE_KINDS}")
    raise source_not_found(name, SOURCE_KINDS)
