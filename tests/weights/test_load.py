"""load_weights: every kind of source, and what it says when a source does not fit."""

import argparse
import sys
import types
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from acmix_zoo import ACmix2d, create_model, load_weights
from acmix_zoo.weights import authors, write_folder

NAME = "acmix_resnet_pico"


def pico(seed: int = 1, **kwargs) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(NAME, **kwargs)


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(value) for key, value in state.items()}


CHECKPOINTS = {
    "state dict": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3},
    "state_dict": lambda s: {"state_dict": s, "optimizer": {"lr": 0.1}},
    "nested": lambda s: {"model": {"state_dict": s}},
    "ddp": lambda s: prefixed("module.", s),
    "compiled": lambda s: {"model": prefixed("_orig_mod.", s)},
    "compiled ddp": lambda s: prefixed("module._orig_mod.", s),
    "lightning": lambda s: {
        "state_dict": {**prefixed("model.", s), "criterion.weight": torch.ones(10)},
        "pytorch-lightning_version": "2.6.6",
    },
    "pytorch's tutorial": lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": {"state": {}}},
    "net": lambda s: {"net": prefixed("module.", s), "acc": 93.0, "epoch": 3},
    "network": lambda s: {"network": s, "iteration": torch.tensor(3)},
    "ema with its settings": lambda s: {"ema": {"module": s, "updates": 7}, "model": other(s)},
    "ema without tensors": lambda s: {"ema": {"decay": 0.9}, "model": s},
    "another entry": lambda s: {"weights_of_mine": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "module in a model": lambda s: prefixed("module.model.", s),
    "backbone in a compiled network": lambda s: {"state_dict": prefixed("_orig_mod.network.backbone.", s)},
    "encoder": lambda s: {**prefixed("encoder.", s), "decoder.weight": torch.ones(3)},
    "net in ddp": lambda s: {"model": prefixed("module.net.", s)},
    "another attribute": lambda s: {**prefixed("my_cnn.", s), "loss.weight": torch.ones(10)},
    "compiled blocks": lambda s: {key.replace("layer1.", "layer1._orig_mod."): value for key, value in s.items()},
    "timm ema": lambda s: {"state_dict": other(s), "state_dict_ema": s, "args": argparse.Namespace(lr=0.1)},
    "torchvision ema": lambda s: {
        "model": other(s),
        "model_ema": {**prefixed("module.", s), "n_averaged": torch.tensor(7)},
    },
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(tmp_path: Path, kind: str) -> None:
    source = pico(1)
    checkpoint = CHECKPOINTS[kind](source.state_dict())
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    for given in (checkpoint, tmp_path / "checkpoint.pth", str(tmp_path / "checkpoint.pth")):
        target = pico(2)
        assert not same(source, target)
        assert load_weights(target, given) is target
        assert same(source, target)


def test_safetensors_and_weight_folder(tmp_path: Path) -> None:
    source = pico(1)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    folder = write_folder(
        tmp_path / "w", source, architecture=NAME, pretrained_cfg={}, record={}, example=torch.randn(1, 3, 32, 32)
    )
    for given in (tmp_path / "w.safetensors", folder, folder / "model.safetensors"):
        assert same(source, load_weights(pico(2), given))
    assert same(source, load_weights(torch.compile(pico(2)), folder)._orig_mod)


def test_dtype_of_the_module_is_kept(tmp_path: Path) -> None:
    state = {key: v.half() if v.is_floating_point() else v for key, v in pico(1).state_dict().items()}
    target = load_weights(pico(2), state)
    assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in target.state_dict().items())
    assert target.fc.weight.dtype == torch.float32


def test_lightning_with_averaged_weights(tmp_path: Path) -> None:
    """A real checkpoint of Lightning: the averaged weights are the ones that were evaluated."""
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"model": NAME})
            self.model = pico(1)

        def training_step(self, batch: list[Tensor]) -> Tensor:
            return self.model(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(6, 3, 32, 32)), batch_size=2)
    task, average = Task(), EMAWeightAveraging(decay=0.5)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[average], default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, data)
    [checkpoint] = (tmp_path / "checkpoints").glob("*.ckpt")
    stored = torch.load(checkpoint, weights_only=True)
    loaded = load_weights(pico(2), checkpoint)
    assert all(torch.equal(v, stored["state_dict"]["model." + key]) for key, v in loaded.state_dict().items())
    assert not torch.equal(loaded.fc.weight, stored["current_model_state"]["model.fc.weight"])


