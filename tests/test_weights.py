"""The weight folder: what is written, that it proves itself, and that no failure loses what was there."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import acmix_zoo
from acmix_zoo.weights import check_folder, create_model, list_models, read_config, write_folder
from acmix_zoo.weights.card import render_card

ROOT = Path(__file__).resolve().parent.parent
CFG = {"tag": "shapes", "input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
RECORD = {
    "metrics": [{"dataset": "fashion_mnist", "split": "test", "name": "top1", "value": 0.93125}],
    "recipe": "recipes/shapes.yaml",
    "command": "acmix-zoo fit --config recipes/shapes.yaml | tee log",
    "dataset": {"name": "fashion_mnist", "fingerprint": "0a1b"},
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


def first_conv(model: nn.Module) -> nn.Module:
    return model.get_submodule(model.pretrained_cfg["first_conv"])


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
    assert "shapes.yaml \\| tee log" in card  # a bar would end the table's cell
    from huggingface_hub import parse_eval_result_entries
    from yaml import safe_load

    [entry] = parse_eval_result_entries(safe_load(next((folder / ".eval_results").iterdir()).read_text()))
    assert (entry.dataset_id, entry.value) == ("zalando-datasets/fashion_mnist", 0.93125)
    assert safe_load(card.split("---")[1])["tags"] == ["image-classification", "timm", "acmix"]


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
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: edit(f, architecture="acmix_resnet99"), "acmix_resnet99"),
        (lambda f: edit(f, architecture="acmix_swin_pico"), "missing"),
        (lambda f: shutil.rmtree(f / "test"), "no input and logits"),
        (lambda f: move_logits(f), "away from the stored"),
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
    with pytest.raises(ValueError, match=r"no colour, mood; put them into the record"):
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
        with pytest.raises(OSError, match=r"could not be written.*what was there is unchanged") as caught:
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


class TestCreate:
    def test_names(self) -> None:
        names = list_models()
        assert {"acmix_resnet_pico", "acmix_swin_pico", "acmix_resnet50", "acmix_swin_t"} <= set(names)
        assert all(name.startswith("acmix_") for name in names)
        assert list_models("*swin*") == [name for name in names if "swin" in name]
        assert all("." in name for name in list_models(pretrained=True))
        assert acmix_zoo.create_model is create_model and acmix_zoo.list_models is list_models

    def test_any_timm_model(self) -> None:
        assert create_model("test_resnet", num_classes=4).num_classes == 4

    @pytest.mark.parametrize(
        ("name", "pretrained", "message"),
        [
            ("acmix_resnet_pic", False, "did you mean acmix_resnet_pico"),
            ("acmix_resnet_pic.fashion_mnist", True, "did you mean acmix_resnet_pico"),
            ("acmix_resnet51", False, "acmix_resnet50"),
            ("resnet_50", False, "resnet50"),
            ("zzzzzz", False, "known: acmix_"),
            ("acmix_swin_t", True, "no weights for acmix_swin_t; models with weights"),
            ("acmix_swin_t.of_nobody", False, "no tag 'of_nobody'"),
            ("acmix_swin_t", "of_nobody", "no tag 'of_nobody'"),
        ],
    )
    def test_unknown(self, name: str, pretrained: bool | str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            create_model(name, pretrained)

    def test_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = write(tmp_path / "w")
        monkeypatch.chdir(tmp_path)
        first = next(create_model(folder).parameters())
        for name, pretrained in (
            ("w", False),
            ("./w", True),
            ("acmix_resnet_pico", "w"),
            ("acmix_resnet_pico", folder),
        ):
            assert torch.equal(next(create_model(name, pretrained).parameters()), first)
        file = folder / "model.safetensors"
        assert torch.equal(next(create_model("acmix_resnet_pico", str(file)).parameters()), first)
        with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
            create_model("acmix_resnet_pico", "./nowhere")
        with pytest.raises(FileNotFoundError, match=r"no config\.json"):
            create_model(str(tmp_path))
        with pytest.raises(ValueError, match="both name weights"):
            create_model(folder, folder)
        with pytest.raises(ValueError, match="holds weights of acmix_resnet_pico, not of acmix_swin_pico"):
            create_model("acmix_swin_pico", folder)
        with pytest.raises(ValueError, match=r"does not fit ACmixSwin.*missing"):
            create_model("acmix_swin_pico", file)

    @pytest.mark.parametrize("source", ["folder", "file"])
    def test_another_number_of_classes(self, tmp_path: Path, source: str) -> None:
        folder = write(tmp_path / "w")
        path = folder if source == "folder" else folder / "model.safetensors"
        model, whole = create_model("acmix_resnet_pico", path, num_classes=3), create_model(folder)
        assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 3)
        own, theirs = model.state_dict(), whole.state_dict()
        same = [key for key in own if own[key].shape == theirs[key].shape]
        assert set(own) - set(same) == {"fc.weight", "fc.bias"}
        assert all(torch.equal(own[key], theirs[key]) for key in same)
        assert create_model("acmix_resnet_pico", path, num_classes=0)(torch.randn(2, 3, 32, 32)).shape == (2, 512)

    def test_features_and_channels(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "w")
        maps = create_model(folder, features_only=True).eval()(torch.randn(1, 3, 32, 32))
        whole = create_model(folder).eval()
        assert len(maps) > 2 and whole(torch.randn(1, 3, 32, 32)).shape == (1, 10)
        grey, colour = (first_conv(model).weight for model in (create_model(folder, in_chans=1), whole))
        torch.testing.assert_close(grey, colour.sum(1, keepdim=True))
        with pytest.raises(ValueError, match="features_only needs a weight folder"):
            create_model("acmix_resnet_pico", folder / "model.safetensors", features_only=True)


SHIPPED = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/config.json"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_weights(folder: Path) -> None:
    config = read_config(folder)
    assert check_folder(folder) == []
    assert config["acmix_zoo"]["name"] == folder.name
    assert (folder / "README.md").read_text() == render_card(config)
    assert config["acmix_zoo"]["file_size"] < 5_000_000
    assert folder.name in list_models(pretrained=True)
    model = create_model(config["architecture"], config["acmix_zoo"]["tag"])
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(torch.equal(value, stored[key].to(value.dtype)) for key, value in model.state_dict().items())
