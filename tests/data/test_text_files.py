"""Text files of users: byte order marks and encodings."""

from pathlib import Path

import pytest

from acmix_zoo.data.text_files import read_text


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.txt").write_text("Käfer\n", encoding=encoding)
        assert read_text(tmp_path / "a.txt") == "Käfer\n"


def test_other_encodings_are_rejected_with_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("owl\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"a\.txt is not a UTF-8 text file"):
        read_text(tmp_path / "a.txt")
