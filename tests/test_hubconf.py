"""hubconf.py: loading from a clone, from the cache folder of torch.hub, and from a downloaded zip."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch

import acmix_zoo
from acmix_zoo.layers.complexity import complexity, human
from acmix_zoo.weights import write_folder
from acmix_zoo.weights.shipped import shipped_classifiers

ROOT = Path(__file__).resolve().parents[1]
local = partial(torch.hub.load, str(ROOT), source="local")


def hubconf() -> ModuleType:
    """Import hubconf.py as torch.hub does. torch.hub.list and torch.hub.help only accept a GitHub name, see below."""
    with torch.hub._add_to_sys_path(str(ROOT)):
        return torch.hub._import_module("hubconf", str(ROOT / "hubconf.py"))


def test_models_are_the_only_public_callables() -> None:
    module = hubconf()
    public = [name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")]
    assert public == sorted(acmix_zoo.list_models()) and "acmix_resnet_pico" in public


@pytest.mark.parametrize("name", acmix_zoo.list_models())
def test_help(name: str) -> None:
    text = getattr(hubconf(), name).__doc__
    channels, height, width = timm.get_pretrained_cfg(name).input_size
    assert timm.models.model_entrypoint(name).__doc__.strip().splitlines()[0] in text
    assert f"images (B, {channels}, {height}, {width}) -> logits" in text and "pretrained:" in text
    assert "{" not in text and "def " not in text
    with torch.device("meta"):
        found = complexity(acmix_zoo.create_model(name))
    macs = f"{found.macs / 1e9:.2f}" if 1e9 <= found.macs < 1e10 else human(found.macs)[:-1]
    assert f" {found.params:,} parameters, {macs} {human(found.macs)[-1]}MACs, " in text
    tags = [weights.partition(".")[2] for weights in acmix_zoo.list_models(f"{name}.*", pretrained=True)]
    assert (
        all(tag in text for tag in tags) and f'torch.hub.load("org/acmix", "{name}", pretrained={bool(tags)})' in text
    )


def test_signature_and_dependencies() -> None:
    module = hubconf()
    assert str(inspect.signature(module.acmix_swin_t)).startswith("(pretrained: bool | str = False, **kwargs")
    for dependency in module.dependencies:
        assert dependency.isidentifier() and torch.hub._check_module_exists(dependency)
    for needless in ("lightning", "datasets", "torchmetrics"):
        assert needless not in module.dependencies


def test_load_from_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    model = torch.hub.load(".", "acmix_resnet_pico", source="local", num_classes=3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    folder = write_folder(
        tmp_path / "w", model, architecture="acmix_resnet_pico", pretrained_cfg={}, record={},
        example=torch.randn(1, 3, 32, 32),
    )  # fmt: skip
    assert torch.equal(local("acmix_resnet_pico", pretrained=str(folder)).fc.weight, model.fc.weight)
    with pytest.raises(RuntimeError, match="Cannot find callable acmix_resnet_pic"):
        local("acmix_resnet_pic")


@pytest.mark.parametrize("name", shipped_classifiers())
def test_shipped_weights(name: str) -> None:
    architecture, _, tag = name.partition(".")
    models = [local(architecture, pretrained=pretrained) for pretrained in (True, tag)]
    expected = acmix_zoo.create_model(name, pretrained=True)
    for model in models[1:] if acmix_zoo.list_models(f"{architecture}.*", pretrained=True)[1:] else models:
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def run(code: str, *arguments: object, **environment: str) -> dict:
    """Run code in a new process in another folder, without a network. Return the JSON object that it prints last."""
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:hubconf", "-c", code, *map(str, arguments)],
        cwd=environment["TORCH_HOME"],
        # This proxy refuses every connection, so that no machine reaches github.com in this test.
        env={**os.environ, "https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    return {**json.loads(result.stdout.splitlines()[-1]), "stderr": result.stderr}


REPORT = """
import hashlib, json, sys
def report(model, **more):
    import acmix_zoo
    x = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    logits = model.eval()(x)[0].tolist()
    heavy = [name for name in ("lightning", "datasets", "torchmetrics", "matplotlib") if name in sys.modules]
    print(json.dumps(dict(more, logits=logits, code=acmix_zoo.__file__, heavy=heavy)))
