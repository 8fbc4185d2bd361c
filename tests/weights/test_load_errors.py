"""Checkpoints that cannot be loaded, and code in them, leave the module unchanged and get an error with advice."""

import argparse
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from support.checkpoints import add_prefix, authors_layer, pico
from torch import nn

from acmix_zoo import ACmix2d, create_model, load_weights


def test_pickled_numpy_arrays_are_rejected_with_advice(tmp_path: Path) -> None:
    """Unpickling arrays would run code of NumPy, so they are only read as placeholders."""
    torch.save({key: value.numpy() for key, value in ACmix2d(8, 8).state_dict().items()}, tmp_path / "arrays.pth")
    with pytest.raises(ValueError, match=r"Expected named tensors, found: .* save them with np\.savez"):
        load_weights(ACmix2d(8, 8), tmp_path / "arrays.pth")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"broken\.npz .* is damaged or not a checkpoint"):
        load_weights(ACmix2d(8, 8), tmp_path / "broken.npz")


class CreatesFile:
    """An object that creates a file if it is unpickled without safeguards."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": pico().state_dict(), "extra": CreatesFile(tmp_path / "harm")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth was rejected.*Path.*weights_only=False and pass the state dict"):
        load_weights(pico(), tmp_path / "evil.pth")
    old = {"model": pico().state_dict(), "args": argparse.Namespace(), "extra": CreatesFile(tmp_path / "harm")}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("evil.pth", "old.pth"):  # the error names the dangerous class, and not the harmless one
        with pytest.raises(ValueError, match=r"it contains [^,]*(getattr|Path)") as caught:
            load_weights(pico(), tmp_path / name)
        assert "Namespace" not in str(caught.value)
    torch.save(pico(), tmp_path / "module.pth")  # a pickled module instead of a state dict
    with pytest.raises(ValueError, match=r"rejected.*ACmixResNet"):
        load_weights(pico(), tmp_path / "module.pth")
    assert not (tmp_path / "harm").exists()


def refusal(module: nn.Module, source: object, **kwargs) -> str:
    """Return the message with which the source is refused, and assert that the module was not changed."""
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_weights(module, source, **kwargs)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    return str(caught.value)


class TestMismatch:
    def test_a_different_number_of_classes_is_rejected(self) -> None:
        lines = refusal(pico(1, num_classes=10), pico(2, num_classes=7).state_dict()).splitlines()
        assert len(lines) == 3
        assert "the state dict does not fit ACmixResNet" in lines[0] and "missing 0 of" in lines[0]
        assert lines[1] == "unexpected 0 keys: none"
        assert lines[2] == (
            "shapes differ 2: fc.weight (10, 512) here, (7, 512) there, fc.bias (10,) here, (7,) there; "
            "nothing was loaded"
        )

    def test_a_different_model_is_rejected(self, tmp_path: Path) -> None:
        safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.safetensors")
        message = refusal(pico(), tmp_path / "resnet18.safetensors")
        assert message.count("\n") == 2 and len(message) < 1000
        assert "resnet18.safetensors does not fit ACmixResNet" in message and "more" in message
        refusal(create_model("acmix_swin_pico"), pico().state_dict())
        refusal(ACmix2d(8, 8), pico().state_dict())
        refusal(pico(), authors_layer(0))

    def test_missing_and_unexpected_keys_are_listed(self) -> None:
        state = pico(2).state_dict()
        state["fc.extra"] = state.pop("fc.bias")
        lines = refusal(pico(1), state).splitlines()
        assert lines[0].endswith(": fc.bias") and lines[1] == "unexpected 1 keys: fc.extra"

    def test_several_networks_in_one_checkpoint_are_rejected(self) -> None:
        state, second = pico(2).state_dict(), pico(3).state_dict()
        message = refusal(pico(1), {**add_prefix("teacher.", state), **add_prefix("student.", second)})
        assert (
            "several complete networks, under the prefixes student., teacher." in message
            and "Pass the state dict of the one" in message
        )
        assert "under the prefixes encoder., model." in refusal(
            pico(1), {**add_prefix("model.", state), **add_prefix("encoder.", second)}
        )
        same_tensors_twice = {**add_prefix("model.", state), **add_prefix("net.", state)}
        shared = load_weights(pico(1), same_tensors_twice)
        assert torch.equal(shared.fc.weight, state["fc.weight"])
        assert "several entries with tensors: a, b" in refusal(pico(1), {"a": state, "b": state})

    def test_non_strict_loading_warns_and_loads_what_fits(self) -> None:
        source, target = pico(2, num_classes=7), pico(1, num_classes=10)
        initial = target.fc.weight.clone()
        with pytest.warns(UserWarning, match="shapes differ 2: fc.weight") as caught:
            load_weights(target, source.state_dict(), strict=False)
        assert caught[0].filename == __file__
        assert torch.equal(target.fc.weight, initial) and torch.equal(
            target.layer1[0].conv1.weight, source.layer1[0].conv1.weight
        )
        assert "0 keys match" in refusal(target, {"something.else": torch.ones(3)}, strict=False)

    def test_a_file_without_a_classifier_warns(self, tmp_path: Path) -> None:
        """Unless a new classifier is wanted, a random one would go unnoticed."""
        state = {k: v for k, v in pico().state_dict().items() if not k.startswith("fc.")}
        torch.save(state, tmp_path / "backbone.pth")
        with pytest.warns(UserWarning, match=r"backbone\.pth has no weights for the classifier of acmix_resnet_pico"):
            create_model("acmix_resnet_pico", pretrained=str(tmp_path / "backbone.pth"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            create_model("acmix_resnet_pico", pretrained=str(tmp_path / "backbone.pth"), num_classes=3)

    def test_a_complete_match_gives_no_warning(self, recwarn: pytest.WarningsRecorder) -> None:
        load_weights(pico(1), pico(2).state_dict())
        assert not [w for w in recwarn if "load_weights" in str(w.message)]


class TestBadFiles:
    def test_missing_files_are_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist"):
            load_weights(pico(), tmp_path / "nowhere.pth")
        with pytest.raises(FileNotFoundError, match=r"is a folder without weights"):
            load_weights(pico(), tmp_path)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02}q\x00.", None])
    def test_damaged_files_are_rejected(self, tmp_path: Path, suffix: str, content: bytes | None) -> None:
        path = tmp_path / f"weights{suffix}"
        state = pico(2).state_dict()
        if content is None:  # an incomplete download
            safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
            content = path.read_bytes()[: path.stat().st_size // 2]
        path.write_bytes(content)
        assert "weights" + suffix in refusal(pico(1), path)

    def test_files_without_weights_are_rejected(self, tmp_path: Path) -> None:
        torch.save({"epoch": 3, "best": 0.5}, tmp_path / "empty.pth")
        assert "contains no weights" in refusal(pico(), tmp_path / "empty.pth")
        assert "found: nothing" in refusal(pico(), {})
        torch.save(torch.ones(3), tmp_path / "tensor.pth")
        assert "found: Tensor" in refusal(pico(), tmp_path / "tensor.pth")