def authors_layer(seed: int, channels: int = 8, heads: int = 4) -> dict[str, Tensor]:
    """A single layer under the authors' names."""
    generator = torch.Generator().manual_seed(seed)
    d = channels // heads
    shapes = {
        **{f"conv{i}.weight": (channels, channels, 1, 1) for i in (1, 2, 3)},
        **{f"conv{i}.bias": (channels,) for i in (1, 2, 3)},
        "conv_p.weight": (d, 2, 1, 1),
        "conv_p.bias": (d,),
        "fc.weight": (9, 3 * heads, 1, 1),
        "dep_conv.weight": (channels, 9, 3, 3),
        "rate1": (1,),
        "rate2": (1,),
    }
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def test_a_layer_of_the_authors(tmp_path: Path) -> None:
    state = authors_layer(0)
    torch.save({"model": state}, tmp_path / "layer.pth")
    layer = load_weights(ACmix2d(8, 8), tmp_path / "layer.pth")
    expected = authors.translate_authors(state, layer)
    assert all(torch.equal(value, expected[key].reshape(value.shape)) for key, value in layer.state_dict().items())
    assert layer.alpha.item() == state["rate1"].item() and layer.beta.item() == state["rate2"].item()
    wrong = {**state, "dep_conv.weight": torch.randn(8, 9, 5, 5)}
    with pytest.raises(ValueError, match=r"shapes differ 1: shift_conv.*\(8, 9, 3, 3\) here, \(8, 9, 5, 5\) there"):
        load_weights(layer, wrong)


def test_settings_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swin's trainer pickles a yacs CfgNode with the weights: it is read as an inert dict."""
    module = types.ModuleType("yacs.config")

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__, module.CfgNode = "yacs.config", "CfgNode", CfgNode
    config = CfgNode(MODEL=CfgNode(NAME="acmix_swin"))
    config.__dict__["__immutable__"] = True
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        torch.save({"model": authors_layer(1), "config": config, "max_accuracy": 81.9}, tmp_path / "swin.pth")
    layer = load_weights(ACmix2d(8, 8), tmp_path / "swin.pth")
    assert layer.alpha.item() == authors_layer(1)["rate1"].item()


