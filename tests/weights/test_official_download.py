"""Downloading the authors' files in every format, from a local server, and refusing everything else."""

import pickle
import re
import shutil
import sys
import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.golden_networks import GOLDEN, golden_input, golden_state
from support.weight_folders import SHIPPED, damage_last_byte

from acmix_zoo import create_model
from acmix_zoo.cli import main as cli
from acmix_zoo.weights import check_folder, official, official_download, push, read_config

(ENTRY,) = (entry for entry in GOLDEN if entry["name"] == "acmix_swin_t")


class DownloadServer(ThreadingHTTPServer):
    """A server that answers each request with the next of `answers`: (status, content type, body, stated length)."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: list[tuple[int, str, bytes, int]] = []
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    def give(self, body: bytes, status: int = 200, kind: str = "application/octet-stream", stated: int = -1) -> None:
        self.answers.append((status, kind, body, len(body) if stated < 0 else stated))

    def handle_error(self, *error: object) -> None:
        """Print nothing. Some tests break the connection on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: DownloadServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        status, kind, body, stated = self.server.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(stated))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DownloadServer]:
    """Start a server for both links of acmix_swin_t, with an empty cache, and without waiting between attempts."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with DownloadServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        real = timm.get_pretrained_cfg

        def cfg(name: str, *args: Any, **kwargs: Any) -> Any:
            found = real(name, *args, **kwargs)
            if name.endswith(official.TAG):
                assert found.url.startswith("https://cloud.tsinghua.edu.cn/f/") and found.url.endswith("/?dl=1")
                found.url = f"{address}/cloud"
            return found

        monkeypatch.setattr(official_download.timm, "get_pretrained_cfg", cfg)
        monkeypatch.setitem(official_download.FURTHER_LINKS, "acmix_swin_t", [f"{address}/drive"])
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return golden_state(ENTRY)


def saved(checkpoint: object, path: Path) -> bytes:
    """Save a checkpoint, and return the content of the file."""
    torch.save(checkpoint, path)
    return path.read_bytes()


def with_settings(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return a checkpoint as Swin's trainer writes it, with an optimiser state and settings of a missing package."""
    module = types.ModuleType("yacs.config")
    node = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    module.CfgNode = node
    sys.modules["yacs"], sys.modules["yacs.config"] = types.ModuleType("yacs"), module
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(96)}}, "param_groups": [{"lr": 1e-3}]}
    return {
        "model": {f"module.{key}": value for key, value in state.items()},
        "optimizer": optimizer, "lr_scheduler": {"last_epoch": 299}, "max_accuracy": 81.9, "epoch": 299,
        "config": node(MODEL=node(NAME="acmix_swin_tiny")),
    }  # fmt: skip


