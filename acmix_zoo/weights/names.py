"""The names of networks and of the weights that exist for them."""

import difflib
import fnmatch
import re
from collections.abc import Sequence

import timm

from acmix_zoo.weights.shipped import shipped_task_networks


def list_models(filter: str | Sequence[str] = "", pretrained: bool = False) -> list[str]:
    """Return the names of this project's models.

    Args:
        filter: a wildcard such as `"*swin*"`, or several.
        pretrained: list the weights that exist, as `architecture.tag`, instead of the networks. The shipped weights of
            detectors and segmenters come last.
    """
    names: list[str] = timm.list_models(filter, pretrained=pretrained)
    own = [name for name in names if timm.models.model_entrypoint(name).__module__.startswith("acmix_zoo.")]
    others = shipped_task_networks() if pretrained else ()
    filters = [filter] if isinstance(filter, str) else filter
    patterns = [pattern for each in filters for pattern in (each or "*", f"{each}.*")]
    return own + [name for name in others if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def list_tags(architecture: str) -> list[str]:
    """Return the tags of a network's weights, such as `fashion_mnist`. Networks of timm have tags, too."""
    return [name.partition(".")[2] for name in timm.list_models(f"{architecture}.*", pretrained=True)]


def is_network_name(name: str) -> bool:
    """Return whether a name is that of a network, or of one of its registered configurations (`architecture.tag`)."""
    architecture, dot, _ = name.partition(".")
    return timm.is_model(architecture) and (not dot or name in timm.models.get_arch_pretrained_cfgs(architecture))


def closest_models(name: str) -> list[str]:
    """Return up to three names of networks or weights that are similar to `name`, this project's first."""
    own = [*list_models(), *list_models(pretrained=True)]
    near = difflib.get_close_matches(name, own, n=3) or difflib.get_close_matches(name.partition(".")[0], own, n=3)
    return near or difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)


def file_name(name: object) -> str:
    """Return a name of weights as that of one visible file. Weights may come from anyone and have any name."""
    return re.sub(r"[^\w.-]+", "-", str(name)).lstrip(".-") or "weights"
