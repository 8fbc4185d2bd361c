"""The model card names the right data set, and no text in it can become markup."""

import copy
import html
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from support.weight_folders import (
    RECORD,
    write_weights,
)
from yaml import safe_load

from acmix_zoo.weights import read_config
from acmix_zoo.weights.card import render_card, render_eval_results


def test_a_local_data_set_is_not_linked_to_the_hub(tmp_path: Path) -> None:
    """A data set of the Hub is recognised by the fingerprint of its images, and not by the name of a folder."""
    local = {"name": "fashion_mnist", "fingerprint": "0123456789abcdef"}
    folder = write_weights(tmp_path / "w", record={**RECORD, "dataset": local})
    assert "zalando" not in (folder / "README.md").read_text() and render_eval_results(read_config(folder)) == {}


@pytest.fixture(scope="module")
def any_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read_config(write_weights(tmp_path_factory.mktemp("any") / "w", record={**RECORD, "parent": "start.pth"}))


EVIL = "x\npipeline_tag: evil\n---\n<script>alert(1)</script>|`a` [b](http://c) \\| *d* &amp; | e\u2028f\x1b[2J"


@pytest.mark.parametrize(
    "field",
    [
        *(
            "license",
            "origin",
            "parent",
            "parent_license",
            "command",
            "seed",
            "dataset",
            "metric",
            "note",
            "label",
            "tag",
        ),
        "picture",
    ],
)
def test_markup_in_a_card_is_escaped(any_config: dict[str, Any], field: str) -> None:
    """Names from users and data sets appear literally. They cannot add front matter, HTML, links or table cells."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt().enable("table")
    config = copy.deepcopy(any_config)
    plain = render_card(config)
    record, label = config["acmix_zoo"], config["pretrained_cfg"]
    value = "Ann's set" + EVIL
    changes = {
        "dataset": {"dataset": {"name": value, value: {value: value}}},
        "metric": {"metrics": [{"dataset": value, "split": value, "name": "top1" + value, "value": 0.5}]},
        "note": {"metrics": [{"dataset": "a/b", "split": "val", "name": "top1", "value": 0.5, "note": value}]},
        "tag": {"name": value},
        "picture": {"pictures": {value: value}},
    }
    record.update(changes.get(field, {field: value}))
    label["label_names"] = [value] * 10 if field == "label" else None
    card = render_card(config)
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    expected = {
        "library_name": "acmix_zoo",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "acmix"],
    }
    found = safe_load(front)
    assert {key: found[key] for key in expected} == expected
    assert found.keys() <= {*expected, "license", "license_name", "datasets"}
    added = {"label": 4, "license": 2, "picture": 6}.get(field, 0)
    assert len(body.splitlines()) == len(plain.split("\n---\n", 1)[1].splitlines()) + added
    for markup in ("<script", "[b](", "\x1b", "\u2028", "*d*"):
        assert markup not in body
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} <= {3, 5}
    shown = html.unescape(re.sub("<[^>]*>", "", markdown.render(body)))
    assert "<script>alert(1)</script>|`a` [b](http://c) \\| *d* &amp; | e f [2J" in shown
    for text in render_eval_results(config).values():
        [entry] = safe_load(text)
        assert entry.keys() == {"dataset", "value", "notes"}


@pytest.mark.parametrize(
    ("license", "fields", "sentence"),
    [
        ("cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}, ""),
        (None, {}, ""),
        (
            "Research use only, because of the images.",
            {"license": "other", "license_name": "research-use-only"},
            "\nLicence: Research use only, because of the images.\n",
        ),
        ("仅供研究使用", {"license": "other", "license_name": "custom"}, "\nLicence: 仅供研究使用.\n"),
    ],
)
def test_a_licence_is_an_id_of_the_hub_or_terms_in_words(
    any_config: dict[str, Any], license: str | None, fields: dict[str, str], sentence: str
) -> None:
    """The Hub needs a name for a licence that is "other"."""
    config = copy.deepcopy(any_config)
    config["acmix_zoo"]["license"] = license
    card = render_card(config)
    found = ModelCard(card).data
    assert {key: found[key] for key in ("license", "license_name") if found.get(key)} == fields
    assert sentence in card and ("Licence:" in card) == bool(sentence)


def test_local_data_sets_are_not_in_the_front_matter(tmp_path: Path) -> None:
    metrics = [{"dataset": "../my/photos", "split": "val", "name": "top1", "value": 1.0}]
    folder = write_weights(tmp_path / "w", record={"metrics": metrics, "dataset": {"name": "../my/photos"}})
    assert not (folder / ".eval_results").exists() and "datasets:" not in (folder / "README.md").read_text()


def test_classes_are_listed_in_words(any_config: dict[str, Any]) -> None:
    """Also those that a data set names by their WordNet ids, and with the scores of each class."""
    config = copy.deepcopy(any_config)
    config["pretrained_cfg"]["label_names"] = ["n01443537", "bird"]
    assert "\n0 goldfish (n01443537); 1 bird.\n" in render_card(config)
    config["label_descriptions"] = {"bird": "any bird"}
    config["acmix_zoo"]["class_scores"] = {"split": "test", "values": {"AP": {"n01443537": 0.5, "bird": None}}}
    card = render_card(config)
    assert "| 0 goldfish, Carassius auratus (n01443537) | 50.00 % |" in card and "| 1 any bird (bird) | – |" in card


def test_colours_of_masks_are_only_in_the_record(any_config: dict[str, Any]) -> None:
    config = copy.deepcopy(any_config)
    config["acmix_zoo"]["dataset"]["mask_colours"] = {"colours": [[i, i, i] for i in range(150)], "ignore_colours": []}
    assert render_card(config) == render_card(any_config)