SETTINGS = {
    "numpy scalar": np.float64(0.3),
    "numpy integer": np.int64(3),
    "numpy array": np.arange(3),
    "path": Path("runs/1"),
    "namespace with a path": argparse.Namespace(output=Path("runs/1"), lr=0.1),
    "version": torch.__version__,
    "time": datetime(2024, 1, 31),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", SETTINGS)
def test_values_beside_the_weights(tmp_path: Path, kind: str, zipped: bool) -> None:
    """This works in torch's current format and in the one before 1.6."""
    layer = ACmix2d(8, 8)
    checkpoint = {"model_state_dict": layer.state_dict(), "best": SETTINGS[kind]}
    torch.save(checkpoint, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    loaded = load_weights(ACmix2d(8, 8), tmp_path / "c.pth")
    assert torch.equal(loaded.qkv.weight, layer.qkv.weight)


@pytest.mark.parametrize("entry", [None, "model_state_dict"])
def test_numpy_arrays_are_read(tmp_path: Path, entry: str | None) -> None:
    layer = ACmix2d(8, 8)
    arrays = {key: value.numpy() for key, value in layer.state_dict().items()}
    sources: list[Any] = [{entry: arrays} if entry else arrays]
    if entry is None:
        np.savez(tmp_path / "layer.npz", **arrays)
        sources.append(tmp_path / "layer.npz")
        sources.append({key: value.astype(">f4") for key, value in arrays.items()})  # the other byte order
    for source in sources:
        loaded = load_weights(ACmix2d(8, 8), source)
        assert all(torch.equal(value, layer.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_pickled_numpy_arrays_are_explained(tmp_path: Path) -> None:
    """Reading them from a checkpoint would run NumPy's own code, so they are only placeholders there."""
    torch.save({key: value.numpy() for key, value in ACmix2d(8, 8).state_dict().items()}, tmp_path / "arrays.pth")
    with pytest.raises(ValueError, match=r"Expected named tensors, found: .* save them with np\.savez"):
        load_weights(ACmix2d(8, 8), tmp_path / "arrays.pth")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"broken\.npz .* is damaged or not a checkpoint"):
        load_weights(ACmix2d(8, 8), tmp_path / "broken.npz")


class Evil:
    """Unpickled the careless way, this would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_checkpoints_run_no_code(tmp_path: Path) -> None:
    torch.save({"model": pico().state_dict(), "extra": Evil(tmp_path / "harm")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth was refused.*Path.*weights_only=False and pass the state dict"):
        load_weights(pico(), tmp_path / "evil.pth")
    old = {"model": pico().state_dict(), "args": argparse.Namespace(), "extra": Evil(tmp_path / "harm")}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("evil.pth", "old.pth"):  # the class that is refused is named, and no harmless one
        with pytest.raises(ValueError, match=r"contains objects of [^,]*(getattr|Path)") as caught:
            load_weights(pico(), tmp_path / name)
        assert "Namespace" not in str(caught.value)
    torch.save(pico(), tmp_path / "module.pth")  # a whole pickled module
    with pytest.raises(ValueError, match=r"refused.*ACmixResNet"):
        load_weights(pico(), tmp_path / "module.pth")
    assert not (tmp_path / "harm").exists()


def refused(module: nn.Module, source: object, **kwargs) -> str:
    """The message of an error that changed nothing."""
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_weights(module, source, **kwargs)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    return str(caught.value)


class TestMismatch:
    def test_number_of_classes(self, tmp_path: Path) -> None:
        lines = refused(pico(1, num_classes=10), pico(2, num_classes=7).state_dict()).splitlines()
        assert len(lines) == 3
        assert "the state dict does not fit ACmixResNet" in lines[0] and "missing 0 of" in lines[0]
        assert lines[1] == "unexpected 0 keys: none"
        assert lines[2] == (
            "shapes differ 2: fc.weight (10, 512) here, (7, 512) there, fc.bias (10,) here, (7,) there; "
            "nothing was loaded"
        )

    def test_another_model(self, tmp_path: Path) -> None:
        safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.safetensors")
        message = refused(pico(), tmp_path / "resnet18.safetensors")
        assert message.count("\n") == 2 and len(message) < 1000
        assert "resnet18.safetensors does not fit ACmixResNet" in message and "more" in message
        refused(create_model("acmix_swin_pico"), pico().state_dict())
        refused(ACmix2d(8, 8), pico().state_dict())
        refused(pico(), authors_layer(0))

    def test_missing_and_unexpected(self) -> None:
        state = pico(2).state_dict()
        state["fc.extra"] = state.pop("fc.bias")
        lines = refused(pico(1), state).splitlines()
        assert lines[0].endswith(": fc.bias") and lines[1] == "unexpected 1 keys: fc.extra"

    def test_several_networks(self) -> None:
        state, second = pico(2).state_dict(), pico(3).state_dict()
        message = refused(pico(1), {**prefixed("teacher.", state), **prefixed("student.", second)})
        assert (
            "the prefixes student., teacher. each give a complete network" in message
            and "pass the state dict of the one" in message
        )
        assert "the prefixes encoder., model. each give" in refused(
            pico(1), {**prefixed("model.", state), **prefixed("encoder.", second)}
        )
        one_by_two_names = {**prefixed("model.", state), **prefixed("net.", state)}
        shared = load_weights(pico(1), one_by_two_names)
        assert torch.equal(shared.fc.weight, state["fc.weight"])
        assert "several entries with tensors: a, b" in refused(pico(1), {"a": state, "b": state})

    def test_not_strict(self) -> None:
        source, target = pico(2, num_classes=7), pico(1, num_classes=10)
        own = target.fc.weight.clone()
        with pytest.warns(UserWarning, match="shapes differ 2: fc.weight") as caught:
            load_weights(target, source.state_dict(), strict=False)
        assert caught[0].filename == __file__
        assert torch.equal(target.fc.weight, own) and torch.equal(
            target.layer1[0].conv1.weight, source.layer1[0].conv1.weight
        )
        assert "0 keys match" in refused(target, {"something.else": torch.ones(3)}, strict=False)

    def test_fits_is_silent(self, recwarn: pytest.WarningsRecorder) -> None:
        load_weights(pico(1), pico(2).state_dict())
        assert not [w for w in recwarn if "load_weights" in str(w.message)]


class TestBadFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist"):
            load_weights(pico(), tmp_path / "nowhere.pth")
        with pytest.raises(FileNotFoundError, match=r"is a folder without weights"):
            load_weights(pico(), tmp_path)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02}q\x00.", None])
    def test_damaged(self, tmp_path: Path, suffix: str, content: bytes | None) -> None:
        path = tmp_path / f"weights{suffix}"
        state = pico(2).state_dict()
        if content is None:  # a download that stopped half-way
            safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
            content = path.read_bytes()[: path.stat().st_size // 2]
        path.write_bytes(content)
        assert "weights" + suffix in refused(pico(1), path)

    def test_nothing_inside(self, tmp_path: Path) -> None:
        torch.save({"epoch": 3, "best": 0.5}, tmp_path / "empty.pth")
        assert "no weights in" in refused(pico(), tmp_path / "empty.pth")
        assert "found: nothing" in refused(pico(), {})
        torch.save(torch.ones(3), tmp_path / "tensor.pth")
        assert "found: Tensor" in refused(pico(), tmp_path / "tensor.pth")


def test_another_window_size() -> None:
    """The position tables of a Swin are resized, by the filter that stands beside the network."""
    source, target = create_model("acmix_swin_pico", window_size=4), create_model("acmix_swin_pico", window_size=8)
    loaded = load_weights(target, source.state_dict())
    tables = [key for key, value in source.state_dict().items() if value.shape != loaded.state_dict()[key].shape]
    assert tables and all("bias_table" in key for key in tables)
    for key, value in source.state_dict().items():
        assert key in tables or torch.equal(loaded.state_dict()[key], value)
