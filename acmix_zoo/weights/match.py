"""Compare stored weights with a module key by key, and copy them into it if they fit."""

import warnings
from collections.abc import Collection

from torch import nn

from acmix_zoo.models.plain_swin import is_plain_swin
from acmix_zoo.models.silent_convolution import lacks_only_convolution
from acmix_zoo.weights.read import State


def mismatch_report(own: State, state: State, where: str, module_name: str, reinitialised: Collection[str] = ()) -> str:
    """Describe in three lines where `state` does not fit a module's `own` state dict. Empty if everything fits.

    Args:
        own: the state dict of the module.
        state: the stored weights, under the module's keys.
        where: what to call the stored weights.
        module_name: what to call the module.
        reinitialised: keys that keep their initial values. Entries of `state` with these names are ignored.
    """
    own = {key: value for key, value in own.items() if key not in reinitialised}
    state = {key: value for key, value in state.items() if key not in reinitialised}
    missing = [key for key in own if key not in state]
    unexpected = sorted(state.keys() - own.keys())
    differ = [key for key in own if key in state and state[key].shape != own[key].shape]
    if not (missing or unexpected or differ):
        return ""
    matching = len(own) - len(missing) - len(differ)
    shapes = [f"{key} {tuple(own[key].shape)} here, {tuple(state[key].shape)} there" for key in differ]
    return (
        f"load_weights: {where} does not fit {module_name} ({matching} keys match): "
        f"missing {len(missing)} of {len(own)} keys: {_shortened(missing)}\n"
        f"unexpected {len(unexpected)} keys: {_shortened(unexpected)}\n"
        f"shapes differ {len(differ)}: {_shortened(shapes)}"
    )


def copy_weights(
    module: nn.Module, state: State, where: str, strict: bool = True, reinitialised: Collection[str] = ()
) -> None:
    """Copy `state` into `module`, except for the keys `reinitialised`, which keep their initial values.

    Raises:
        ValueError: a key or shape does not fit. Nothing is copied in this case.
    """
    own: State = module.state_dict()
    wanted = {key: value for key, value in own.items() if key not in reinitialised}
    fitting = {key: state[key] for key, value in wanted.items() if key in state and state[key].shape == value.shape}
    report = mismatch_report(own, state, where, type(module).__name__, reinitialised)
    if report:
        is_plain = is_plain_swin(state) and hasattr(module, "set_input_size")
        if is_plain or lacks_only_convolution(key for key in wanted if key not in state):
            report += (
                "\nThese are weights of a plain network. To turn them into an ACmix network, use acmix_zoo.from_swin, "
                "from_pvt or from_san"
            )
        if strict or not fitting:
            raise ValueError(f"{report}; nothing was loaded")
        warnings.warn(f"{report}; only the matching keys were loaded", stacklevel=3)
    module.load_state_dict(fitting, strict=False)


def _shortened(names: list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
