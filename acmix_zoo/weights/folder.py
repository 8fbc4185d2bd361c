"""The weight folder: written whole or not at all, and able to prove itself.

- config.json: timm's hub layout, and under `acmix_zoo` the record (metrics, recipe, command, sha256, environment)
- model.safetensors: the weights, float32 or float16
- README.md: the card, made from config.json
- test/example.safetensors: `input` (B, C, H, W) and the `logits` (B, classes) that these very weights give
- .eval_results/: the Hub's result files, for data sets that the Hub knows
"""

import copy
import dataclasses
import errno
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm
import torch
from timm.layers import to_2tuple
from timm.models import PretrainedCfg
from torch import Tensor, nn

from acmix_zoo.layers.complexity import complexity
from acmix_zoo.weights.card import render_card, render_eval_results
from acmix_zoo.weights.load import load_weights, unwrapped
from acmix_zoo.weights.verify import check_folder

# What a network keeps of the configuration it was built from; the rest described the weights that it started from.
_INHERITED = {"input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"}
_INHERITED |= {"first_conv", "classifier"}
# Arguments that config.json states elsewhere, or that belong to the training run.
_NOT_ARCHITECTURE = {"num_classes", "drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate"}

_TORCH = "For a file: torch.save(acmix_zoo.create_model(WEIGHTS).state_dict(), FILE)"
# File extensions that users may try, and how to create such a file from a weight folder or run folder.
_FILES = {
    ".onnx": "For ONNX: torch.onnx.export(acmix_zoo.create_model(WEIGHTS).eval(), (torch.zeros(1, 3, H, W),), FILE)",
    ".pt2": "For torch.export: torch.export.save(torch.export.export(MODEL, (torch.zeros(1, 3, H, W),)), FILE)",
    ".safetensors": "The safetensors file will be model.safetensors in that folder",
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), _TORCH),
}


def write_folder(
    folder: str | Path,
    model: nn.Module,
    *,
    architecture: str,
    pretrained_cfg: Mapping[str, Any],
    record: Mapping[str, Any],
    example: Tensor,
    half: bool = False,
) -> Path:
    """Write the weight folder of a model and verify it; a folder that was there is replaced only after that.

    Args:
        folder: where; its parents are made.
        model: the network, of any device, dtype and mode; it is not changed.
        architecture: timm name that builds it, together with the arguments that timm keeps on the model.
        pretrained_cfg: what is known about the weights, in timm's words: tag, mean, std, input_size, label_names, ...
            What is not given is taken from the network (first_conv, classifier, input_size, ...).
        record: what is known about their making: metrics [{dataset, split, name, value in 0..1}], recipe, command,
            dataset {name, ...}, seed, git_revision, origin, license, ...; counts and hashes are added here.
        example: (B, C, H, W) float32, normalised images; their logits are stored beside them.
        half: store float16.

    Returns:
        The folder.

    Raises:
        ValueError: unknown keys, or the folder would not give the model's logits back.
        FileExistsError: something that is not a weight folder is in the way. OSError: it could not be written.
    """
    folder = free_place(folder)
    model = unwrapped(model)
    dtype = torch.float16 if half else torch.float32
    state = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else None, copy=True).contiguous()
        for key, value in model.state_dict().items()
    }
    weights = safetensors.torch.save(state, {"format": "pt"})
    images = example.detach().to("cpu", torch.float32).contiguous()
    twin = copy.deepcopy(model).to("cpu", torch.float32).eval()
    load_weights(twin, state)
    with torch.no_grad():
        logits = twin(images)  # (B, classes), from the numbers as stored
    counted = complexity(twin.to("meta"), images.shape[1:])
    record = {"metrics": [], **record, "params": counted.params, "macs": counted.macs}
    config = _config(model, architecture, _network_cfg(twin, pretrained_cfg), record, weights)
    files = {
        "model.safetensors": weights,
        "test/example.safetensors": safetensors.torch.save({"input": images, "logits": logits.contiguous()}),
        "README.md": render_card(config).encode(),
        **{f".eval_results/{name}": text.encode() for name, text in render_eval_results(config).items()},
        "config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    _replace(folder, files)
    return folder


def _network_cfg(twin: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's pretrained_cfg of a network from what is known about its weights; `twin` is a meta-device copy."""
    unknown = sorted(given.keys() - {field.name for field in dataclasses.fields(PretrainedCfg)})
    if unknown:
        raise ValueError(f"write_folder: timm's pretrained_cfg has no {', '.join(unknown)}; put them into the record")
    own = getattr(twin, "pretrained_cfg", {})
    num_classes = int(twin.num_classes)  # type: ignore[arg-type]  # timm's contract
    cfg = {**{key: own[key] for key in _INHERITED if key in own}, **given, "num_classes": num_classes}
    labels = cfg.get("label_names")
    if labels is not None and len(labels) != num_classes:
        raise ValueError(f"write_folder: {len(labels)} label_names were given for {num_classes} classes")
    channels, *size = cfg.get("input_size") or (3, 224, 224)
    channels = getattr(twin, "in_chans", channels)
    if "input_size" not in given:  # `set_input_size` may have changed it since the network was built
        cfg["input_size"] = (channels, *to_2tuple(getattr(twin, "_model_args", {}).get("img_size", size)))
    for key in ("mean", "std"):
        values = tuple(cfg.get(key) or ())
        if values and key not in given and len(values) != channels:  # as timm does for other channels
            cfg[key] = values = (sum(values) / len(values),) * channels
        if cfg["input_size"][0] != channels or (values and len(values) != channels):
            raise ValueError(
                f"write_folder: the network has {channels} input channels, but input_size is "
                f"{tuple(cfg['input_size'])} and {key} is {values}. Give both for {channels} channels"
            )
    if "pool_size" not in given:
        cfg["pool_size"] = _pool_size(twin, cfg["input_size"])
    return cfg


@torch.no_grad()
def _pool_size(twin: nn.Module, input_size: Sequence[int]) -> tuple[int, int] | None:
    """Return the height and width of the last feature map, or None if the features are tokens."""
    features = twin.forward_features(torch.empty(1, *input_size, device="meta"))  # type: ignore[operator]
    if not isinstance(features, Tensor) or features.dim() != 4:
        return None
    height, width = features.shape[1:3] if getattr(twin, "output_fmt", "NCHW") == "NHWC" else features.shape[2:]
    return int(height), int(width)


def _config(
    model: nn.Module, architecture: str, cfg: dict[str, Any], record: Mapping[str, Any], weights: bytes
) -> dict[str, Any]:
    """Return config.json as a dict."""
    cfg = PretrainedCfg(**cfg).to_dict(remove_source=True)  # timm's defaults are filled in: nothing is left to guess
    cfg.pop("architecture", None)
    # At the top level, where timm and transformers read them.
    labels = {key: value for key in ("label_names", "label_descriptions") if (value := cfg.pop(key, None)) is not None}
    tag = cfg.get("tag")
    license = record.get("license") or cfg.get("license")
    arguments = {k: v for k, v in getattr(model, "_model_args", {}).items() if k not in _NOT_ARCHITECTURE}
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": cfg["num_classes"],
        "num_features": int(model.num_features),  # type: ignore[arg-type]
        **labels,
        "global_pool": getattr(model, "global_pool", None),
        "model_args": arguments,
        "pretrained_cfg": cfg,
        "acmix_zoo": {
            "version": _version(),
            "name": f"{architecture}.{tag}" if tag else architecture,
            "tag": tag,
            **{key: value for key, value in record.items() if value is not None},
            "license": license,
            "file_size": len(weights),
            "sha256": hashlib.sha256(weights).hexdigest(),
            "environment": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "timm": timm.__version__,
                **record.get("environment", {}),
            },
        },
    }
    if not isinstance(config["global_pool"], str):
        del config["global_pool"]  # some networks keep the pooling module under this name
    if not arguments:
        del config["model_args"]
    try:
        return cast(dict[str, Any], json.loads(json.dumps(config)))  # as a reader will find it: lists, no tuples
    except TypeError as error:
        raise ValueError(f"write_folder: config.json holds plain values only ({error})") from error


