"""Weight folders are not trusted: config.json is checked before anything is built, and no code is unpickled."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from support.weight_folders import ROOT, SHIPPED, damage_last_byte, edit_config

from acmix_zoo import create_model, from_pretrained
from acmix_zoo.weights import check_folder, read_config, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "theirs"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"architecture": "os.system"}, "'os.system', which is not a known model"),
        ({"architecture": "acmix_swin_t.official_in1k"}, "which is not a known model"),
        ({"architecture": "hf-hub:org/evil"}, "which is not a known model"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "model_args must not set checkpoint_path"),
        ({"model_args": {"pretrained_cfg_overlay": {"file": "/etc/passwd"}}}, "must not set pretrained_cfg_overlay"),
        ({"model_args": {"features_only": True, "cache_dir": "/"}}, "must not set cache_dir, features_only"),
        ({"model_args": {"heads": {"__reduce__": 1}}}, "heads=.* is not a plain value of a network"),
        ({"model_args": {"layers": [10**6, 1, 1]}}, "layers=.* is not a plain value of a network"),
        ({"model_args": {"layers": [60_000, 1, 1]}}, "are more blocks than model"),
        ({"model_args": {"layers": [[1], 1]}}, "layers=.* is not a plain value"),
        ({"model_args": {"planes": [65_536, 65_536, 65_536]}}, "does not fit ACmixResNet"),
        ({"num_classes": 10**9}, "does not fit ACmixResNet"),
        ({"num_classes": 2.5}, "num_classes is '2.5'. Expected a whole number of classes. Correct it"),
        ({"pretrained_cfg": {"input_size": 3}}, "input_size is '3'. Expected three positive whole numbers"),
        ({"pretrained_cfg": {"input_size": [3, 28]}}, "Expected three positive whole numbers"),
        ({"pretrained_cfg": {"mean": "0.5"}}, "mean is '0.5'. Expected a list of numbers"),
        ({"pretrained_cfg": {"first_conv": 7}}, "first_conv is '7'. Expected a layer"),
        ({"pretrained_cfg": {"fixed_input_size": "x"}}, "fixed_input_size is 'x'. Expected true or false"),
        ({"label_names": [1, 2]}, "Expected a list of strings"),
        ({"pretrained_cfg": {"evil": 1}}, "unknown keys in pretrained_cfg: evil"),
        ({"acmix_zoo": {"sha256": "0" * 64}}, "is changed or damaged: its sha256 is 0829fdd8"),
    ],
    ids=str,
)
def test_impossible_and_dangerous_configs_are_rejected(folder: Path, entries: dict[str, Any], message: str) -> None:
    """This happens before a network of that size is built, and nothing is deleted."""
    edit_config(folder, **entries)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for load in (from_pretrained, create_model):
        with pytest.raises(ValueError, match=message):
            load(folder)
    assert check_folder(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_another_description_of_the_weights_is_rejected(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"whose weights have their own\. To change single fields, pass pretrained_cfg_overlay"
    ):
        create_model(folder, pretrained_cfg={"mean": (0.5, 0.5, 0.5)})
    assert create_model(folder, pretrained_cfg_overlay={"crop_pct": 0.5}).pretrained_cfg["crop_pct"] == 0.5


def test_what_the_weights_do_not_state_is_that_of_their_network(folder: Path) -> None:
    """Such as the image size: 224 pixels, timm's general default, would cost 49 times as much as the network's own."""
    config = read_config(folder)
    for key in ("input_size", "mean", "std"):
        config["pretrained_cfg"].pop(key)
    (folder / "config.json").write_text(json.dumps(config))
    own = timm.get_pretrained_cfg(config["architecture"])
    for model in (from_pretrained(folder), create_model(folder, num_classes=3)):
        assert model.pretrained_cfg["input_size"] == own.input_size == (3, 32, 32)
        assert model.pretrained_cfg["mean"] == own.mean
        assert model.pretrained_cfg["license"] == "mit"  # the weights' own
        assert model.pretrained_cfg.get("test_input_size") is None


def test_a_network_has_the_licence_of_its_weights(folder: Path) -> None:
    """It goes with them into exports and the records of runs that start from them."""
    edit_config(folder, acmix_zoo={"license": "cc-by-nc-4.0"})
    for model in (from_pretrained(folder), create_model(folder, num_classes=3)):
        assert model.pretrained_cfg["license"] == "cc-by-nc-4.0"
    edit_config(folder, pretrained_cfg={"license": "apache-2.0"})  # a folder that timm wrote has no record
    config = read_config(folder)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "acmix_zoo"}))
    assert create_model(folder).pretrained_cfg["license"] == "apache-2.0"


def test_other_sources_in_a_config_are_ignored(folder: Path, tmp_path: Path) -> None:
    """timm would load from them. Here, the weights always come from the folder of the config."""
    evil = tmp_path / "evil.pth"
    torch.save({}, evil)
    edit_config(
        folder, pretrained_cfg={"file": str(evil), "url": "http://127.0.0.1:9/x", "hf_hub_id": "a/b", "source": "url"}
    )
    expected = create_model("acmix_resnet_pico", pretrained=True).state_dict()
    for model in (from_pretrained(folder), from_pretrained(folder, num_classes=3)):
        own = model.state_dict()
        assert all(torch.equal(own[key], expected[key]) for key in own if not key.startswith("fc."))


def test_damaged_configs_and_those_of_other_libraries_are_rejected(folder: Path) -> None:
    for text, message in (
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[]", "Expected the keys architecture and pretrained_cfg"),
        ('{"architecture": 1, "pretrained_cfg": {}}', "Expected the keys architecture"),
        (
            '{"architecture": "resnet18", "pretrained_cfg": {}, "model_args": []}',
            "expected a mapping under the key",
        ),
        ("x" * (17 * 2**20), r"is too large \(17825792 bytes\)"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            from_pretrained(folder)
        assert check_folder(folder)


@pytest.mark.parametrize("way", ["folder", "timm", "tag"])
def test_damaged_shipped_weights_are_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    damage_last_byte(folder / "model.safetensors")
    overlay = {"file": str(folder / "model.safetensors")}
    with pytest.raises(ValueError, match="is changed or damaged"):
        if way == "folder":
            from_pretrained(folder)
        elif way == "timm":
            timm.create_model(f"local-dir:{folder}", pretrained=True)
        else:
            timm.create_model("acmix_resnet_pico", pretrained=True, pretrained_cfg_overlay=overlay)
    assert "sha256" in check_folder(folder)[0]


LARGE = ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"]


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
def test_a_folder_with_a_network_of_timm_is_loaded(tmp_path: Path, name: str) -> None:
    """A run of this project writes such a folder if it trains a network of timm."""
    model = timm.create_model(name, num_classes=3).eval()
    example = torch.randn(1, *model.pretrained_cfg["input_size"])
    folder = write_folder(tmp_path / name, model, architecture=name, pretrained_cfg={}, record={}, example=example)
    assert torch.equal(from_pretrained(folder).eval()(example), model(example))


def test_torch_load_always_uses_weights_only() -> None:
    """pickle, shelve, joblib and similar modules are not used at all."""
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
                if called == "super().load_from_checkpoint":  # an override, which passes on the argument of its caller
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


def test_a_safetensors_file_with_a_wrong_header_is_rejected(folder: Path) -> None:
    """Either the size of the header or the positions of tensors are wrong."""
    state = safetensors.torch.load_file(folder / "model.safetensors")
    good = safetensors.torch.save(state)
    for content in (b"\xff" * 8 + good[8:], good[:100], b"", good[:8] + good[8:].replace(b'"F32"', b'"F64"', 1)):
        (folder / "model.safetensors").write_bytes(content)
        edit_config(folder, acmix_zoo={"sha256": None})
        with pytest.raises(ValueError, match="is damaged or not safetensors"):
            from_pretrained(folder)
