"""The tab “Fine-tune”: a zip archive of class folders, a live curve, and the weight folder to download."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from acmix_zoo.app.archive import PhotoArchive, UnusableArchive, read_archive
from acmix_zoo.app.curves import curves_html
from acmix_zoo.app.fine_tuning import FineTuning, Progress
from acmix_zoo.app.look_tab import NO_NETWORK, Panel

MAX_UPLOAD = 100_000_000
"""Bytes of an uploaded file, at most."""
_HELP = f"""\
Put the photos of each class into a folder of their own, such as `cat/1.jpg` and `dog/1.jpg`, and make a zip archive of
the folders (at most {MAX_UPLOAD // 1_000_000} MB). A tenth of each class is used for validation. The photos are on disk
only while they are checked and used for training, and are deleted afterwards.
"""


def tune_tab(page: gr.Blocks, networks: Sequence[str], panels: Sequence[Panel], root: Path) -> dict[str, FineTuning]:
    """Add the components and events of the tab to the current page.

    Args:
        page: the page.
        networks: names or paths of weights to start from.
        panels: the panels of the other tab, in which the new weights can be chosen.
        root: a folder for the new weights.

    Returns:
        The fine-tuning of each visitor, by session. The caller closes those that are left in the end.
    """
    trainings: dict[str, FineTuning] = {}
    archive = gr.State()
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            gr.Markdown(_HELP)
            file = gr.File(label="Zip archive of class folders", file_types=[".zip"], height=140, elem_id="zip")
            found = gr.Markdown(elem_id="found")
            start = gr.Dropdown(list(networks), label="Start from", elem_id="start")
            epochs = gr.Slider(1, 30, value=10, step=1, label="Epochs", elem_id="epochs")
            with gr.Row():
                train_button = gr.Button("Train", variant="primary", min_width=100, elem_id="train", interactive=False)
                stop_button = gr.Button("Stop", min_width=100, elem_id="stop", interactive=False)
        with gr.Column(scale=2, min_width=300):
            message = gr.Markdown("The curve appears here.", elem_id="message")
            curves = gr.HTML(elem_id="curves")
            download = gr.DownloadButton("Download the weight folder", visible=False, elem_id="download")
            with gr.Accordion("Training log", open=False):
                log = gr.Textbox(lines=10, max_lines=10, show_label=False, elem_id="log")

    def accept(path: str | None) -> tuple[Any, ...]:
        """Check an uploaded archive and delete its file."""
        if path is None:
            return None, "", gr.Button(interactive=False)
        file = Path(path)
        try:
            photos = read_archive(file.read_bytes(), file.name)
        except UnusableArchive as error:
            return None, f"⚠️ {error}.", gr.Button(interactive=False)
        finally:
            file.unlink(missing_ok=True)
        return photos, photos.summary, gr.Button(interactive=True)

    def train(
        photos: PhotoArchive | None, network: str, count: float, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        if photos is None:
            yield "⚠️ Upload a zip archive first.", *[gr.skip()] * 6
            return
        visitor = str(request.session_hash)
        if visitor not in trainings:
            trainings[visitor] = FineTuning(root)
        for progress in trainings[visitor].train(photos, network, int(count)):
            yield *_shown(progress, int(count)), *_choices(progress, photos.name, networks), gr.Button(interactive=True)
        yield *[gr.skip()] * 6, gr.Button(interactive=False)

    def stop(request: gr.Request) -> None:
        if session := trainings.get(str(request.session_hash)):
            session.stop()

    def leave(request: gr.Request) -> None:
        if session := trainings.pop(str(request.session_hash), None):
            session.close()

    private: dict[str, Any] = {"api_visibility": "private"}
    file.upload(accept, file, [archive, found, train_button], **private)
    file.clear(lambda: (None, "", gr.Button(interactive=False)), None, [archive, found, train_button], **private)
    outputs = [message, curves, log, download, *(panel.network for panel in panels), stop_button]
    train_button.click(
        train, [archive, start, epochs], outputs, concurrency_limit=1, show_progress="minimal", **private
    )
    stop_button.click(stop, None, None, **private)
    page.unload(leave)
    return trainings


def _shown(progress: Progress, epochs: int) -> tuple[Any, ...]:
    """Return the message, the curves, the log and the download of a progress."""
    file = gr.DownloadButton(value=str(progress.archive), visible=True) if progress.archive else gr.skip()
    return progress.message, curves_html(progress.history, epochs), progress.log, file


def _choices(progress: Progress, name: str, networks: Sequence[str]) -> list[Any]:
    """Return both dropdowns with the new weights as a choice, once they are written."""
    if progress.weights is None:
        return [gr.skip(), gr.skip()]
    own = (f"your network ({name})", str(progress.weights))
    return [gr.Dropdown([own, *networks]), gr.Dropdown([NO_NETWORK, own, *networks])]
