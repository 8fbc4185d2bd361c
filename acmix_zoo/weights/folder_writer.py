"""Write a weight folder: the weights with everything that is needed to rebuild, verify and understand them.

- config.json: timm's layout for the Hub, and under `acmix_zoo` the record (metrics, recipe, command, sha256, …)
- model.safetensors: the weights, in float32 or float16
- README.md: the model card, generated from config.json
- test/example.safetensors: an `input` (B, C, H, W) and the outputs that exactly these weights give: the `logits`
  (B, classes) of a classifier, `TaskNetwork.example_outputs` for other tasks
- pictures/: what the model card shows of the run that made the weights, if it gave any pictures
- .eval_results/: the metrics in the Hub's format, for data sets that are on the Hub
"""

import copy
import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm
import torch
from timm.layers import to_2tuple
from timm.models import PretrainedCfg
from torch import Tensor, nn

from acmix_zoo.layers.complexity import complexity
from acmix_zoo.models.task_network import TaskNetwork, example_outputs
from acmix_zoo.version import __version__
from acmix_zoo.weights.card import CardPicture, render_card, render_eval_results
from acmix_zoo.weights.load import load_weights
from acmix_zoo.weights.replace import check_target, replace_folder, temporary_sibling
from acmix_zoo.weights.translate import unwrapped

# pretrained_cfg fields that stay valid after the network has been trained further.
_INHERITED = {"input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"}
_INHERITED |= {"first_conv", "classifier"}
# Arguments that config.json states elsewhere, or that only matter for training.
_NOT_ARCHITECTURE = {"num_classes", "drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate"}


def write_folder(
    folder: str | Path,
    model: nn.Module,
    *,
    architecture: str,
    pretrained_cfg: Mapping[str, Any],
    record: Mapping[str, Any],
    example: Tensor,
    half: bool = False,
    pictures: Sequence[CardPicture] = (),
) -> Path:
    """Write the weight folder of a model and verify it. Only then is an existing weight folder replaced.

    Args:
        folder: where to write; missing parents are created.
        model: the network, on any device and in any dtype and mode. It is not changed. One for another task than
            classification is a `TaskNetwork`.
        architecture: the name with which timm builds the network (or its backbone), together with the arguments that
            timm keeps on it.
        pretrained_cfg: what is known about the weights, as fields of timm's pretrained_cfg: tag, mean, std, input_size,
            label_names, …. Missing fields are taken from the network (first_conv, classifier, input_size, …).
        record: how the weights were produced: metrics [{dataset, split, name, value between 0 and 1}], recipe, command,
            dataset {name, …}, seed, git_revision, origin, license, …. Counts and hashes are added to it.
        example: (B, C, H, W) float32, normalised images. The network's outputs for them are stored with them.
        half: store the weights as float16.
        pictures: pictures for the model card.

    Returns:
        The folder.

    Raises:
        ValueError: a field is unknown, or the folder would not reproduce the model's outputs.
        FileExistsError: the path exists and is not a weight folder.
        OSError: the folder could not be written.
    """
    folder = check_target(folder)
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
        outputs = example_outputs(twin, images)  # from the weights as they are stored
    counted = complexity(twin.to("meta"), images.shape[1:])
    record = {"metrics": [], **record, "params": counted.params, "macs": counted.macs}
    if pictures:
        record["pictures"] = {picture.name: picture.caption for picture in pictures}
    config = _config(model, architecture, _pretrained_cfg(twin, pretrained_cfg), record, weights)
    files = {
        "model.safetensors": weights,
        "test/example.safetensors": safetensors.torch.save(
            {"input": images, **{name: value.contiguous() for name, value in outputs.items()}}
        ),
        "README.md": render_card(config).encode(),
        **{f"pictures/{picture.name}": picture.content for picture in pictures},
        **{f".eval_results/{name}": text.encode() for name, text in render_eval_results(config).items()},
        "config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    _write_files(folder, files)
    return folder


def _pretrained_cfg(twin: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's pretrained_cfg of a network, completed from the network itself.

    Args:
        twin: a copy of the network on the meta device.
        given: the fields that are known about the weights.
    """
    unknown = sorted(given.keys() - {field.name for field in dataclasses.fields(PretrainedCfg)})
    if unknown:
        raise ValueError(
            f"write_folder: unknown fields {', '.join(unknown)}. Expected the fields of timm's pretrained_cfg. Put "
            "them into the record instead"
        )
    own = getattr(twin, "pretrained_cfg", {})
    num_classes = int(twin.num_classes)  # type: ignore[arg-type]  # timm's contract
    cfg = {**{key: own[key] for key in _INHERITED if key in own}, **given, "num_classes": num_classes}
    labels = cfg.get("label_names")
    if labels is not None and len(labels) != num_classes:
        raise ValueError(
            f"write_folder: there are {len(labels)} label_names. Expected {num_classes}, one for each class"
        )
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
                f"{tuple(cfg['input_size'])} and {key} is {values}. Pass both for {channels} channels"
            )
    if "pool_size" not in given and not isinstance(twin, TaskNetwork):
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
    """Return the content of config.json."""
    cfg = PretrainedCfg(**cfg).to_dict(remove_source=True)  # with timm's defaults, so that the file is complete
    cfg.pop("architecture", None)
    # timm and transformers read these at the top level.
    labels = {key: value for key in ("label_names", "label_descriptions") if (value := cfg.pop(key, None)) is not None}
    tag = cfg.get("tag")
    method = f"{model.method}_" if isinstance(model, TaskNetwork) else ""
    license = record.get("license") or cfg.get("license")
    arguments = {k: v for k, v in getattr(model, "_model_args", {}).items() if k not in _NOT_ARCHITECTURE}
    config: dict[str, Any] = {
        **({"task": model.kind.name, "task_options": model.options} if isinstance(model, TaskNetwork) else {}),
        "architecture": architecture,
        "num_classes": cfg["num_classes"],
        "num_features": int(model.num_features),  # type: ignore[arg-type]
        **labels,
        "global_pool": getattr(model, "global_pool", None),
        "model_args": arguments,
        "pretrained_cfg": cfg,
        "acmix_zoo": {
            "version": __version__,
            "name": f"{method}{architecture}.{tag}" if tag else f"{method}{architecture}",
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
        return cast(
            dict[str, Any], json.loads(json.dumps(config))
        )  # tuples become lists, as for the reader of the file
    except TypeError as error:
        raise ValueError(
            f"write_folder: the record or the network's arguments cannot be stored in config.json ({error}). Expected "
            "plain values only"
        ) from error


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files to a temporary folder, and replace `folder` by it. After a failure, `folder` is unchanged."""
    with temporary_sibling(folder) as new:
        try:
            for name, content in files.items():
                path = new / name
                path.parent.mkdir(exist_ok=True)
                with path.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())  # a full disk may only be noticed here
            replace_folder(folder, new)
        except OSError as error:
            size = sum(map(len, files.values())) / 1e6
            raise OSError(
                error.errno,
                f"write_folder: could not write {folder} ({error.strerror}; it needs {size:.1f} MB). An existing "
                "folder is unchanged. Free some space, or choose a different folder",
            ) from error
