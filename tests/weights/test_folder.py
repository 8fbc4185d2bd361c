"""The weight folder: what is written, that it proves itself, and that no failure loses what was there."""

import copy
import errno
import html
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn
from yaml import safe_load

import acmix_zoo
from acmix_zoo.weights import check_folder, create_model, read_config, write_folder
from acmix_zoo.weights.card import render_card, render_eval_results
from acmix_zoo.weights.replace import replace_folder, temporary_sibling

ROOT = Path(__file__).resolve().parents[2]
CFG = {"tag": "shapes", "input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
RECORD = {
    "metrics": [{"dataset": "fashion_mnist", "split": "test", "name": "top1", "value": 0.93125}],
    "recipe": "recipes/shapes.yaml",
    "command": "acmix-zoo fit --config recipes/shapes.yaml | tee log",
    "dataset": {
        "name": "fashion_mnist",
        "fingerprint": "ca3ab2a37f845e1b",
        "splits": {"train": 54000, "test": 10000},
    },
    "seed": 3,
    "license": "mit",
    "origin": "trained here",
}


def pico(name: str = "acmix_resnet_pico", **kwargs) -> nn.Module:
    """A network whose every parameter and statistic has moved away from its start."""
    model = timm.create_model(name, **kwargs)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.02 * torch.rand_like(value))
    return model


def write(folder: Path, model: nn.Module | None = None, architecture: str = "acmix_resnet_pico", **kwargs) -> Path:
    options = {"pretrained_cfg": CFG, "record": RECORD, "example": torch.randn(2, 3, 32, 32), **kwargs}
    return write_folder(folder, pico() if model is None else model, architecture=architecture, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["acmix_resnet_pico", "acmix_swin_pico"])
def test_round_trip(tmp_path: Path, name: str, half: bool) -> None:
    model = pico(name).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folder = write(tmp_path / "deep" / "weights", model, name, half=half)

    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert sorted(contents(folder)) == [
        ".eval_results/zalando-datasets_fashion_mnist.yaml",
        *("README.md", "config.json", "model.safetensors", "test/example.safetensors"),
    ]
    assert os.listdir(folder.parent) == ["weights"]  # nothing temporary is left
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float16 if half else torch.float32}
    assert check_folder(folder) == []

    for again in (create_model(folder), create_model(name, folder), timm.create_model(f"local-dir:{folder}", True)):
        for key, value in again.state_dict().items():
            assert value.dtype == before[key].dtype
            assert torch.equal(value, before[key].to(torch.float16).to(value.dtype) if half else before[key]), key
    example = safetensors.torch.load_file(folder / "test" / "example.safetensors")
    twin = create_model(folder).eval()
    assert example["logits"].std() > 1e-3  # a network that answers nothing would replay as well
    torch.testing.assert_close(twin(example["input"]), example["logits"], rtol=1e-4, atol=1e-5)


def test_a_local_data_set_is_not_taken_for_one_of_the_hub(tmp_path: Path) -> None:
    """Only the fingerprint of the shipped images, not the name of a folder, leads to a data set of the Hub."""
    local = {"name": "fashion_mnist", "fingerprint": "0123456789abcdef"}
    folder = write(tmp_path / "w", record={**RECORD, "dataset": local})
    assert "zalando" not in (folder / "README.md").read_text() and render_eval_results(read_config(folder)) == {}


def test_config_and_card(tmp_path: Path) -> None:
    labels = [f"shape {i}" for i in range(5)]
    folder = write(tmp_path / "w", pico(num_classes=5), pretrained_cfg={**CFG, "label_names": labels})
    config = read_config(folder)
    record = config["acmix_zoo"]
    weights = (folder / "model.safetensors").read_bytes()
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("acmix_resnet_pico", 5, 512)
    assert config["pretrained_cfg"]["first_conv"] == timm.get_pretrained_cfg("acmix_resnet_pico").first_conv
    assert config["pretrained_cfg"]["label_names"] == labels
    assert config["pretrained_cfg"]["num_classes"] == 5 and "file" not in config["pretrained_cfg"]
    assert timm.models.PretrainedCfg(**config["pretrained_cfg"]).crop_pct == 1.0  # timm reads every key
    assert record["file_size"] == len(weights) and record["version"] == acmix_zoo.__version__
    assert record["params"] == sum(p.numel() for p in create_model(folder).parameters())
    assert {key: record[key] for key in RECORD} == RECORD
    assert record["name"] == "acmix_resnet_pico.shapes" and record["environment"]["torch"] == torch.__version__

    card = (folder / "README.md").read_text()
    assert card == render_card(config)  # from config.json alone
    for text in ("library_name: acmix_zoo", "license: mit", "- zalando-datasets/fashion_mnist", "93.12 %", "4 shape 4"):
        assert text in card
    assert "| Data | name fashion_mnist, fingerprint ca3ab2a37f845e1b, splits (train 54000, test 10000) |" in card
    assert "shapes.yaml &#124; tee log" in card  # a bar would end the table's cell
    from huggingface_hub import parse_eval_result_entries

    [entry] = parse_eval_result_entries(safe_load(next((folder / ".eval_results").iterdir()).read_text()))
    assert (entry.dataset_id, entry.value) == ("zalando-datasets/fashion_mnist", 0.93125)
    assert safe_load(card.split("---")[1])["tags"] == ["image-classification", "timm", "acmix"]


