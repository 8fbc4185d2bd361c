"""Read the commands and snippets of a document, and run them as its reader would."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acmix_zoo.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
# One epoch of two small batches. The validation is complete, because a run does not record metrics on part of a split.
SHORT_FIT = [
    *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.accelerator", "cpu"),
    *("--speed.loader_seconds", "0.05"),
]


@dataclass(frozen=True)
class Document:
    """A Markdown page of the repository."""

    path: str

    @property
    def text(self) -> str:
        return (ROOT / self.path).read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        """Return the contents of all code blocks in a language."""
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.DOTALL | re.MULTILINE)

    def commands(self) -> list[list[str]]:
        """Return the arguments of all commands: lines of bash blocks, and lines after `$` in console blocks."""
        lines = [line for block in self.blocks("bash") for line in block.splitlines()]
        lines += [line[2:] for block in self.blocks("console") for line in block.splitlines() if line.startswith("$ ")]
        return [shlex.split(line) for line in lines]

    def headings(self) -> list[str]:
        """Return the headings as the anchors that GitHub and the site give them."""
        text = re.sub(r"^(`{3,}).*?^\1$", "", self.text, flags=re.DOTALL | re.MULTILINE)
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        return [re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles]

    def missing_links(self) -> list[str]:
        """Return the relative links whose file or heading does not exist."""
        missing = []
        for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", self.text):
            target, _, heading = link.partition("#")
            path = os.path.normpath((ROOT / self.path).parent / target) if target else ROOT / self.path
            other = Document(os.path.relpath(path, ROOT))
            if "://" not in link and not (os.path.exists(path) and (not heading or heading in other.headings())):
                missing.append(link)
        return missing


@dataclass(frozen=True)
class Printed:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


class Reader:
    """Someone who follows the documents in an empty folder.

    Commands run in this process, because every new one would import torch again. A training that several documents
    contain runs once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fits: dict[tuple[str, ...], Printed] = {}

    def acmix_zoo(self, *words: str) -> Printed:
        """Run `acmix-zoo` with these arguments. Training is limited to two batches, see `SHORT_FIT`."""
        if words[0] in ("train", "fit"):
            if words not in self._fits:
                self._fits[words] = self._run([*words, *SHORT_FIT])
            return self._fits[words]
        return self._run(list(words))

    def _run(self, words: list[str]) -> Printed:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(words)
            except SystemExit as stop:  # argparse, for wrong options
                code = int(stop.code or 0)
        return Printed(code, out.getvalue().replace(f"{self.folder}/", ""), err.getvalue())

    def python(self, snippet: str) -> str:
        """Run a snippet in this process and return what it printed."""
        out = io.StringIO()
        names: dict[str, Any] = {"__name__": "__main__"}
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out):
            exec(compile(snippet, "snippet", "exec"), names)
        return out.getvalue()


def lines_not_printed(shown: list[str], printed: str) -> list[str]:
    """Return the lines of a document that a command did not print. Numbers may differ, and `…` stands for any lines."""
    found = {_without_numbers(line) for line in printed.splitlines()}
    return [line for line in shown if line.strip() != "…" and _without_numbers(line) not in found]


def _without_numbers(line: str) -> str:
    """Replace every number, the plural after it, and the spaces that align columns."""
    line = re.sub(r"\s*\d[\d,.]*\s*", " # ", line)
    return re.sub(r" {2,}", " ", re.sub(r"(# \w+?)s\b", r"\1", line)).strip()
