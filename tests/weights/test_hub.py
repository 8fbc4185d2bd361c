"""Pushing and pulling weight folders: the real huggingface_hub client and a local server."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from support.hub_server import Hub, Repo
from support.weight_folders import ROOT, SHIPPED, file_contents, write_segmenter

from acmix_zoo import create_model, from_pretrained
from acmix_zoo.weights import check_folder, pull, push, read_config, write_folder
from acmix_zoo.weights.fetch import weight_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of shipped weights that a test may change."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "mine"))


@pytest.fixture
def transport_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the verification before a push, which other tests cover."""
    monkeypatch.setattr("acmix_zoo.weights.hub.check_folder", lambda folder: [])


def write_large_weights(folder: Path) -> Path:
    """Write a weight folder of more than 60 MB."""
    model = timm.create_model("acmix_resnet50", num_classes=10)
    return write_folder(
        folder, model, architecture="acmix_resnet50", pretrained_cfg={"tag": "large"}, record={"license": "mit"},
        example=torch.randn(1, 3, 64, 64),
    )  # fmt: skip


@pytest.mark.parametrize("task", ["classification", pytest.param("segmentation", marks=pytest.mark.slow)])
def test_a_pushed_folder_is_pulled_unchanged(hub: Hub, task: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "mine")) if task == "classification" else tmp_path / "mine"
    if task == "segmentation":
        write_segmenter(folder)
    address = push(folder, "org/pico")
    assert address.startswith(f"{hub.url}/org/pico/commit/") and hub.count("commit") == 1
    repo = hub.repos["org/pico"]
    assert not repo.private
    assert {k: v for k, v in repo.commits[repo.refs["main"]].items() if k != ".gitattributes"} == file_contents(folder)

    pulled = pull("org/pico", tmp_path / "pulled")
    assert file_contents(pulled) == file_contents(folder)
    images = torch.randn(2, 3, 32, 32)
    expected = create_model(folder).eval()(images)
    hub.log.clear()
    assert torch.equal(from_pretrained("org/pico").eval()(images), expected)
    assert all("safetensors" not in path for _, path in hub.log)  # from the cache
    assert from_pretrained("org/pico", num_classes=3)(images).shape[:2] == (2, 3)
    assert torch.equal(create_model("hf-hub:org/pico").eval()(images), expected)
    assert torch.equal(from_pretrained(folder).eval()(images), expected)


@pytest.mark.usefixtures("transport_only")
def test_a_revision_can_be_pulled(hub: Hub, folder: Path, tmp_path: Path) -> None:
    first = push(folder, "org/pico").rpartition("/")[2]
    config = read_config(folder)
    config["acmix_zoo"]["seed"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    push(folder, "org/pico")
    push(folder, "org/pico", revision="seed7")
    for revision, seed in ((f"@{first}", 0), ("", 7), ("@seed7", 7), ("@main", 7)):
        got = read_config(pull(f"org/pico{revision}", tmp_path / "pulled"))
        assert got["acmix_zoo"]["seed"] == seed
    with pytest.raises(FileNotFoundError, match=r"org/pico has no revision 'seed8'\. Expected one of its branches"):
        pull("org/pico@seed8", tmp_path / "pulled")
    assert check_folder(tmp_path / "pulled") == []


def test_a_push_removes_files_of_the_previous_one(hub: Hub, folder: Path) -> None:
    assert (folder / "pictures/curves.png").is_file()
    push(folder, "org/pico")
    repo = hub.repos["org/pico"]
    assert set(repo.commits[repo.refs["main"]]) - {".gitattributes"} == set(file_contents(folder))
    for name in (".eval_results", "pictures"):
        shutil.rmtree(folder / name)
    push(folder, "org/pico")
    assert set(repo.commits[repo.refs["main"]]) - {".gitattributes"} == set(file_contents(folder))


def test_a_private_repository_needs_a_token(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder, "org/secret", private=True)
    assert hub.repos["org/secret"].private
    assert check_folder(pull("org/secret", tmp_path / "mine2")) == []
    monkeypatch.delenv("HF_TOKEN")
    shutil.rmtree(tmp_path / "hf")
    with pytest.raises(FileNotFoundError, match="org/secret is neither a path on this machine nor a repository"):
        from_pretrained("org/secret")
    assert from_pretrained("org/secret", token="hf_read").num_classes == 10


@pytest.mark.slow
def test_an_interrupted_upload_of_a_large_file_is_resumed(hub: Hub, tmp_path: Path) -> None:
    folder = write_large_weights(tmp_path / "large")
    assert (folder / "model.safetensors").stat().st_size > 60_000_000
    before = file_contents(folder)
    hub.faults["commit"] = [503] * 50  # the files are uploaded, the commit fails
    with pytest.raises(ConnectionError, match=r"answered with an error \(503\). Nothing was published"):
        push(folder, "org/large")
    assert len(hub.repos["org/large"].commits) == 1 and file_contents(folder) == before
    sent = hub.count("lfs")
    hub.faults.clear()
    push(folder, "org/large")
    assert hub.count("lfs") == sent  # no file is sent again
    assert file_contents(pull("org/large", tmp_path / "back")) == before


@pytest.mark.usefixtures("transport_only")
@pytest.mark.parametrize("kind", ["create", "preupload", "batch", "lfs", "commit", "info"])
@pytest.mark.parametrize("fault", [503, 429, "cut"])
def test_a_single_failed_request_is_repeated(hub: Hub, folder: Path, kind: str, fault: object) -> None:
    hub.faults[kind] = [fault]
    push(folder, "org/pico")
    assert hub.repos["org/pico"].commits[hub.repos["org/pico"].refs["main"]]["README.md"]


_QUICK_FAULTS = {("create", 502), ("lfs", 502), ("lfs", "cut"), ("commit", 502)}


@pytest.mark.usefixtures("transport_only")
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        pytest.param(kind, fault, marks=() if (kind, fault) in _QUICK_FAULTS else pytest.mark.slow)
        for kind in ("create", "preupload", "batch", "lfs", "commit")
        for fault in (502, 429, "cut")
    ],
)
def test_repeated_failures_publish_nothing(hub: Hub, folder: Path, kind: str, fault: object) -> None:
    message = {
        502: r"the Hub answered with an error \(502\)",
        429: "too many requests to the Hub",
        "cut": "the connection to the Hub",
    }[fault]
    before = file_contents(folder)
    hub.faults[kind] = [fault] * 100
    with pytest.raises((ConnectionError, OSError), match=message) as caught:
        push(folder, "org/pico")
    assert "Nothing was published. The same command resumes the upload" in str(caught.value)
    assert file_contents(folder) == before
    assert all(len(repo.commits) == 1 for repo in hub.repos.values())
    hub.faults.clear()
    push(folder, "org/pico")
    assert len(hub.repos["org/pico"].commits) == 2


