"""The tab “Look at an image”: an image, and the decisions of one or two networks side by side.

Images stay in memory. A file that a browser uploads is deleted as soon as it is read, and pictures are sent to the
browser as part of the page's data instead of as files.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from gradio.data_classes import ImageData
from PIL import Image

from acmix_zoo.app.decision import Attention, Place, attention_at, explain_decision, load_network, top_classes
from acmix_zoo.app.overlays import attention_overlay, data_url, enlarged_picture
from acmix_zoo.app.panels import attention_caption, decision_html, knowledge
from acmix_zoo.data.images import UnreadableImage, load_image
from acmix_zoo.data.prepared_image import prepare_image

NO_NETWORK = "none"
_MEAN = "mean"
_SIDE = 2048  # pixels; larger images are scaled down, because every visitor's image is kept in memory
_PREVIEW = 200  # pixels
# One explanation at a time, because all visitors share the networks.
_TURNS: dict[str, Any] = {"concurrency_id": "networks", "concurrency_limit": 1, "api_visibility": "private"}


class Panel(NamedTuple):
    """The components that show the decision of one network."""

    column: gr.Column
    network: gr.Dropdown
    knowledge: gr.Markdown
    classes: gr.Label
    summary: gr.HTML
    seen: gr.Image
    caption: gr.Markdown
    layer: gr.Dropdown
    head: gr.Dropdown

    @property
    def outputs(self) -> list[Any]:
        """Everything that a new image or network changes."""
        return [self.column, self.knowledge, self.classes, self.summary, *self.attention]

    @property
    def attention(self) -> list[Any]:
        """Everything that a click changes."""
        return [self.seen, self.caption, self.layer, self.head]


def look_tab(
    page: gr.Blocks, networks: Sequence[str], examples: Sequence[Image.Image], accepts_paths: bool
) -> tuple[Panel, Panel]:
    """Add the components and events of the tab to the current page.

    Args:
        page: the page.
        networks: names or paths to choose from.
        examples: images to choose from.
        accepts_paths: whether a visitor may enter other names and paths.
    """
    image, place = gr.State(), gr.State()
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload = MemoryImage(label="Your image", sources=["upload", "clipboard"], height=260, elem_id="upload")
            problem = gr.Markdown(visible=False, elem_id="problem")
            gallery = gr.Dataset(
                label="Or one of these", components=[MemoryImage(render=False)], samples=[[one] for one in examples],
                type="index", elem_id="examples",
            )  # fmt: skip
            hint = (
                "The name of any network or weights, or the path of a weight or run folder" if accepts_paths else None
            )
            dropdown = {"allow_custom_value": accepts_paths, "min_width": 200}
            first = gr.Dropdown(list(networks), label="Network", info=hint, elem_id="network", **dropdown)
            second = gr.Dropdown(
                [NO_NETWORK, *networks], value=NO_NETWORK, label="Compare with", elem_id="second", **dropdown
            )
        panels = _panel(first, "first", True), _panel(second, "second", False)

    def show_all(event: Any) -> None:
        for panel in panels:
            event = event.then(show, [image, panel.network, place], panel.outputs, **_TURNS)

    received = [image, place, upload, problem]
    show_all(upload.upload(receive, upload, received, api_visibility="private"))
    show_all(upload.clear(lambda: (None, None, gr.Markdown(visible=False)), None, [image, place, problem]))

    def example(number: int) -> tuple[Any, ...]:
        return examples[number], None, _preview(examples[number]), gr.Markdown(visible=False)

    show_all(gallery.click(example, gallery, received, api_visibility="private"))
    if examples:
        show_all(page.load(lambda: example(0), None, received, api_visibility="private"))
    for panel in panels:
        panel.network.input(show, [image, panel.network, place], panel.outputs, **_TURNS)
        inputs = [image, panel.network, panel.layer, panel.head, place]
        for control in (panel.layer, panel.head):
            control.input(attend, inputs, panel.attention, show_progress="hidden", **_TURNS)
        event = panel.seen.select(clicked_place, [image, panel.network], place, show_progress="hidden", **_TURNS)
        for other in panels:
            inputs = [image, other.network, other.layer, other.head, place]
            event = event.then(attend, inputs, other.attention, show_progress="hidden", **_TURNS)
    return panels


def _panel(network: gr.Dropdown, name: str, is_visible: bool) -> Panel:
    """Add the column that shows the decision of the network that is chosen in a dropdown."""
    with gr.Column(scale=2, min_width=300, visible=is_visible, elem_id=f"{name}-panel") as column:
        known = gr.Markdown(elem_classes="known")
        classes = gr.Label(label="Most probable classes", num_top_classes=5, elem_id=f"{name}-classes")
        gr.Markdown("**What the network sees.** Click a position to see what it attends to.")
        seen = MemoryImage(
            show_label=False, interactive=False, height=300, elem_id=f"{name}-seen", buttons=[], sources=None
        )
        caption = gr.Markdown(elem_id=f"{name}-caption")
        with gr.Row():
            layer = gr.Dropdown([], label="Layer", min_width=140, elem_id=f"{name}-layer")
            head = gr.Dropdown([_MEAN], label="Head", min_width=140, elem_id=f"{name}-head")
        summary = gr.HTML(elem_id=f"{name}-summary")
    return Panel(column, network, known, classes, summary, seen, caption, layer, head)


def _preprocess(self: Any, payload: ImageData | None) -> str | None:
    """Return the path of the uploaded file, whatever it contains."""
    return payload.path if payload else None


def _postprocess(self: Any, value: Image.Image | None) -> ImageData | None:
    """Return an image for the browser, which gets it within the page's data."""
    return ImageData(url=data_url(value), orig_name="image.png") if value else None


