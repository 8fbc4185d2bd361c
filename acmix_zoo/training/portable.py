"""Remove the folders of this machine from paths and command lines that go into a public record."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from acmix_zoo.data.sources.installed_sources import SHIPPED
from acmix_zoo.weights.recipe_files import recipes_root


def portable_path(path: str) -> str:
    """Return a path without the folders of this machine.

    Shipped recipes are named as in a clone (`recipes/...`). Other absolute paths become relative to the working
    directory if they are below it; otherwise only their last part is kept. Relative paths are unchanged.
    """
    if not os.path.isabs(path):
        return path
    root = recipes_root()
    if root and Path(path).resolve().is_relative_to(root):
        return (Path(root.name) / Path(path).resolve().relative_to(root)).as_posix()
    here = Path.cwd()
    if here != Path(here.anchor):  # in containers, which start in the root folder, every path is below it
        with suppress(ValueError):
            return Path(path).relative_to(here).as_posix()
    return Path(path).name


def portable_command(command: str) -> str:
    """Return a command line with portable paths, including those in lists and mappings.

    A path given as --data.source is still recognisable as a path: `/data/fashion_mnist` becomes `./fashion_mnist`,
    because the bare name is a different data set, and `org/name` would be one on the Hub.
    """
    words: list[str] = []
    for word in shlex.split(command):
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        text = _portable_text(value)
        is_source = "--data.source" in (option, words[-1] if words and not option else "")
        if is_source and os.path.isabs(value) and (text in SHIPPED or text.count("/") == 1):
            text = f"./{text}"
        words.append(option + equals + text)
    return shlex.join(words)


def _portable_text(value: str) -> str:
    """Return an option's value with portable paths. A `file://` address becomes a path."""
    return portable_path(value) if os.path.isabs(value) else _INNER_PATH.sub(lambda m: portable_path(m[1]), value)


def portable_strings(value: Any) -> Any:
    """Return plain values, nested in lists and mappings, with portable paths in every string."""
    if isinstance(value, str):
        return _portable_text(value)
    if isinstance(value, Mapping):
        return {key: portable_strings(item) for key, item in value.items()}
    return [portable_strings(item) for item in value] if isinstance(value, list | tuple) else value


# An absolute path inside a value such as [/data/a, /data/b], {"save_dir": "/logs"}, name:/data/a or file:///data/a; not
# the slashes of other addresses.
_INNER_PATH = re.compile(r"""(?:\bfile://[^\s/]*|(?<=[\s\[{(,'"=:]))(/(?!/)[^\s\[\]{}(),'"]+)""")
