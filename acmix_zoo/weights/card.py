"""The model card: README.md and .eval_results/ of a weight folder, written from its config.json alone."""

import json
from collections.abc import Mapping
from typing import Any

from acmix_zoo.models._published import is_reconstruction

# Data sets that ship under a short name, as the Hub calls them.
_HUB_DATASETS = {"fashion_mnist": "zalando-datasets/fashion_mnist"}


def hub_dataset(name: str) -> str | None:
    """The Hub id of a data set, or None when it is not on the Hub (a local folder)."""
    name = _HUB_DATASETS.get(name, name)
    return name if name.count("/") == 1 and not name.startswith((".", "/")) else None


def _yaml(text: Any) -> str:
    return json.dumps(text, ensure_ascii=False)  # every JSON scalar and list is YAML


def _percent(metric: Mapping[str, Any]) -> str:
    """Accuracies are kept in 0..1 and shown in per cent; anything else (a loss) is shown as it is."""
    name, value = str(metric["name"]), float(metric["value"])
    return f"{100 * value:.2f} %" if name.startswith(("top", "acc")) else f"{value:.4f}"


def _note(metric: Mapping[str, Any]) -> str:
    return f" ({metric['note']})" if metric.get("note") else ""


def render_card(config: Mapping[str, Any]) -> str:
    """The text of README.md for a weight folder's config.json (as a dict): front matter, facts, results, use."""
    record, cfg = config["acmix_zoo"], config["pretrained_cfg"]
    name, architecture = record["name"], config["architecture"]
    dataset = record.get("dataset") or {}
    metrics = record.get("metrics") or []
    names = sorted({metric["dataset"] for metric in metrics} | ({dataset["name"]} if "name" in dataset else set()))
    hub_ids = [hub_id for hub_id in map(hub_dataset, names) if hub_id]

    head = ["---", "library_name: acmix_zoo", "pipeline_tag: image-classification", "tags:"]
    head += ["- image-classification", "- timm", "- acmix"]
    if record.get("license"):
        head.append(f"license: {record['license']}")
    if hub_ids:
        head += ["datasets:", *(f"- {hub_id}" for hub_id in hub_ids)]
    head.append("---")

    channels, height, width = cfg["input_size"]
    facts = [
        ("Architecture", f"`{architecture}`"),
        ("Classes", f"{config['num_classes']}"),
        ("Input", f"{channels}×{height}×{width}, mean {cfg['mean']}, std {cfg['std']}, {cfg['interpolation']}"),
        ("Parameters", f"{record['params']:,}"),
        ("MACs", f"{record['macs']:,}" if record.get("macs") else None),
        ("File", f"model.safetensors, {record['file_size']:,} bytes, sha256 `{record['sha256']}`"),
        ("Origin", record.get("origin")),
        ("Source", record.get("source")),
        ("Started from", f"`{record['parent']}`" if record.get("parent") else None),
        ("Data", dataset or None),
        ("Recipe", f"`{record['recipe']}`" if record.get("recipe") else None),
        ("Command", f"`{record['command']}`" if record.get("command") else None),
        ("Seed", record.get("seed")),
        ("Revision", f"`{record['git_revision']}`" if record.get("git_revision") else None),
        ("Environment", record["environment"]),
    ]
    body = [f"# {name}", "", "Weights for image classification, made for `acmix_zoo` (ACmix, CVPR 2022) and timm.", ""]
    if is_reconstruction(architecture):
        body += [
            "The network is a **reconstruction**: its authors published what it costs and reaches, not what it is. "
            "docs/reconstructions.md of the code says what was inferred, and from what.",
            "",
        ]
    body += ["| | |", "|---|---|"]
    body += [f"| {key} | {_cell(value)} |" for key, value in facts if value is not None]
    if metrics:
        body += ["", "## Results", "", "| data set | split | metric | value |", "|---|---|---|---|"]
        body += [f"| {m['dataset']} | {m['split']} | {m['name']} | {_percent(m)}{_note(m)} |" for m in metrics]
    if labels := config.get("label_names") or cfg.get("label_names"):
        body += ["", "## Classes", "", ", ".join(f"{i} {label}" for i, label in enumerate(labels)) + "."]
    body += [
        *("", "## Use", "", "```python", "import acmix_zoo", ""),
        'model = acmix_zoo.create_model("path/to/this/folder").eval()',
        f"logits = model(images)  # (B, {channels}, {height}, {width}) -> (B, {config['num_classes']})",
        *("```", ""),
        "timm and transformers read the folder, too. They know the architecture once `acmix_zoo` has been imported; "
        "without that import, transformers asks for a newer timm.",
        *("", "```python", "import acmix_zoo  # registers the architecture with timm", "import timm"),
        *("from transformers import pipeline", ""),
        'model = timm.create_model("local-dir:path/to/this/folder", pretrained=True)',
        'classify = pipeline("image-classification", "path/to/this/folder")',
        *("```", ""),
        f"`test/example.safetensors` holds an input and its logits; `acmix_zoo.weights.check_folder` replays them. "
        f"Written by acmix_zoo {record['version']}; every number above comes from `config.json`.",
    ]
    return "\n".join([*head, "", *body, ""])


def _cell(value: Any) -> str:
    """A value as the text of a table's cell; what is inside a mapping's mapping stands in brackets."""
    if isinstance(value, Mapping):
        inner = {key: f"({_cell(v)})" if isinstance(v, Mapping) else v for key, v in value.items()}
        value = ", ".join(f"{key} {v}" for key, v in inner.items())
    return str(value).replace("|", "\\|").replace("\n", " ")


def render_eval_results(config: Mapping[str, Any]) -> dict[str, str]:
    """The Hub's result files, {file name: YAML text}: one for each data set that the Hub knows."""
    files: dict[str, str] = {}
    for metric in config["acmix_zoo"].get("metrics") or []:
        hub_id = hub_dataset(metric["dataset"])
        if hub_id is None:
            continue
        notes = f"{metric['name']} on the {metric['split']} split{_note(metric)}"
        file = hub_id.replace("/", "_") + ".yaml"
        files[file] = files.get(file, "") + (
            f"- dataset:\n    id: {_yaml(hub_id)}\n    task_id: image_classification\n"
            f"  value: {_yaml(metric['value'])}\n  notes: {_yaml(notes)}\n"
        )
    return files