@pytest.mark.slow  # 100 MB; the quick tests download smaller files, and tests/models/test_published.py converts
@pytest.mark.parametrize("content", ["state dict", "with settings"])
def test_weights_are_downloaded_converted_and_cached(
    links: DownloadServer, state: dict[str, torch.Tensor], content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = state if content == "state dict" else with_settings(state)
    links.give(saved(checkpoint, tmp_path / "file.pth"))
    for name in ("yacs", "yacs.config"):
        sys.modules.pop(name, None)
    model = timm.create_model(
        "acmix_swin_t", pretrained=True
    ).eval()  # `True` means the authors' weights for this network
    assert model.pretrained_cfg["tag"] == "official_in1k"
    assert (model.pretrained_cfg["crop_pct"], model.pretrained_cfg["interpolation"]) == (0.875, "bicubic")
    expected = torch.tensor(ENTRY["logits"])
    with torch.no_grad():
        assert (model(golden_input(ENTRY)) - expected).abs().max() <= 1e-4 * expected.abs().max()

    folder = official.official_folder("acmix_swin_t.official_in1k")
    assert folder.is_relative_to(tmp_path) and check_folder(folder) == []
    record = read_config(folder)["acmix_zoo"]
    (metric,) = record["metrics"]
    assert (metric["value"], metric["note"]) == (0.819, "published by the authors, not measured again")
    assert record["origin"].startswith("the authors' file") and record["license"] is None
    assert record["source"]["link"].endswith("/cloud") and record["source"]["bytes"] > 100_000_000
    assert "published by the authors, not measured again" in (folder / "README.md").read_text()

    again = create_model("acmix_swin_t", "official_in1k", num_classes=3)
    assert torch.equal(again.patch_embed.proj.weight, model.patch_embed.proj.weight) and again.num_classes == 3
    assert len(links.requests) == 1  # everything else came from the cache
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    with pytest.raises(ValueError, match="must not be redistributed"):
        push(folder, "org/converted")


@pytest.mark.slow
def test_a_file_that_was_downloaded_by_hand_is_converted(
    links: DownloadServer, state: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved({"model": state}, tmp_path / "acmix_swin_tiny.pth")
    assert cli.main(["convert", str(tmp_path / "acmix_swin_tiny.pth"), "--model", "acmix_swin_t.official_in1k"]) == 0
    assert "acmix_swin_t.official_in1k: 28,649,908 parameters; verified" in capsys.readouterr().out
    model = create_model("acmix_swin_t", pretrained=True)
    assert torch.equal(model.norm.weight, state["norm.weight"]) and not links.requests


def web_page(links: DownloadServer, good: bytes) -> None:
    links.give(b"<html>Log in</html>", kind="text/html; charset=utf-8")


def missing(links: DownloadServer, good: bytes) -> None:
    links.give(b"gone", 404)


def truncated(links: DownloadServer, good: bytes) -> None:
    for _ in range(3):
        links.give(good[: len(good) // 2], stated=len(good))


def truncated_without_error(links: DownloadServer, good: bytes) -> None:
    links.give(good[: len(good) // 2])


def unavailable(links: DownloadServer, good: bytes) -> None:
    for _ in range(3):
        links.give(b"", 503)


def enormous(links: DownloadServer, good: bytes) -> None:
    links.give(b"", stated=10**13)


def web_page_as_file(links: DownloadServer, good: bytes) -> None:
    links.give(b"<!DOCTYPE html><html>quota exceeded</html>")


class CreatesFile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harm"),))


def code(links: DownloadServer, good: bytes) -> None:
    links.give(pickle.dumps({"model": CreatesFile()}))


def different_network(links: DownloadServer, good: bytes) -> None:
    links.give(good)


FAILURES = {
    web_page: "leads to a web page instead of a file",
    missing: "the server answered 404",
    truncated: "the connection broke after",
    truncated_without_error: "is damaged or not a checkpoint",
    unavailable: "the server answered 503",
    enormous: "the file has 10,000,000,000,000 bytes",
    web_page_as_file: "was rejected",
    code: "was rejected",
    different_network: "does not fit ACmixSwin",
}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.__name__)
def test_failed_downloads_leave_nothing_behind(
    links: DownloadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    """Both links fail in the same way. The error says why, and what to do."""
    monkeypatch.chdir(tmp_path)
    good = saved({"model": golden_state(GOLDEN[2])}, tmp_path / "other.pth")  # of a small network
    for _ in range(2):
        failure(links, good)
    with pytest.raises(OSError, match="could not download") as caught:
        create_model("acmix_swin_t", pretrained=True)
    text = str(caught.value)
    assert len(re.findall(FAILURES[failure], text)) == 2, text
    assert "acmix-zoo convert FILE --model acmix_swin_t.official_in1k" in text
    assert {path.rpartition("/")[2] for path in links.requests} == {"cloud", "drive"} and not links.answers
    assert not official.official_folder("acmix_swin_t.official_in1k").exists() and not (tmp_path / "harm").exists()


def test_a_second_link_is_tried_and_a_damaged_cache_is_replaced(
    links: DownloadServer, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """The next link is tried if the first one fails, and a damaged file in the cache is downloaded again."""
    monkeypatch.setattr(
        official_download,
        "convert",
        lambda file, name, folder, record: shutil.copytree(SHIPPED, folder, dirs_exist_ok=True),
    )
    links.give(b"<html>", kind="text/html")
    links.give(b"", 503)
    links.give(b"weights")
    weights = official_download.download_official("acmix_swin_t")
    assert links.requests == ["/cloud", "/drive", "/drive"]
    content = weights.read_bytes()
    damage_last_byte(weights)
    links.give(b"weights")
    assert official_download.download_official("acmix_swin_t").read_bytes() == content
    message = str(recwarn.pop(UserWarning).message)
    assert "Download or write the weight folder again." in message


def test_simultaneous_downloads_happen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of a DDP run do this. The first one holds the lock while it downloads and converts."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    downloads = []

    def download(link: str, file: Path) -> None:
        downloads.append(link)
        file.write_bytes(b"weights")

    def convert(file: Path, name: str, folder: Path, record: dict[str, Any]) -> None:
        time.sleep(0.2)
        folder.mkdir(exist_ok=True)
        for part in ("config.json", "model.safetensors"):
            (folder / part).write_text("{}")

    monkeypatch.setattr(official_download, "download", download)
    monkeypatch.setattr(official_download, "convert", convert)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(official_download.download_official, ["acmix_swin_t"] * 4))
    assert len(downloads) == 1
    assert set(found) == {official.official_folder("acmix_swin_t.official_in1k") / "model.safetensors"}