def _version() -> str:
    import acmix_zoo  # at call time: the package imports this module while it is being imported itself

    return acmix_zoo.__version__


def free_place(folder: str | Path) -> Path:
    """Return the absolute path for a new weight folder, which must not exist yet or must be another weight folder.

    Raises:
        ValueError: the path names a model file, such as model.onnx. FileExistsError: something else is at the path.
    """
    folder = Path(os.path.abspath(folder))
    if folder.suffix in _FILES:
        raise ValueError(
            f"{folder.name} is the name of a {folder.suffix} file, but weights are written as a folder. Expected a "
            f"folder name, such as {folder.stem}. {_FILES[folder.suffix]}"
        )
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / "config.json").is_file():
        raise FileExistsError(f"{folder} exists and is not a weight folder; choose another place")
    return folder


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` beside `folder`, verify them, then take its place; whatever fails before leaves it as it was."""
    with beside(folder) as new:
        try:
            for name, content in files.items():
                path = new / name
                path.parent.mkdir(exist_ok=True)
                with path.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())  # a full disk may show itself only here
            take_place(new, folder)
        except OSError as error:
            size = sum(map(len, files.values())) / 1e6
            raise OSError(
                error.errno,
                f"write_folder: {folder} could not be written ({error.strerror}; it takes {size:.1f} MB); "
                "what was there is unchanged. Free some space or give another folder",
            ) from error


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, on the same disk; what is left of it in the end is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new.chmod(0o755)  # mkdtemp's own mode is for the user alone
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def take_place(new: Path, folder: Path) -> None:
    """Verify the weight folder `new` and move it to `folder`; if it does not verify, `folder` is as it was.

    Several processes may do this at the same time. The last one wins, and the folder is always complete. No lock
    (filelock) is used, because its file would remain next to the folder, and some network file systems have no locks.

    Raises:
        ValueError: it does not verify.
    """
    problems = check_folder(new)
    if problems:
        raise ValueError(f"{folder} would not verify: {'; '.join(problems)}")
    with beside(folder) as old:
        for attempt in range(100):
            aside = old / str(attempt)
            try:
                with suppress(FileNotFoundError):
                    folder.rename(aside)
                new.rename(folder)
                return
            except BaseException as error:
                if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                    continue  # another process has put its folder there in the meantime
                with suppress(OSError):  # there was no folder before, or another process has put its folder there
                    aside.rename(folder)
                raise
    raise FileExistsError(f"{folder} is constantly replaced by other processes. Write to a different folder")
