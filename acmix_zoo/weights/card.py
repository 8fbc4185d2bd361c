"""Generate the model card of a weight folder, README.md, and the Hub's .eval_results/, from config.json alone."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id, yaml_dump  # type: ignore[attr-defined]  # public, exported lazily

from acmix_zoo.models.published import is_reconstruction
from acmix_zoo.models.task_kinds import CLASSIFICATION, TASK_KINDS, TaskKind, config_task
from acmix_zoo.weights.class_names import describe_class, describe_classes

# Hub ids of shipped data sets, by the fingerprint of their contents. The name does not suffice, because any folder may
# have it.
_HUB_DATASETS = {"ca3ab2a37f845e1b": "zalando-datasets/fashion_mnist"}


class CardPicture(NamedTuple):
    """A picture that a model card shows, which is in the folder pictures/ next to it."""

    name: str
    caption: str
    content: bytes


def hub_dataset(name: str, dataset: Mapping[str, Any]) -> str | None:
    """Return the Hub id of a data set, or None if it has none, as with a local folder.

    Args:
        name: the name of the data set.
        dataset: the record of the data that the weights were trained on.
    """
    if name == dataset.get("name"):
        name = _HUB_DATASETS.get(str(dataset.get("fingerprint")), name)
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if "/" in name else None


_SPACES = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_LICENSE_ID = re.compile(r"[A-Za-z0-9.+-]+")
# Characters with a special meaning in Markdown, HTML or tables, and the entities that represent them literally.
_MARKUP = {ord(c): f"&#{ord(c)};" for c in "|`*[]\\"} | {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}


def escape(value: Any) -> str:
    """Return a value as one line of plain Markdown text, with all markup escaped. Use this for every value that comes
    from a user or a data set."""
    return _SPACES.sub(" ", str(value)).strip().translate(_MARKUP)


def _code(value: Any) -> str:
    """Return a value as code on one line."""
    text = escape(value)
    return f"`{value}`" if text == value else f"<code>{text}</code>"  # backticks would show the entities literally


def _metric_value(metric: Mapping[str, Any]) -> str:
    """Return a task's metric, which is stored between 0 and 1, as a percentage, and any other metric unchanged."""
    name, value = str(metric["name"]), float(metric["value"])
    is_percentage = name.startswith(("top", "acc", "map", "mask_map")) or any(
        name in kind.metrics for kind in TASK_KINDS.values()
    )
    return f"{100 * value:.2f} %" if is_percentage else f"{value:.4f}"


class _License(NamedTuple):
    """A licence, as the Hub's metadata states it.

    Attributes:
        id: the Hub's id, such as mit, or "other"; None if no licence is stated.
        name: what the Hub calls one that is "other".
        terms: its terms in words, if these were given instead of an id.
    """

    id: str | None
    name: str | None = None
    terms: str | None = None


def _license(stated: str | None) -> _License:
    """Return the licence that a record states. Terms in words are called by what precedes the first comma."""
    text = _SPACES.sub(" ", str(stated or "")).strip().rstrip(".")
    if not text or _LICENSE_ID.fullmatch(text):
        return _License(text or None)
    name = re.sub(r"[^a-z0-9.]+", "-", text.partition(",")[0].lower()).strip("-")
    return _License("other", name or "custom", text)


def _note(metric: Mapping[str, Any]) -> str:
    return f" ({metric['note']})" if metric.get("note") else ""


def render_card(config: Mapping[str, Any]) -> str:
    """Return the text of README.md for the content of a config.json: front matter, facts, results, pictures, classes,
    use."""
    record, cfg = config["acmix_zoo"], config["pretrained_cfg"]
    name, architecture, task = record["name"], config["architecture"], config_task(config)
    dataset = record.get("dataset") or {}
    metrics = record.get("metrics") or []
    names = sorted({metric["dataset"] for metric in metrics} | ({dataset["name"]} if "name" in dataset else set()))
    hub_ids = [hub_id for hub_id in (hub_dataset(name, dataset) for name in names) if hub_id]

    license = _license(record.get("license"))
    head = ModelCardData(
        library_name="acmix_zoo",
        pipeline_tag=task.pipeline_tag,
        tags=[task.pipeline_tag, *(["timm"] if task is CLASSIFICATION else []), "acmix"],
        license=license.id,
        license_name=license.name,
        datasets=hub_ids or None,
    )
    channels, height, width = cfg["input_size"]
    statistics = f"mean {_numbers(cfg['mean'])}, std {_numbers(cfg['std'])}"
    facts = [
        ("Architecture" if task is CLASSIFICATION else "Backbone", _code(architecture)),
        ("Options", _cell(config.get("task_options"))),
        ("Classes", f"{config['num_classes']}"),
        ("Input", f"{channels}×{height}×{width}, {statistics}, {escape(cfg['interpolation'])}"),
        ("Parameters", f"{record['params']:,}"),
        ("MACs", f"{record['macs']:,}" if record.get("macs") else None),
        ("File", f"model.safetensors, {record['file_size']:,} bytes, sha256 {_code(record['sha256'])}"),
        ("Origin", _cell(record.get("origin"))),
        ("Source", _cell(record.get("source"))),
        ("Started from", _started_from(record)),
        ("Data", _cell({key: value for key, value in dataset.items() if key != "mask_colours"} or None)),
        ("Recipe", _code(record["recipe"]) if record.get("recipe") else None),
        ("Command", _code(record["command"]) if record.get("command") else None),
        ("Seed", _cell(record.get("seed"))),
        ("Revision", _code(record["git_revision"]) if record.get("git_revision") else None),
        ("Environment", _cell(record["environment"])),
    ]
    body = [f"# {escape(name)}", ""]
    readers = "`acmix_zoo` (ACmix, CVPR 2022)" + (" and timm" if task is CLASSIFICATION else "")
    body += [f"Weights for {task.title}, made for {readers}.", ""]
    if license.terms:
        body += [f"Licence: {escape(license.terms)}.", ""]
    if is_reconstruction(architecture):
        body += [
            "The network is a **reconstruction**: its authors published its cost and accuracy, but not its design. "
            "docs/reconstructions.md in the repository explains what was inferred, and from what.",
            "",
        ]
    body += ["| | |", "|---|---|"]
    body += [f"| {key} | {text} |" for key, text in facts if text is not None]
    if metrics:
        body += ["", "## Results", "", "| data set | split | metric | value |", "|---|---|---|---|"]
        body += [
            f"| {' | '.join(escape(m[key]) for key in ('dataset', 'split', 'name'))} | {_metric_value(m)}"
            f"{escape(_note(m))} |"
            for m in metrics
        ]
    if pictures := record.get("pictures"):
        body += ["", "## Pictures"]
        for file, caption in pictures.items():
            body += ["", f"{escape(caption)}:", "", f"![{escape(caption)}](pictures/{quote(file)})"]
    if names := config.get("label_names") or cfg.get("label_names"):
        given = config.get("label_descriptions") or cfg.get("label_descriptions")
        words = describe_classes(names, given) if given else [_first_synonym(name) for name in names]
        body += ["", "## Classes", "", *_classes(names, words, record.get("class_scores"))]
    body += [*("", "## Use", ""), *_usage(task, channels, height, width, config["num_classes"]), ""]
    body += [
        f"`test/example.safetensors` holds an input and its {'logits' if task is CLASSIFICATION else 'outputs'}; "
        "`acmix_zoo.weights.check_folder` replays them. "
        f"Written by acmix_zoo {escape(record['version'])}; every number above comes from `config.json`.",
    ]
    return "\n".join(["---", head.to_yaml(line_break="\n"), "---", "", *body, ""])


