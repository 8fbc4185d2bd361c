"""`load_weights` reads every kind of checkpoint, and explains why one does not fit."""

import argparse
import shutil
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support.checkpoints import add_prefix, authors_layer, pico
from torch import Tensor, nn

from acmix_zoo import ACmix2d, create_model, load_weights
from acmix_zoo.weights import authors, write_folder

NAME = "acmix_resnet_pico"


def have_same_weights(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def zeros_for(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(value) for key, value in state.items()}


CHECKPOINTS = {
    "state dict": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3},
    "state_dict": lambda s: {"state_dict": s, "optimizer": {"lr": 0.1}},
    "nested": lambda s: {"model": {"state_dict": s}},
    "ddp": lambda s: add_prefix("module.", s),
    "compiled": lambda s: {"model": add_prefix("_orig_mod.", s)},
    "compiled ddp": lambda s: add_prefix("module._orig_mod.", s),
    "lightning": lambda s: {
        "state_dict": {**add_prefix("model.", s), "criterion.weight": torch.ones(10)},
        "pytorch-lightning_version": "2.6.6",
    },
    "pytorch's tutorial": lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": {"state": {}}},
    "net": lambda s: {"net": add_prefix("module.", s), "acc": 93.0, "epoch": 3},
    "network": lambda s: {"network": s, "iteration": torch.tensor(3)},
    "ema with its settings": lambda s: {"ema": {"module": s, "updates": 7}, "model": zeros_for(s)},
    "ema without tensors": lambda s: {"ema": {"decay": 0.9}, "model": s},
    "unknown entry": lambda s: {"weights_of_mine": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "module in a model": lambda s: add_prefix("module.model.", s),
    "backbone in a compiled network": lambda s: {"state_dict": add_prefix("_orig_mod.network.backbone.", s)},
    "encoder": lambda s: {**add_prefix("encoder.", s), "decoder.weight": torch.ones(3)},
    "net in ddp": lambda s: {"model": add_prefix("module.net.", s)},
    "unknown attribute": lambda s: {**add_prefix("my_cnn.", s), "loss.weight": torch.ones(10)},
    "compiled blocks": lambda s: {key.replace("layer1.", "layer1._orig_mod."): value for key, value in s.items()},
    "timm ema": lambda s: {"state_dict": zeros_for(s), "state_dict_ema": s, "args": argparse.Namespace(lr=0.1)},
    "settings of an average": lambda s: {"state_dict": s, "ema": {"decay": torch.tensor(0.99)}},
    "torchvision ema": lambda s: {
        "model": zeros_for(s),
        "model_ema": {**add_prefix("module.", s), "n_averaged": torch.tensor(7)},
    },
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_are_loaded_as_a_dict_and_as_a_file(tmp_path: Path, kind: str) -> None:
    source = pico(1)
    checkpoint = CHECKPOINTS[kind](source.state_dict())
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    for given in (checkpoint, tmp_path / "checkpoint.pth", str(tmp_path / "checkpoint.pth")):
        target = pico(2)
        assert not have_same_weights(source, target)
        assert load_weights(target, given) is target
        assert have_same_weights(source, target)


def test_safetensors_and_weight_folders_are_loaded(tmp_path: Path) -> None:
    source = pico(1)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    folder = write_folder(
        tmp_path / "w", source, architecture=NAME, pretrained_cfg={}, record={}, example=torch.randn(1, 3, 32, 32)
    )
    blob = Path(shutil.copy(tmp_path / "w.safetensors", tmp_path / "3f9a"))  # the Hub's cache names files by their hash
    for given in (tmp_path / "w.safetensors", blob, folder, folder / "model.safetensors"):
        assert have_same_weights(source, load_weights(pico(2), given))
    assert have_same_weights(source, load_weights(torch.compile(pico(2)), folder)._orig_mod)


@pytest.mark.parametrize("name", ["acmix_resnet_pico", "acmix_swin_pico", "acmix_pvt_pico", "acmix_san_pico"])
def test_backbones_get_the_weights_of_a_classifier(name: str) -> None:
    """timm wraps some networks, so that their keys have a prefix."""
    classifier, image = create_model(name).eval(), torch.randn(1, 3, 32, 32)
    backbone = load_weights(create_model(name, features_only=True).eval(), classifier.state_dict())
    expected = classifier.forward_intermediates(image, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(backbone(image), expected[-len(backbone(image)) :], strict=True))
    with pytest.raises(ValueError, match="nothing was loaded"):
        load_weights(create_model(name, features_only=True), {"fc.weight": classifier.get_classifier().weight})


def test_backbones_refuse_weights_of_a_deeper_network() -> None:
    size = {"img_size": 32, "window_size": 2, "embed_dim": 16, "num_heads": (1, 2)}
    backbone = create_model("acmix_swin_t", features_only=True, depths=(1, 1), **size)
    deeper = create_model("acmix_swin_t", depths=(1, 2), **size).state_dict()
    with pytest.raises(ValueError, match=r"unexpected .* layers\.1\.blocks\.1"):
        load_weights(backbone, deeper)
    load_weights(create_model("acmix_swin_t", features_only=True, depths=(1, 2), out_indices=(0,), **size), deeper)


def test_a_part_whose_names_occur_in_other_parts_is_found_by_its_shapes() -> None:
    source, target = pico(1), pico(2)
    load_weights(target.layer1, source.state_dict())
    assert have_same_weights(source.layer1, target.layer1) and not have_same_weights(source.layer2, target.layer2)


def test_the_dtype_of_the_module_is_kept(tmp_path: Path) -> None:
    state = {key: v.half() if v.is_floating_point() else v for key, v in pico(1).state_dict().items()}
    target = load_weights(pico(2), state)
    assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in target.state_dict().items())
    assert target.fc.weight.dtype == torch.float32


def test_averaged_weights_of_lightning_are_preferred(tmp_path: Path) -> None:
    """They are the ones that Lightning evaluated. The checkpoint is a real one."""
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


def test_a_layer_of_the_authors_code_is_loaded(tmp_path: Path) -> None:
    state = authors_layer(0)
    torch.save({"model": state}, tmp_path / "layer.pth")
    layer = load_weights(ACmix2d(8, 8), tmp_path / "layer.pth")
    expected = authors.translate_authors(state, layer)
    assert all(torch.equal(value, expected[key].reshape(value.shape)) for key, value in layer.state_dict().items())
    assert layer.alpha.item() == state["rate1"].item() and layer.beta.item() == state["rate2"].item()
    wrong = {**state, "dep_conv.weight": torch.randn(8, 9, 5, 5)}
    with pytest.raises(ValueError, match=r"shapes differ 1: shift_conv.*\(8, 9, 3, 3\) here, \(8, 9, 5, 5\) there"):
        load_weights(layer, wrong)


def test_pickled_settings_of_an_unknown_class_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swin's trainer pickles a yacs CfgNode together with the weights, which is read as a plain dict."""
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
def test_pickled_values_of_known_classes_are_ignored(tmp_path: Path, kind: str, zipped: bool) -> None:
    """Both the current file format and the one before torch 1.6 are read."""
    layer = ACmix2d(8, 8)
    checkpoint = {"model_state_dict": layer.state_dict(), "best": SETTINGS[kind]}
    torch.save(checkpoint, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    loaded = load_weights(ACmix2d(8, 8), tmp_path / "c.pth")
    assert torch.equal(loaded.qkv.weight, layer.qkv.weight)


@pytest.mark.parametrize("entry", [None, "model_state_dict"])
def test_numpy_arrays_are_loaded(tmp_path: Path, entry: str | None) -> None:
    layer = ACmix2d(8, 8)
    arrays = {key: value.numpy() for key, value in layer.state_dict().items()}
    sources: list[Any] = [{entry: arrays} if entry else arrays]
    if entry is None:
        np.savez(tmp_path / "layer.npz", **arrays)
        sources.append(tmp_path / "layer.npz")
        sources.append({key: value.astype(">f4") for key, value in arrays.items()})  # big-endian
    for source in sources:
        loaded = load_weights(ACmix2d(8, 8), source)
        assert all(torch.equal(value, layer.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_position_tables_of_a_different_window_size_are_resized() -> None:
    """The checkpoint filter of the Swin does this. All other weights are loaded unchanged."""
    source, target = create_model("acmix_swin_pico", window_size=4), create_model("acmix_swin_pico", window_size=8)
    loaded = load_weights(target, source.state_dict())
    tables = [key for key, value in source.state_dict().items() if value.shape != loaded.state_dict()[key].shape]
    assert tables and all("bias_table" in key for key in tables)
    for key, value in source.state_dict().items():
        assert key in tables or torch.equal(loaded.state_dict()[key], value)


def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path) -> None:
    safetensors.torch.save_file(pico().state_dict(), tmp_path / "W.SAFETENSORS")
    assert create_model(NAME, pretrained=str(tmp_path / "W.SAFETENSORS")).num_classes == 10


def test_several_threads_read_checkpoints(tmp_path: Path) -> None:
    model = pico()
    torch.save({"state_dict": model.state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    with ThreadPoolExecutor(6) as pool:
        loaded = list(pool.map(lambda _: load_weights(create_model(NAME), tmp_path / "w.pth"), range(24)))
    assert all(have_same_weights(other, model) for other in loaded)
