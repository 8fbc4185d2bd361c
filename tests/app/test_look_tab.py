"""Uploaded images: how the page receives them before a network sees them."""

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs gradio: pip install '.[app]'")

from acmix_zoo.app.look_tab import receive


@pytest.mark.parametrize(
    ("size", "expected"), [((5000, 1), (2048, 1)), ((4096, 2048), (2048, 1024)), ((30, 20), (30, 20))]
)
def test_large_images_are_scaled_down_but_keep_a_pixel_on_each_side(
    size: tuple[int, int], expected: tuple[int, int], tmp_path: Path
) -> None:
    file = tmp_path / "uploaded.png"
    Image.new("RGB", size).save(file)
    image, place, preview, message = receive(str(file))
    assert image.size == expected and place is None and not message.visible
    assert max(preview.size) >= 200  # the upload component does not enlarge small images
    assert not file.exists()  # nobody's image stays on the server


def test_a_file_that_is_not_an_image_gets_a_message_and_is_deleted(tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("no image")
    image, _, preview, message = receive(str(file))
    assert image is None and preview is None and message.visible
    assert message.value.startswith("⚠️ Image notes.png cannot be read") and not file.exists()
