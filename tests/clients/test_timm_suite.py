"""timm's own tests of its models, run on ours.

The tests are not part of this repository. `ACMIX_TIMM_TESTS` is the path of timm's tests/test_models.py, or of its
folder. Without it, pip downloads the source distribution of the installed version. If neither is available, the tests
are skipped with a message.

timm's parameter lists are replaced by the names of one family, and its file runs in a separate process. Tests that fail
must be listed in KNOWN with a reason, and tests that are listed there must fail.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
FAMILIES = {
    "resnet": ["acmix_resnet26", "acmix_resnet_pico"],
    "swin": ["acmix_swin_t", "acmix_swin_pico"],
    "san": ["acmix_san10", "san10_pairwise", "acmix_san_pico"],
    "pvt": ["acmix_pvt_t", "pvt_tiny", "acmix_pvt_pico"],
}
TINY: dict[str, dict[str, Any]] = {  # where timm's test builds its network with arguments of that network
    "acmix_swin_t": {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 1, 1)},
}
# timm's tests of single networks that also apply to ours, with the families to run them on. Tests that timm runs on a
# list of models are run on every family.
ALSO = {
    "test_reset_classifier_keeps_pool": ["resnet", "swin", "san"],
    "test_features_only_grad_checkpointing_backward": ["resnet", "swin", "san", "pvt"],
    "test_model_features_output_stride": ["resnet"],
    "test_prune_intermediate_layers_params_used": ["resnet", "swin", "san", "pvt"],
    "test_head_hidden_size": ["resnet", "swin", "san"],
    "test_forward_after_prune_intermediate_layers": ["resnet", "swin", "san", "pvt"],
    "test_prune_intermediate_layers_last_feature": ["resnet", "san"],
    "test_prune_to_stem_feature": ["resnet"],
    "test_forward_intermediates_stop_early_final_norm": ["swin", "pvt"],
    "test_headless_checkpoint_reload": ["swin", "pvt"],
    "test_swin_family_reinit_after_to_empty": ["swin"],
    "test_swin_family_resize_metadata": ["swin"],
    "test_swin_family_set_input_size": ["swin"],
    "test_swin_family_set_input_size_window_ratios": ["swin"],
    "test_swin_family_set_input_size_invalid_and_min_windows": ["swin"],
    "test_swin_family_resize_odd_stage_sizes": ["swin"],
    "test_swin_family_set_input_size_after_pruning": ["swin"],
    "test_swin_family_script_after_resize": ["swin"],
    "test_swin_family_compile_resize_guards": ["swin"],
    "test_swin_family_window_padding": ["swin"],
    "test_swin_family_dynamic_mask_trace": ["swin"],
    "test_relpos_non_square_checkpoint_reload": ["swin"],
    "test_relpos_non_square_set_input_size": ["swin"],
}
SCRIPT = "torch.jit.script is deprecated and not supported; our layers say so"
LEVELS = "a small network for 32-pixel images has two feature levels; the test asks for three"
WINDOWS = "our set_input_size has no window_ratio and no always_partition, and a window is the same in all stages"
ANY_SIZE = "the test builds with strict_img_size; our Swin takes any size and has no such argument"
# (test, pattern of the model's name): the reason why it fails. An entry that passes fails the test.
KNOWN: dict[tuple[str, str], str] = {
    ("test_model_forward_torchscript", "*"): SCRIPT,
    ("test_model_forward_fx_torchscript", "*"): SCRIPT,
    ("test_swin_family_script_after_resize", "*"): SCRIPT,
    ("test_model_forward_features", "acmix_swin_pico"): LEVELS,
    ("test_model_forward_intermediates", "acmix_swin_pico"): LEVELS,
    ("test_model_forward_intermediates", "acmix_pvt_pico"): LEVELS,
    ("test_swin_family_set_input_size", "*"): WINDOWS,
    ("test_swin_family_set_input_size_window_ratios", "*"): WINDOWS,
    ("test_swin_family_set_input_size_invalid_and_min_windows", "*"): WINDOWS,
    ("test_swin_family_set_input_size_after_pruning", "*"): WINDOWS,
    ("test_swin_family_compile_resize_guards", "*"): WINDOWS,
    ("test_swin_family_resize_metadata", "acmix_swin_pico"): "patch_embed.img_size is the size behind its stem",
    ("test_swin_family_resize_odd_stage_sizes", "*"): ANY_SIZE,
    ("test_swin_family_window_padding", "*"): ANY_SIZE,
    ("test_swin_family_dynamic_mask_trace", "*"): ANY_SIZE,
}


def path_of_timms_tests(folder: Path) -> Path:
    """Return the path of timm's test_models.py, or skip."""
    if named := os.environ.get("ACMIX_TIMM_TESTS"):
        path = Path(named)
        path = path / "test_models.py" if path.is_dir() else path
        if not path.is_file():
            pytest.fail(f"ACMIX_TIMM_TESTS={named} does not exist. Expected the path of timm's tests/test_models.py")
        return path
    version = importlib.metadata.version("timm")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", f"timm=={version}"]
    try:
        subprocess.run([*pip, "--dest", folder], check=True, capture_output=True, timeout=300)
        with tarfile.open(next(folder.glob("timm-*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
    except (subprocess.SubprocessError, OSError, StopIteration) as error:
        pytest.skip(f"the source distribution of timm {version} is not available ({error}); set ACMIX_TIMM_TESTS")
    path = folder / f"timm-{version}" / "tests" / "test_models.py"
    if not path.is_file():
        pytest.skip(f"the source distribution of timm {version} contains no tests; set ACMIX_TIMM_TESTS")
    return path


@pytest.fixture(scope="session")
def timms_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return path_of_timms_tests(tmp_path_factory.mktemp("timm"))


def reason(test: str, model: str) -> tuple[str, str] | None:
    """Return the entry of KNOWN for a test of a model."""
    keys = [key for key in KNOWN if key[0] == test and fnmatch.fnmatch(model, key[1])]
    assert len(keys) < 2, f"{test} of {model} is listed twice: {keys}"
    return keys[0] if keys else None


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, timms_tests: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, __file__, str(timms_tests), family, str(report)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    subprocess.run(command, check=False, capture_output=True, env=environment, cwd=tmp_path)
    rows = [tuple(row) for row in json.loads(report.read_text(encoding="utf-8"))]
    assert len(rows) > 20
    new, passed = [], []
    for test, model, outcome, message in rows:
        entry = reason(test, model)
        if outcome == "failed" and not entry:
            new.append(f"{test} of {model}: {message}")
        elif outcome == "passed" and entry:
            passed.append(f"{test} of {model}, listed as: {KNOWN[entry]}")
    assert not new, "\n".join(["failures that are not listed:", *new])
    assert not passed, "\n".join(["listed as failing, but passed:", *passed])


# ---- the process that runs timm's file


class Substitution:
    """A pytest plugin that replaces timm's model names by ours, runs nothing else, and records every outcome."""

    def __init__(self, family: str) -> None:
        self.family, self.names = family, FAMILIES[family]
        self.rows: dict[str, tuple[str, str, str, str]] = {}

    def list_models(self, filter: Any = "", **options: Any) -> list[str]:
        """Replace timm's `list_models` while its file is imported: return our names for its parameter lists."""
        options.pop("module", None)  # its modules
        excluded = options.pop("exclude_filters", ())
        tokens = self.family == "pvt"  # as its "non-standard" networks, which it asks for by vit_* and other patterns
        if (
            (isinstance(filter, str) and filter)
            or ("vit_*" in filter and not tokens)
            or ("vit_*" in excluded and tokens)
        ):
            return []
        names = [name for name in self.original(**options) if name.split(".")[0] in self.names]
        if options.get("pretrained"):  # only networks whose weights are in this repository
            names = [name for name in names if "_pico" in name]
        return names

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc: Any) -> None:
        if self.family not in ALSO.get(metafunc.function.__name__, ()):
            return
        for i, marker in enumerate(metafunc.definition.own_markers):
            keys = marker.args[0] if marker.name == "parametrize" else ""
            keys = [key.strip() for key in keys.split(",")] if isinstance(keys, str) else list(keys)
            if "model_name" in keys:
                values = [tuple(self.value(key, name) for key in keys) for name in self.names]
                metafunc.definition.own_markers[i] = pytest.mark.parametrize(keys, values).mark

    def value(self, key: str, name: str) -> Any:
        size = 32 if "pico" in name else 224
        return {"model_name": name, "img_size": size, "stop_early_final": False}.get(key, TINY.get(name, {}))

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        of = {item: getattr(item, "callspec", None) for item in items}
        names = {item: spec.params.get("model_name", "") if spec else "" for item, spec in of.items()}
        items[:] = [item for item in items if str(names[item]).split(".")[0] in self.names]
        self.of = {item.nodeid: (item.function.__name__, names[item]) for item in items}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message.splitlines()[0] if crash and crash.message else ""
            self.rows[report.nodeid] = (*self.of[report.nodeid], report.outcome, message)


def main(path: str, family: str, report: str) -> None:
    import timm

    import acmix_zoo  # noqa: F401

    plugin = Substitution(family)
    plugin.original = timm.list_models
    timm.list_models, timm.list_pretrained = plugin.list_models, lambda *args, **kwargs: []
    options = ["-q", "-W", "ignore", "-p", "no:cacheprovider", "-p", "no:timeout", "-c", os.devnull]
    options += ["--rootdir", str(Path(path).parent)]
    pytest.main([path, *options], plugins=[plugin])
    Path(report).write_text(json.dumps(list(plugin.rows.values())), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
