"""A weight folder may come from anybody: what its config.json may say, and what is checked before anything is built."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from acmix_zoo import create_model, from_pretrained
from acmix_zoo.weights import check_folder, read_config

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "checkpoints" / "acmix_resnet_pico.fashion_mnist"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "theirs"))


def change(folder: Path, **entries: Any) -> None:
    """Set entries of config.json; a mapping is merged."""
    config = read_config(folder)
    for key, value in entries.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"architecture": "os.system"}, "'os.system', which is not a known model"),
        ({"architecture": "acmix_swin_t.official_in1k"}, "which is not a known model"),
        ({"architecture": "hf-hub:org/evil"}, "which is not a known model"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "model_args may not set checkpoint_path"),
        ({"model_args": {"pretrained_cfg_overlay": {"file": "/etc/passwd"}}}, "may not set pretrained_cfg_overlay"),
        ({"model_args": {"features_only": True, "cache_dir": "/"}}, "may not set cache_dir, features_only"),
        ({"model_args": {"heads": {"__reduce__": 1}}}, "heads=.* is not a plain value of a network"),
        ({"model_args": {"layers": [10**6, 1, 1]}}, "layers=.* is not a plain value of a network"),
        ({"model_args": {"layers": [60_000, 1, 1]}}, "are more blocks than its file has tensors"),
        ({"model_args": {"layers": [[1], 1]}}, "layers=.* is not a plain value"),
        ({"model_args": {"planes": [65_536, 65_536, 65_536]}}, "does not fit ACmixResNet"),
        ({"num_classes": 10**9}, "does not fit ACmixResNet"),
        ({"pretrained_cfg": {"evil": 1}}, "timm's pretrained_cfg has no evil"),
        ({"acmix_zoo": {"sha256": "0" * 64}}, "is not what .* describes: sha256 abca23be"),
    ],
    ids=str,
)
def test_what_a_config_may_not_say(folder: Path, entries: dict[str, Any], message: str) -> None:
    """It is refused before a network of that size is made, and nothing is deleted."""
    change(folder, **entries)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for load in (from_pretrained, create_model):
        with pytest.raises(ValueError, match=message):
            load(folder)
    assert check_folder(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_config_names_no_other_source(folder: Path, tmp_path: Path) -> None:
    """timm would follow these; here the weights are those beside the config."""
    evil = tmp_path / "evil.pth"
    torch.save({}, evil)
    change(
        folder, pretrained_cfg={"file": str(evil), "url": "http://127.0.0.1:9/x", "hf_hub_id": "a/b", "source": "url"}
    )
    expected = create_model("acmix_resnet_pico", pretrained=True).state_dict()
    for model in (from_pretrained(folder), from_pretrained(folder, num_classes=3)):
        own = model.state_dict()
        assert all(torch.equal(own[key], expected[key]) for key in own if not key.startswith("fc."))


def test_a_damaged_or_foreign_config(folder: Path) -> None:
    for text, message in (
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[]", "Expected the keys architecture and pretrained_cfg"),
        ('{"architecture": 1, "pretrained_cfg": {}}', "Expected the keys architecture"),
        (
            '{"architecture": "resnet18", "pretrained_cfg": {}, "model_args": []}',
            "expected a mapping under the key",
        ),
        ("x" * (17 * 2**20), "has 17825792 bytes"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            from_pretrained(folder)
        assert check_folder(folder)


@pytest.mark.parametrize("way", ["folder", "timm", "tag"])
def test_shipped_weights_are_checked_too(folder: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    overlay = {"file": str(folder / "model.safetensors")}
    with pytest.raises(ValueError, match="was changed or damaged, and is not used"):
        if way == "folder":
            from_pretrained(folder)
        elif way == "timm":
            timm.create_model(f"local-dir:{folder}", pretrained=True)
        else:
            timm.create_model("acmix_resnet_pico", pretrained=True, pretrained_cfg_overlay=overlay)
    assert "sha256" in check_folder(folder)[0]


def test_the_record_is_checked(folder: Path) -> None:
    change(
        folder,
        acmix_zoo={"params": 5, "macs": 6, "metrics": [{"dataset": "d", "split": "s", "name": "top1", "value": 93}]},
    )
    problems = check_folder(folder)
    for words in (
        "top1 on d is 93; expected 0 to 1",
        "params: counted 653054, but config.json says 5",
        "macs: counted 10371584",
    ):
        assert any(words in problem for problem in problems)
    change(folder, acmix_zoo={"macs": None, "environment": "mine", "metrics": [3]})
    problems = check_folder(folder)
    for words in (
        "macs is None; expected int",
        "environment is 'mine'; expected dict",
        "metric 3 does not have",
    ):
        assert any(words in problem for problem in problems)


def test_timm_networks_too(tmp_path: Path) -> None:
    """The folder of a network of timm's, as a run of this project writes it."""
    from acmix_zoo.weights import write_folder

    for name in (
        "resnet18",
        "vit_tiny_patch16_224",
        "convnext_atto",
        "swin_tiny_patch4_window7_224",
        "mobilenetv3_small_050",
    ):
        model = timm.create_model(name, num_classes=3).eval()
        example = torch.randn(1, *model.pretrained_cfg["input_size"])
        folder = write_folder(tmp_path / name, model, architecture=name, pretrained_cfg={}, record={}, example=example)
        assert torch.equal(from_pretrained(folder).eval()(example), model(example))


def test_nothing_unpickles_but_weights_only() -> None:
    """`torch.load` always says so; pickle, shelve, joblib and their kind are not called at all."""
    for path in [ROOT / "hubconf.py", *(ROOT / "acmix_zoo").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("torch.load", "load") or called.endswith(
                (".load_from_checkpoint", ".load_state_dict_from_url")
            ):
                keywords = {k.arg: k.value for k in node.keywords}
                safe = isinstance(keywords.get("weights_only"), ast.Constant) and keywords["weights_only"].value is True
                assert safe or called != "torch.load", f"{path}:{node.lineno}: {called} without weights_only=True"
                if called == "super().load_from_checkpoint":  # an override: it hands its caller's choice on
                    assert "weights_only" in keywords, f"{path}:{node.lineno}: {called} without weights_only"
                else:
                    assert called in ("torch.load", "load"), f"{path}:{node.lineno}: {called}"
            assert not called.startswith(
                ("pickle.load", "pickle.Unpickler", "shelve.", "joblib.", "dill.", "cloudpickle.")
            )
            assert called not in ("eval", "exec", "__import__"), f"{path}:{node.lineno}: {called}"
            if called in ("np.load", "numpy.load"):
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert options.get("allow_pickle") == "False", f"{path}:{node.lineno}: {called} may unpickle"


def test_a_safetensors_file_that_lies(folder: Path) -> None:
    """About its header's size, about its tensors' places."""
    state = safetensors.torch.load_file(folder / "model.safetensors")
    good = safetensors.torch.save(state)
    for content in (b"\xff" * 8 + good[8:], good[:100], b"", good[:8] + good[8:].replace(b'"F32"', b'"F64"', 1)):
        (folder / "model.safetensors").write_bytes(content)
        change(folder, acmix_zoo={"sha256": None})
        with pytest.raises(ValueError, match="is damaged or not safetensors"):
            from_pretrained(folder)
