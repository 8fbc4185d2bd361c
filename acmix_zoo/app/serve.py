"""Run the page until it is interrupted. Its files are in a temporary folder, which is deleted in the end.

The command `acmix-zoo app`, which a Space on the Hugging Face Hub runs too, starts the page here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

from acmix_zoo.app.curves import CURVE_STYLE
from acmix_zoo.app.decision import load_network, shipped_examples
from acmix_zoo.app.panels import PANEL_STYLE
from acmix_zoo.weights.shipped import shipped_classifiers

_FIRST = "acmix_resnet_pico.fashion_mnist"  # the network of the README
_HOUR = 3600


def serve(
    models: Sequence[str], *, host: str, port: int | None, opens_browser: bool, when_ready: Callable[[str], None]
) -> None:
    """Run the page until Ctrl-C. Whatever ends it, everything that it has written is deleted.

    Args:
        models: names or paths of networks to choose from, before those that ship with the package.
        host: the address to listen on. Visitors from other machines can only choose from the list of networks.
        port: the port to listen on; None for the first free one from 7860.
        opens_browser: whether to open the page in a browser.
        when_ready: called with the address of the page.

    Raises:
        ValueError, OSError: a network cannot be loaded, or the port is in use.
    """
    for model in models:
        load_network(model)
    networks = list(dict.fromkeys([*models, *sorted(shipped_classifiers(), key=lambda name: name != _FIRST)]))
    with TemporaryDirectory(prefix="acmix-zoo-app-") as folder, _without_network(folder):
        import gradio as gr  # reads the environment

        from acmix_zoo.app.look_tab import look_tab
        from acmix_zoo.app.tune_tab import MAX_UPLOAD, tune_tab

        with gr.Blocks(title="acmix-zoo", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as page:
            gr.Markdown(_INTRODUCTION)
            with gr.Tab("Look at an image"):
                panels = look_tab(page, networks, shipped_examples(), accepts_paths=_is_this_machine(host))
            with gr.Tab("Fine-tune on your photos"):
                trainings = tune_tab(page, networks, panels, Path(folder))
        try:
            _, address, _ = page.launch(
                server_name=host, server_port=port, inbrowser=opens_browser, share=False, quiet=True,
                theme=gr.themes.Default(), css=PANEL_STYLE + CURVE_STYLE, footer_links=[], run_history=False,
                max_file_size=MAX_UPLOAD,
                ssr_mode=False, pwa=False, mcp_server=False, prevent_thread_lock=True,
            )  # fmt: skip
            when_ready(address)
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            page.close(verbose=False)
            for training in trainings.values():
                training.close()


_INTRODUCTION = """\
# What do attention and convolution see?
Every layer of these networks computes attention and convolution from the same projections, and adds them. Choose an
image to see what a network makes of it, and what each of the two contributed. Images that you upload are not stored.
"""


def _is_this_machine(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # the name of a machine
        return False


@contextmanager
def _without_network(folder: str) -> Iterator[None]:
    """Within this context, gradio keeps its files in a folder, and sends nothing to its developers."""
    changed = {
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    previous = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in previous.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
