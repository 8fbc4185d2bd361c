"""Build hook: compile the native CPU kernel into the wheel, where a C++ compiler exists.

With the libraries, the wheel is tagged for this platform, but for any version of Python (py3-none-…), because they have
a plain C interface and depend on the C library alone. Without a compiler it is the pure Python wheel (py3-none-any).
Set ACMIX_NO_NATIVE=1 to build that one in any case.
"""

import importlib.util
import os
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    """Adds acmix_zoo/ops/backends/native/lib/*.so to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable" or os.environ.get("ACMIX_NO_NATIVE"):
            return
        build = self._build_module()
        if not build.find_compilers():
            self.app.display_info("No C++ compiler: the wheel goes without the native CPU kernel.")
            return
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        folder = Path(self.directory) / "native"
        folder.mkdir(parents=True, exist_ok=True)
        libraries = {}
        try:
            for name in build.INSTRUCTION_SETS if x86 else ["portable"]:
                build.build_library(folder / f"{name}.so", name)
                libraries[str(folder / f"{name}.so")] = f"acmix_zoo/ops/backends/native/lib/{name}.so"
        except build.BuildError as error:
            self.app.display_warning(f"The wheel goes without the native CPU kernel: {error}")
            return
        build_data["force_include"].update(libraries)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def _build_module(self) -> Any:
        """Import build.py by its path: the package itself needs torch, which a build environment does not have."""
        path = Path(self.root) / "acmix_zoo" / "ops" / "backends" / "native" / "build.py"
        spec = importlib.util.spec_from_file_location("acmix_native_build", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