def test_missing_and_insufficient_tokens_are_rejected(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for token, message in (
        ("hf_read", "org/pico: the token has no write permission. Use a token with write permission for org"),
        ("hf_wrong", "the Hub does not accept the token. Run `hf auth login`"),
    ):
        with pytest.raises(PermissionError, match=message):
            push(folder, "org/pico", token=token)
    with pytest.raises(
        PermissionError, match=r"the token has no write permission\. Use a token with write permission for other"
    ):
        push(folder, "other/pico")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    hub.log.clear()
    with pytest.raises(PermissionError, match=r"there is no token for the Hub\. Run `hf auth login`, or set HF_TOKEN"):
        push(folder, "org/pico")
    assert not hub.log  # no unauthenticated request was sent


@pytest.mark.slow
def test_a_segmenter_is_not_replaced_by_a_classifier_with_its_backbone(hub: Hub, folder: Path, tmp_path: Path) -> None:
    push(write_segmenter(tmp_path / "segmenter"), "org/street")
    message = r"org/street exists and holds \w+ with unet for semantic segmentation\. Expected acmix_resnet_pico\."
    with pytest.raises(ValueError, match=message):
        push(folder, "org/street")
    with pytest.raises(ValueError, match=r"with unet .* Expected .* with fpn"):
        push(write_segmenter(tmp_path / "fpn", "fpn"), "org/street")


def test_unsuitable_folders_and_names_are_not_pushed(hub: Hub, folder: Path, tmp_path: Path) -> None:
    push(folder, "org/pico")
    with pytest.raises(ValueError, match=r"org/pico exists and holds acmix_resnet_pico\. Expected acmix_swin_pico"):
        push(ROOT / "checkpoints" / "acmix_swin_pico.fashion_mnist", "org/pico")
    for name in ("pico", "a/b/c", "org/", "or g/x"):
        with pytest.raises(ValueError, match=r"Expected org/name|is not a valid repository name on"):
            push(folder, name)
    config = read_config(folder)
    config["acmix_zoo"]["origin"] = "the authors' file; published without a licence, so it must not be redistributed"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="must not be redistributed"):
        push(folder, "org/converted")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    with pytest.raises(ValueError, match=r"does not verify and was not pushed: model.safetensors: sha256"):
        push(folder, "org/converted")
    with pytest.raises(FileNotFoundError, match="is a folder without weights"):
        push(tmp_path, "org/converted")
    assert "org/converted" not in hub.repos