"""


@pytest.mark.slow
def test_cache_folder(tmp_path: Path) -> None:
    """Return a copy of the clone in the cache folder of torch.hub, with weights for this test."""
    copy = tmp_path / "hub" / "org_acmix_main"
    shutil.copytree(ROOT / "acmix_zoo", copy / "acmix_zoo", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", copy)
    model = timm.create_model("acmix_resnet_pico", num_classes=6).eval()
    write_folder(
        copy / "checkpoints" / "acmix_resnet_pico.cached", model, architecture="acmix_resnet_pico",
        pretrained_cfg={"tag": "cached"}, record={}, example=torch.randn(1, 3, 32, 32),
    )  # fmt: skip
    code = f"""
import torch
{REPORT}
names = torch.hub.list("org/acmix", trust_repo=True)
text = torch.hub.help("org/acmix", "acmix_resnet_pico", trust_repo=True)
fresh = torch.hub.load("org/acmix:main", "acmix_resnet_pico", pretrained=True, num_classes=2, trust_repo=True)
assert fresh.num_classes == 2
report(torch.hub.load("org/acmix", "acmix_resnet_pico", pretrained=True, trust_repo=True), names=names, text=text)
"""
    result = run(code, TORCH_HOME=str(tmp_path))
    assert Path(result["code"]).is_relative_to(copy) and result["heavy"] == []
    assert "Using cache found" in result["stderr"]
    assert result["names"] == sorted(acmix_zoo.list_models()) and "(tags: cached)" in result["text"]
    expected = model(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32))[0]
    torch.testing.assert_close(torch.tensor(result["logits"]), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[str]:
    """Return the address of a zip of the committed files, as GitHub creates it."""
    served = tmp_path / "served"
    served.mkdir()
    command = [
        "git",
        "archive",
        "--prefix=org-acmix-0123abc/",
        "--format=zip",
        f"--output={served / 'main.zip'}",
        "HEAD",
    ]
    if not (ROOT / ".git").exists() or subprocess.run(command, cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a git clone")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/main.zip"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_download(tmp_path: Path, archive: str) -> None:
    """torch.hub's download code gets the zip from a local server. The committed files are all that is needed."""
    code = f"""
import sys, torch
{REPORT}
torch.hub._git_archive_link = lambda owner, name, ref: sys.argv[1]
options = dict(skip_validation=True, trust_repo=True)
names = torch.hub.list("org/acmix:main", **options)
import acmix_zoo
weights = acmix_zoo.list_models("acmix_resnet_pico.*", pretrained=True)
torch.manual_seed(0)
report(torch.hub.load("org/acmix:main", "acmix_resnet_pico", pretrained=bool(weights), **options), names=names)
"""
    result = run(code, archive, TORCH_HOME=str(tmp_path))
    assert result["names"] == sorted(acmix_zoo.list_models())
    assert Path(result["code"]).is_relative_to(tmp_path / "hub" / "org_acmix_main") and result["heavy"] == []
    assert len(result["logits"]) == 10


def bare(code: str, cwd: Path, *hidden: str) -> subprocess.CompletedProcess[str]:
    """Run code where acmix_zoo is not installed, and neither are the `hidden` packages: the environment's packages
    without its .pth files, which lead an editable installation to the clone."""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    start = f"""
import sys
sys.path.append({site!r})
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {hidden!r} else real(name, package)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-S", "-c", start + code], cwd=cwd, capture_output=True, text=True,
        env={**environment, "TORCH_HOME": str(cwd)},
    )  # fmt: skip


@pytest.mark.slow
def test_without_the_package_installed(tmp_path: Path) -> None:
    done = bare("import acmix_zoo", tmp_path)
    assert "No module named 'acmix_zoo'" in done.stderr
    code = f"""
