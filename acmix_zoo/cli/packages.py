"""Check for the packages of an extra before a command starts to work."""

from collections.abc import Iterable
from importlib.util import find_spec


def require_packages(command: str, packages: Iterable[str], extra: str) -> None:
    """Check that packages are installed, without importing them.

    Args:
        command: what needs the packages, for the message.
        packages: the names under which they are imported.
        extra: the extra of acmix-zoo that installs them.

    Raises:
        ModuleNotFoundError: a package is missing. The message says how to install it.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{command} needs {' and '.join(missing)}. Install with: pip install 'acmix-zoo[{extra}]'"
        )