class TestPull:
    def test_existing_files_are_not_overwritten_by_an_error(self, hub: Hub, folder: Path, tmp_path: Path) -> None:
        push(folder, "org/pico")
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "a.png").touch()
        with pytest.raises(FileExistsError, match=r"is not a weight folder\. Expected a new path"):
            pull("org/pico", tmp_path / "photos")
        repo = hub.repos["org/pico"]
        files = repo.commits[repo.refs["main"]]
        repo.commit("main", {**files, "model.safetensors": files["model.safetensors"][:-1] + b"\x7f"})
        before = file_contents(folder)
        with pytest.raises(ValueError, match=r"would not verify: model\.safetensors: sha256 is"):
            pull("org/pico", folder)
        assert file_contents(folder) == before
        with pytest.raises(ValueError, match=r"is changed or damaged: its sha256 is"):
            from_pretrained("org/pico")

    def test_a_file_of_the_wrong_size_is_not_downloaded(self, hub: Hub, folder: Path, tmp_path: Path) -> None:
        push(folder, "org/pico")
        repo = hub.repos["org/pico"]
        repo.commit("main", {**repo.commits[repo.refs["main"]], "model.safetensors": bytes(1000)})
        with pytest.raises(ValueError, match=r"has 1000 bytes, but config.json says 2657432. It was not downloaded"):
            pull("org/pico", tmp_path / "pulled")
        assert not (tmp_path / "pulled").exists()

    def test_only_the_files_of_a_weight_folder_are_downloaded(self, hub: Hub, folder: Path, tmp_path: Path) -> None:
        push(folder, "org/pico")
        repo = hub.repos["org/pico"]
        more = {"setup.py": b"evil", "pytorch_model.bin": b"evil", "acmix_zoo/__init__.py": b"evil"}
        repo.commit("main", {**repo.commits[repo.refs["main"]], **more})
        assert (Path(huggingface_hub.snapshot_download("org/pico")) / "setup.py").is_file()  # in the cache, too
        for _ in range(2):
            assert file_contents(pull("org/pico", tmp_path / "pulled")) == file_contents(folder)

    def test_a_repository_without_weights_is_rejected(self, hub: Hub, tmp_path: Path) -> None:
        hub.repos["org/empty"] = Repo(private=False)
        with pytest.raises(FileNotFoundError, match="org/empty is not a weight folder"):
            pull("org/empty", tmp_path / "pulled")
        with pytest.raises(FileNotFoundError, match="org/none is neither a path on this machine nor a repository"):
            from_pretrained("org/none")

    def test_cached_weights_are_used_offline(self, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        push(folder, "org/pico")
        from_pretrained("org/pico")
        assert {path.name for path in weight_folder("org/pico", is_complete=False).iterdir()} == {
            "config.json", "model.safetensors",
        }  # fmt: skip
        hub.shutdown()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert from_pretrained("org/pico").num_classes == 10
        with pytest.raises(ConnectionError, match=r"the Hub cannot be reached.*HF_HUB_OFFLINE"):
            from_pretrained("org/other")

    def test_failed_requests_are_repeated(self, hub: Hub, folder: Path, tmp_path: Path) -> None:
        push(folder, "org/pico")
        hub.faults["resolve"] = [None, None, 503, "cut"]
        assert check_folder(pull("org/pico", tmp_path / "pulled")) == []


@pytest.mark.slow
def test_timm_loads_weights_from_the_hub(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """This needs its own process, because timm reads the address of the Hub from the environment at import."""
    push(folder, "org/pico")
    code = "import acmix_zoo, timm; print(timm.create_model('hf-hub:org/pico', True).fc.weight.sum().item())"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    expected = safetensors.torch.load_file(folder / "model.safetensors")["fc.weight"].sum().item()
    assert float(result.stdout) == pytest.approx(expected)


@pytest.mark.slow
def test_the_tag_swin_in1k_loads_plain_weights_from_the_hub(hub: Hub) -> None:
    """It names timm's weights of the plain Swin-T, here random ones, which timm's own code downloads."""
    plain = timm.create_model("swin_tiny_patch4_window7_224.ms_in1k").eval()
    with torch.no_grad():
        for value in plain.parameters():
            value.add_(0.02 * torch.randn_like(value))
    repo = hub.repos.setdefault(plain.pretrained_cfg["hf_hub_id"], Repo(private=False))
    repo.commit("main", {"model.safetensors": safetensors.torch.save(plain.state_dict(), {"format": "pt"})})
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = plain(x)
        for model in (
            timm.create_model("acmix_swin_t.swin_in1k", pretrained=True),
            create_model("acmix_swin_t", "swin_in1k"),
        ):
            # Bit-identical on some processors; others may round differently.
            assert (model.eval()(x) - expected).abs().max() <= 1e-6 * expected.abs().max() and expected.std() > 0.1
    assert create_model("acmix_swin_t", "swin_in1k", num_classes=3)(x).shape == (1, 3)