import torch
model = torch.hub.load({str(ROOT)!r}, "acmix_resnet_pico", source="local", pretrained=True)
print(sys.modules["acmix_zoo"].__file__)
"""
    done = bare(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "acmix_zoo" / "__init__.py"


def test_a_missing_dependency_is_named(tmp_path: Path) -> None:
    code = f'import torch; torch.hub.load({str(ROOT)!r}, "acmix_resnet_pico", source="local")'
    done = bare(code, tmp_path, "timm", "safetensors")
    assert "acmix needs timm, safetensors; install with: pip install timm safetensors" in done.stderr


@pytest.mark.slow
def test_other_repositories_with_the_same_module_names_do_not_interfere(tmp_path: Path) -> None:
    """The hubconf of another project, whose modules have common names, is loaded before and after ours."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "models.py").write_text("value = 7")
    (tmp_path / "other" / "hubconf.py").write_text(
        "from models import value\ndependencies = []\ndef seven(): return value"
    )
    code = f"""
import torch
first = torch.hub.load({str(tmp_path / "other")!r}, "seven", source="local")
model = torch.hub.load({str(ROOT)!r}, "acmix_resnet_pico", source="local", pretrained=True)
again = torch.hub.load({str(tmp_path / "other")!r}, "seven", source="local")
model = torch.hub.load({str(ROOT)!r}, "acmix_swin_pico", source="local", pretrained="fashion_mnist")
print(first, again, type(model).__name__)
"""
    done = bare(code, tmp_path)
    assert done.stdout.strip() == "7 7 ACmixSwin", done.stderr


@pytest.mark.slow
def test_force_reload_and_trust(tmp_path: Path, archive: str) -> None:
    """A cached clone is used unchanged, `force_reload` replaces it, and a repository is trusted only once."""
    code = """
import builtins, sys, torch
from pathlib import Path
torch.hub._git_archive_link = lambda owner, name, ref: sys.argv[1]
home = Path(torch.hub.get_dir()) / "org_acmix_main"
load = lambda **more: torch.hub.load("org/acmix:main", "acmix_resnet_pico", skip_validation=True, **more)
asked = []
builtins.input = lambda prompt: asked.append(prompt) or "y"
load(trust_repo="check")  # asks, and remembers the answer
load(trust_repo="check")
(home / "mark").touch()
load()
kept = (home / "mark").exists()
load(force_reload=True)
import json
print(json.dumps({"asked": len(asked), "kept": kept, "replaced": not (home / "mark").exists()}))
"""
    result = run(code, archive, TORCH_HOME=str(tmp_path))
    assert {key: result[key] for key in ("asked", "kept", "replaced")} == {"asked": 1, "kept": True, "replaced": True}


def test_pretrained_true_tag_path_and_no_such_tag(tmp_path: Path) -> None:
    expected = acmix_zoo.create_model("acmix_resnet_pico", pretrained=True).fc.weight
    folder = ROOT / "checkpoints" / "acmix_resnet_pico.fashion_mnist"
    for pretrained in (True, "fashion_mnist", str(folder), folder, str(folder / "model.safetensors")):
        assert torch.equal(local("acmix_resnet_pico", pretrained=pretrained).fc.weight, expected)
    with pytest.raises(ValueError, match=r"acmix_resnet_pico has no tag 'imagenet'\. Expected fashion_mnist"):
        local("acmix_resnet_pico", pretrained="imagenet")


def test_a_second_version_in_one_process_warns(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "acmix_zoo", tmp_path / "acmix_zoo", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", tmp_path)
    with pytest.warns(UserWarning, match=r"already imported from .*start a new Python process"):
        torch.hub.load(str(tmp_path), "acmix_resnet_pico", source="local")