@pytest.fixture(scope="module")
def any_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read_config(write(tmp_path_factory.mktemp("any") / "w", record={**RECORD, "parent": "start.pth"}))


EVIL = "x\npipeline_tag: evil\n---\n<script>alert(1)</script>|`a` [b](http://c) \\| *d* &amp; | e\u2028f\x1b[2J"


@pytest.mark.parametrize(
    "field", ["license", "origin", "parent", "command", "seed", "dataset", "metric", "note", "label", "tag"]
)
def test_nothing_in_a_card_is_markup(any_config: dict[str, Any], field: str) -> None:
    """Names from users and data sets appear literally. They cannot add front matter, HTML, links or table cells."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt().enable("table")
    config = copy.deepcopy(any_config)
    plain = render_card(config)
    record, label = config["acmix_zoo"], config["pretrained_cfg"]
    value = "Ann's set" + EVIL
    changes = {
        "dataset": {"dataset": {"name": value, value: {value: value}}},
        "metric": {"metrics": [{"dataset": value, "split": value, "name": "top1" + value, "value": 0.5}]},
        "note": {"metrics": [{"dataset": "a/b", "split": "val", "name": "top1", "value": 0.5, "note": value}]},
        "tag": {"name": value},
    }
    record.update(changes.get(field, {field: value}))
    label["label_names"] = [value] * 10 if field == "label" else None
    card = render_card(config)
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    expected = {
        "library_name": "acmix_zoo",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "acmix"],
    }
    found = safe_load(front)
    assert {key: found[key] for key in expected} == expected and found.keys() <= {*expected, "license", "datasets"}
    assert len(body.splitlines()) == len(plain.split("\n---\n", 1)[1].splitlines()) + 4 * (field == "label")
    for markup in ("<script", "[b](", "\x1b", "\u2028", "*d*"):
        assert markup not in body
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} <= {3, 5}
    if field != "license":  # which only the front matter has
        shown = html.unescape(re.sub("<[^>]*>", "", markdown.render(body)))
        assert "<script>alert(1)</script>|`a` [b](http://c) \\| *d* &amp; | e f [2J" in shown
    for text in render_eval_results(config).values():
        [entry] = safe_load(text)
        assert entry.keys() == {"dataset", "value", "notes"}


def test_local_data_sets_are_not_announced_to_the_hub(tmp_path: Path) -> None:
    metrics = [{"dataset": "../my/photos", "split": "val", "name": "top1", "value": 1.0}]
    folder = write(tmp_path / "w", record={"metrics": metrics, "dataset": {"name": "../my/photos"}})
    assert not (folder / ".eval_results").exists() and "datasets:" not in (folder / "README.md").read_text()


def test_arguments_of_the_architecture_are_kept(tmp_path: Path) -> None:
    model = pico(in_chans=1, layers=(1, 2, 1), drop_path_rate=0.2)
    cfg = {"tag": "grey", "input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)}
    folder = write(tmp_path / "w", model, pretrained_cfg=cfg, example=torch.randn(2, 1, 28, 28))
    assert read_config(folder)["model_args"] == {"in_chans": 1, "layers": [1, 2, 1]}  # drop path is the run's affair
    assert check_folder(folder) == []
    with pytest.raises(ValueError, match="plain values only"):
        write(tmp_path / "v", timm.create_model("test_resnet", act_layer=nn.SiLU), "test_resnet")


def test_any_device_state_and_wrapper(tmp_path: Path) -> None:
    for i, model in enumerate((pico().double(), pico().to(memory_format=torch.channels_last), torch.compile(pico()))):
        assert check_folder(write(tmp_path / str(i), model)) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "file_size"),
        (lambda f: flip(f / "model.safetensors"), "sha256"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "damaged"),
        (lambda f: (f / "config.json").write_text("[]"), "architecture"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: edit(f, architecture="acmix_resnet99"), "acmix_resnet99"),
        (lambda f: edit(f, architecture="acmix_swin_pico"), "missing"),
        (lambda f: shutil.rmtree(f / "test"), "does not hold an input and its logits"),
        (lambda f: move_logits(f), "differ from the stored ones"),
    ],
)
def test_damage_is_found(tmp_path: Path, damage, message: str) -> None:
    folder = write(tmp_path / "w")
    assert check_folder(folder) == []
    damage(folder)
    assert message in " ".join(check_folder(folder))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def move_logits(folder: Path) -> None:
    example = safetensors.torch.load_file(folder / "test" / "example.safetensors")
    example["logits"][0, 0] += example["logits"].abs().max() * 1e-3
    safetensors.torch.save_file(example, folder / "test" / "example.safetensors")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no colour, mood. Put them into the record instead"):
        write(tmp_path / "w", pretrained_cfg={**CFG, "mood": 1, "colour": 2})
    with pytest.raises(ValueError, match="2 label_names were given for 10 classes"):
        write(tmp_path / "w", pretrained_cfg={**CFG, "label_names": ["a", "b"]})
    with pytest.raises(ValueError, match="would not verify"):  # config.json would not build this network
        write(tmp_path / "w", pico(num_classes=10), "acmix_swin_pico")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="not a weight folder"):
        write(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    assert os.listdir(tmp_path) == ["mine"]


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    folder = write(tmp_path / "weights")
    return folder, contents(folder)


def test_an_old_folder_is_replaced(old) -> None:
    folder, before = old
    (folder / "notes.txt").write_text("of the old weights")
    write(folder)
    assert contents(folder)["model.safetensors"] != before["model.safetensors"]
    assert "notes.txt" not in contents(folder) and check_folder(folder) == []
    assert os.listdir(folder.parent) == ["weights"]


def test_full_disk(old) -> None:
    """The kernel refuses to write more than a megabyte to a file, as a full disk would."""
    folder, before = old
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match=r"could not be written.*Whatever was there before is unchanged") as caught:
            write(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert contents(folder) == before and os.listdir(folder.parent) == ["weights"]


def test_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        folder = write(disk / "weights")
        before = contents(folder)
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 500_000))
        with pytest.raises(OSError, match="No space left on device") as caught:
            write(folder)
        assert caught.value.errno == errno.ENOSPC
        assert contents(folder) == before and sorted(os.listdir(disk)) == ["ballast", "weights"]
        assert check_folder(folder) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("step", range(5))
def test_interrupt(old, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    folder, before = old
    count, fsync = iter(range(100)), os.fsync

    def interrupted(descriptor: int) -> None:
        if next(count) == step:
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(folder)
    assert contents(folder) == before and os.listdir(folder.parent) == ["weights"]


def test_failing_exchange(old, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, before = old
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.startswith(".weights."):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write(folder)
    assert contents(folder) == before and os.listdir(folder.parent) == ["weights"]


@pytest.mark.parametrize("is_new", [True, False])
def test_another_process_takes_the_place_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """Three times in a row, another process puts its own folder in place just before the new one is moved there."""
    folder, others = tmp_path / "weights", [write(tmp_path / f"other{i}") for i in range(3)]
    if not is_new:
        write(folder)
    model, rename = pico(), Path.rename

    def racing(self: Path, target: Path) -> Path:
        if target == folder and others:
            rename(others.pop(), folder)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", racing)
    write(folder, model)
    assert not others and os.listdir(tmp_path) == ["weights"] and check_folder(folder) == []
    assert torch.equal(create_model(folder).fc.weight, model.fc.weight)


def test_many_fill_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acmix_zoo.weights.replace.check_folder", lambda folder: [])  # only the moving is tested

    def fill(number: int) -> None:
        for i in range(50):
            with temporary_sibling(tmp_path / "weights") as new:
                for name in ("config.json", "model.safetensors"):
                    (new / name).write_text(f"{number} {i}")
                replace_folder(tmp_path / "weights", new)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, range(4)))
    found = contents(tmp_path / "weights")
    assert len(found) == 2 and found["config.json"] == found["model.safetensors"]
    assert os.listdir(tmp_path) == ["weights"]


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.safetensors", "model.pth", "best.ckpt"])
def test_a_file_is_not_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is the name of a .* file, but weights are written as a folder"):
        write(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_kill(old) -> None:
    """Killed in the middle of writing: the old folder still verifies."""
    folder, before = old
    code = (
        "import os, sys, timm, torch, acmix_zoo\n"
        "from acmix_zoo.weights import write_folder\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), 9)\n"
        "model = timm.create_model('acmix_resnet_pico')\n"
        "write_folder(sys.argv[1], model, architecture='acmix_resnet_pico', pretrained_cfg={}, record={},"
        " example=torch.zeros(1, 3, 32, 32))\n"
    )
    result = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == -9, result.stderr
    assert contents(folder) == before and check_folder(folder) == []