# An image component that takes and gives images without writing files. For a class statement, gradio's metaclass would
# write an interface file (.pyi) next to this one.
MemoryImage: Any = ABCMeta.__new__(
    type(gr.Image),
    "MemoryImage",
    (gr.Image,),
    {"preprocess": _preprocess, "postprocess": _postprocess, "is_template": True, "__module__": __name__},
)


def receive(path: str | None) -> tuple[Any, ...]:
    """Read an uploaded image and delete its file.

    Returns:
        The image, no place, the image for the upload component, and a message if it cannot be read.
    """
    if path is None:
        return None, None, None, gr.Markdown(visible=False)
    file = Path(path)
    try:
        image = load_image(file, file.name)
    except UnreadableImage as error:
        text = f"⚠️ {str(error)[:1].upper()}{str(error)[1:]}. Choose a JPEG, PNG or WebP image."
        return None, None, None, gr.Markdown(text, visible=True)
    finally:
        file.unlink(missing_ok=True)
    if (side := max(image.size)) > _SIDE:
        # one side may be a single pixel
        width, height = (max(1, round(pixels * _SIDE / side)) for pixels in image.size)
        image = image.resize((width, height))
    return image, None, _preview(image), gr.Markdown(visible=False)


def _preview(image: Image.Image) -> Image.Image:
    """Return an image for the upload component, which does not enlarge small ones."""
    return image if max(image.size) >= _PREVIEW else Image.fromarray(enlarged_picture(np.asarray(image)))


def show(image: Image.Image | None, source: str | None, place: Place | None) -> Iterator[tuple[Any, ...]]:
    """Yield the values of `Panel.outputs`: first the classes, which are quick, and then everything."""
    is_chosen = bool(source) and source != NO_NETWORK
    nothing = (None, None, None, None, gr.Dropdown([], value=None), gr.Dropdown([_MEAN], value=_MEAN))
    if image is None or not is_chosen or source is None:
        yield gr.Column(visible=is_chosen), "", *nothing
        return
    try:
        network = load_network(source)
        classes = top_classes(network, image)
        yield gr.Column(visible=True), knowledge(network), classes, *[gr.skip()] * 5
        decision = explain_decision(network, image, place)
    except (ValueError, OSError) as error:
        yield gr.Column(visible=True), f"⚠️ {error}", *nothing
        return
    summary, found = decision_html(decision), decision.explanation.attention
    shown: tuple[Any, ...] = (Image.fromarray(enlarged_picture(decision.seen.picture)), "", *nothing[-2:])
    if found:
        shown = _attention_values(Attention(decision.seen, found), network.attention_layers, None)
    yield gr.Column(visible=True), knowledge(network), classes, summary, *shown


def attend(
    image: Image.Image | None, source: str | None, layer: str | None, head: str | None, place: Place | None
) -> tuple[Any, ...]:
    """Return the values of `Panel.attention` for a place of the image; without one, they stay."""
    if image is None or not source or not layer or place is None:
        return (gr.skip(),) * 4
    network = load_network(source)
    found = attention_at(network, image, layer, place)
    number = None if head in (None, _MEAN) else int(str(head).split()[-1])
    if number is not None and number >= len(found.attention.weights):  # layers have different numbers of heads
        number = None
    return _attention_values(found, network.attention_layers, number)


def _attention_values(found: Attention, layers: Sequence[str], head: int | None) -> tuple[Any, ...]:
    heads = [_MEAN, *(f"head {i}" for i in range(len(found.attention.weights)))]
    return (
        attention_overlay(found.seen.picture, found.attention, head),
        attention_caption(found.attention, head),
        gr.Dropdown(list(layers), value=found.attention.layer),
        gr.Dropdown(heads, value=_MEAN if head is None else f"head {head}"),
    )


def clicked_place(image: Image.Image | None, source: str, event: gr.SelectData) -> Place | None:
    """Return the place of a click on the picture that a network sees."""
    if image is None:
        return None
    height, width = enlarged_picture(prepare_image(image, load_network(source).model).picture).shape[:2]
    return (event.index[0] + 0.5) / width, (event.index[1] + 0.5) / height