def _first_synonym(name: str) -> str:
    """Return a class name unchanged, unless it is a WordNet id: "tabby" for n02123045."""
    words = describe_class(name)
    return words if words == name else words.partition(",")[0]


def _classes(names: Sequence[str], descriptions: Sequence[str], scored: Mapping[str, Any] | None) -> list[str]:
    """Return the lines that list the classes, with the scores of each class as a table if there are any."""
    shown = [
        f"{number} {escape(words)}" + (f" ({escape(name)})" if words != name else "")
        for number, (name, words) in enumerate(zip(names, descriptions, strict=True))
    ]
    if not scored:
        return ["; ".join(shown) + "."]  # descriptions may contain commas
    metrics: Mapping[str, Mapping[str, float | None]] = scored["values"]
    lines = [f"Scores on the {escape(scored['split'])} split:", "", f"| class | {' | '.join(map(escape, metrics))} |"]
    lines.append("|---|" + "---:|" * len(metrics))
    for name, label in zip(names, shown, strict=True):
        values = [metric.get(name) for metric in metrics.values()]
        cells = ["–" if value is None else f"{100 * value:.2f} %" for value in values]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _usage(task: TaskKind, channels: int, height: int, width: int, classes: int) -> list[str]:
    """Return the lines that show how to use the weights."""
    lines = [
        *("```python", "import acmix_zoo", ""),
        'model = acmix_zoo.create_model("path/to/this/folder").eval()',
        task.output.format(channels=channels, height=height, width=width, classes=classes),
        "```",
    ]
    if task is not CLASSIFICATION:
        needed = f" It needs `pip install 'acmix-zoo[{task.extra}]'`." if task.extra else ""
        return [*lines, "", f"Images are RGB, scaled to values between 0 and 1 and normalised as stated above.{needed}"]
    return [
        *lines,
        "",
        "timm and transformers read the folder, too. They know the architecture once `acmix_zoo` has been imported; "
        "without that import, transformers asks for a newer timm.",
        *("", "```python", "import acmix_zoo  # registers the architecture with timm", "import timm"),
        *("from transformers import pipeline", ""),
        'model = timm.create_model("local-dir:path/to/this/folder", pretrained=True)',
        'classify = pipeline("image-classification", "path/to/this/folder")',
        "```",
    ]


def _started_from(record: Mapping[str, Any]) -> str | None:
    """Return the weights that training started from, and their licence."""
    if not record.get("parent"):
        return None
    license = record.get("parent_license")
    return _code(record["parent"]) + (f" (licence: {escape(license)})" if license else "")


def _cell(value: Any) -> str | None:
    """Return a value as the text of a table cell, with nested mappings in brackets."""
    if isinstance(value, Mapping):
        inner = {key: f"({_cell(v)})" if isinstance(v, Mapping) else escape(v) for key, v in value.items()}
        return ", ".join(f"{escape(key)} {text}" for key, text in inner.items())
    return None if value is None else escape(value)


def _numbers(values: Any) -> str:
    return f"[{', '.join(map(escape, values))}]"


def render_eval_results(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the Hub's result files, {file name: YAML text}, one for each data set that is on the Hub."""
    entries: dict[str, list[dict[str, Any]]] = {}
    record = config["acmix_zoo"]
    for metric in record.get("metrics") or []:
        hub_id = hub_dataset(metric["dataset"], record.get("dataset") or {})
        if hub_id is None:
            continue
        entries.setdefault(hub_id.replace("/", "_") + ".yaml", []).append(
            {
                "dataset": {"id": hub_id, "task_id": config_task(config).pipeline_tag.replace("-", "_")},
                "value": metric["value"],
                "notes": f"{metric['name']} on the {metric['split']} split{_note(metric)}",
            }
        )
    return {file: yaml_dump(content, sort_keys=False) for file, content in entries.items()}
