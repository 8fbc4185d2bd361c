"""`acmix-zoo verify`, `convert` and `export`: what they print, what they write, how they fail."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

pytest.importorskip("lightning")

import lightning as L
from support.hub_server import Hub

from acmix_zoo import create_model
from acmix_zoo.cli.main import main
from acmix_zoo.data import ImageDataModule, export_folder
from acmix_zoo.data.indexed_loaders import IndexedLoaders
from acmix_zoo.data.splits import Split
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training import RunFolder
from acmix_zoo.training.portable import portable_command
from acmix_zoo.training.record import is_complete, parent_name, run_record
from acmix_zoo.weights import read_config

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "checkpoints" / "acmix_resnet_pico.fashion_mnist"


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert main([str(a) for a in arguments]) == code
    out, error = capsys.readouterr()
    return out if code == 0 else error


class TestVerify:
    def test_all_that_ship(self, capsys: pytest.CaptureFixture[str]) -> None:
        folders = [path.parent for path in (ROOT / "checkpoints").glob("*/config.json")]
        out = said(capsys, "verify", *folders, "acmix_swin_pico", "acmix_resnet_pico.fashion_mnist")
        assert out.count("verified") == len(folders) + 2

    def test_what_does_not(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        folder = Path(shutil.copytree(SHIPPED, tmp_path / "w"))
        (folder / "test" / "example.safetensors").unlink()
        assert main(["verify", str(folder), str(SHIPPED)]) == 1
        out, error = capsys.readouterr()
        assert f"{folder}: NOT VERIFIED: test/example.safetensors" in error and f"{SHIPPED}: verified" in out
        assert "unknown model 'nothing_here'" in said(capsys, "verify", "nothing_here", code=1)

    def test_the_metric_again(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fashion_mnist: str
    ) -> None:
        """The measured accuracy is compared with the recorded one. Only some test images are used, to save time."""
        original = IndexedLoaders.splits.func

        def first_images(self: IndexedLoaders) -> dict[str, Split]:
            return {name: Split(split.images, split.indices[:500]) for name, split in original(self).items()}

        monkeypatch.setattr(IndexedLoaders, "splits", property(first_images))
        out = said(capsys, "verify", SHIPPED, "--data", fashion_mnist, code=1)
        assert "NOT VERIFIED: test top1: 9" in out and "% measured, 93.02 % recorded" in out
        export_folder("digits", tmp_path / "photos", per_class={"train": 3})
        assert "has other classes than" in said(capsys, "verify", SHIPPED, "--data", tmp_path / "photos", code=1)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"])
    def test_the_recorded_metric(self, capsys: pytest.CaptureFixture[str], fashion_mnist: str, name: str) -> None:
        out = said(capsys, "verify", name, "--data", fashion_mnist)
        assert f"{name}: test top1: 9" in out and f"{name}: verified" in out


class TestConvert:
    def test_any_checkpoint(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        model = timm.create_model("acmix_resnet_pico", num_classes=4)
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "mine.pth")
        out = said(capsys, "convert", tmp_path / "mine.pth", tmp_path / "w", "--model", "acmix_resnet_pico.mine")
        assert out == f"{tmp_path / 'w'}: 651,512 parameters; verified\n" or "parameters; verified" in out
        record = read_config(tmp_path / "w")["acmix_zoo"]
        assert (record["name"], record["origin"]) == ("acmix_resnet_pico.mine", "converted from mine.pth")
        assert torch.equal(create_model(tmp_path / "w").fc.weight, model.fc.weight)

    def test_other_channels(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        model = timm.create_model("acmix_resnet_pico", num_classes=4, in_chans=1)
        torch.save({"net": model.state_dict()}, tmp_path / "grey.pth")
        said(capsys, "convert", tmp_path / "grey.pth", tmp_path / "w", "--model", "acmix_resnet_pico.grey")
        cfg = read_config(tmp_path / "w")["pretrained_cfg"]
        assert cfg["input_size"] == [1, 32, 32] and cfg["mean"] == pytest.approx([0.449]) and len(cfg["std"]) == 1
        assert create_model(tmp_path / "w")(torch.zeros(2, 1, 32, 32)).shape == (2, 4)

    def test_errors(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "other.pth")
        for file, name, message in (
            ("other.pth", "acmix_resnet_pico", "does not fit ACmixResNet"),
            ("other.pth", "acmix_nothing", "unknown model 'acmix_nothing'"),
            ("none.pth", "acmix_resnet_pico", "does not exist"),
        ):
            assert message in said(capsys, "convert", tmp_path / file, tmp_path / "w", "--model", name, code=1)
        assert not (tmp_path / "w").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with averaged weights that was not finished: it has checkpoints and no weights/."""
    folder = tmp_path_factory.mktemp("export")
    export_folder("digits", folder / "photos", per_class={"train": 8})
    data = ImageDataModule(
        str(folder / "photos"), image_size=32, batch_size=16, val_fraction=0.25, mean=(0.5, 0.5, 0.5)
    )
    task = ClassificationTask("acmix_resnet_pico", num_classes=10, ema_decay=0.5, model_kwargs={"drop_path_rate": 0.1})
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[RunFolder(str(folder / "run"), tag="digits8", license="cc0-1.0")],
    )  # fmt: skip
    trainer.fit(task, data)
    return folder / "run"


class TestPushWhenTheRunEnds:
    """`--run.push_to`: the weights are published; a Hub that fails does not fail the run."""

    def fit(self, folder: Path, *more: str) -> int:
        export_folder("digits", folder / "photos", per_class={"train": 8})
        options = {
            "config": ROOT / "recipes" / "finetune" / "folder.yaml", "data.source": folder / "photos",
            "run.folder": folder / "run", "trainer.max_epochs": 1, "trainer.accelerator": "cpu",
        }  # fmt: skip
        return main(["fit", *(f"--{key}={value}" for key, value in options.items()), *more])

    @pytest.mark.slow
    def test_published(self, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.fit(tmp_path, "--run.push_to=org/photos") == 0
        assert f"Published the weights: {hub.url}/org/photos/commit/" in capsys.readouterr().out
        repo = hub.repos["org/photos"]
        weights = (tmp_path / "run" / "weights" / "model.safetensors").read_bytes()
        assert repo.commits[repo.refs["main"]]["model.safetensors"] == weights

    def test_a_hub_that_fails(self, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hub.faults["create"] = [503] * 100
        assert self.fit(tmp_path, "--run.push_to=org/photos") == 0
        out = capsys.readouterr().out
        assert "Warning: could not publish the weights: org/photos: the Hub answered with an error (503)" in out
        assert f"To try again: acmix-zoo push {tmp_path / 'run' / 'weights'} org/photos" in out
        hub.faults.clear()
        assert said(capsys, "push", tmp_path / "run" / "weights", "org/photos").startswith(hub.url)

    def test_no_token_is_said_before_the_first_epoch(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        assert self.fit(tmp_path, "--run.push_to=org/photos") == 1
        assert "there is no token for the Hub" in capsys.readouterr().err
        assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


class TestExport:
    def test_the_average_by_default(self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert "acmix_resnet_pico.digits8; verified" in said(capsys, "export", run, tmp_path / "w")
        checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        model = create_model(tmp_path / "w")
        assert torch.equal(model.fc.weight, checkpoint["state_dict"]["model.fc.weight"])
        config = read_config(tmp_path / "w")
        record, cfg = config["acmix_zoo"], config["pretrained_cfg"]
        assert cfg["label_names"] == [str(i) for i in range(10)] and cfg["mean"] == [0.5, 0.5, 0.5]
        assert cfg["input_size"] == [3, 32, 32] and record["license"] == "cc0-1.0" and record["seed"] is not None
        assert record["dataset"]["splits"]["val"] == 20 and record["dataset"]["fingerprint"]
        assert {m["name"] for m in record["metrics"]} == {"top1", "top5"}
        row = checkpoint["callbacks"]["RunFolder"]["history"][-1]
        assert record["metrics"][0]["value"] == round(row["val/top1"], 6)

    def test_the_trained_weights(self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        said(capsys, "export", run / "checkpoints" / "last.ckpt", tmp_path / "w", "--no-ema")
        checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        weight = create_model(tmp_path / "w").fc.weight
        assert torch.equal(weight, checkpoint["current_model_state"]["model.fc.weight"])
        assert not torch.equal(weight, checkpoint["state_dict"]["model.fc.weight"])
        assert read_config(tmp_path / "w")["acmix_zoo"]["metrics"] == []  # they were not evaluated

    @pytest.mark.parametrize(
        ("options", "is_recorded"),
        [
            ({"limit_val_batches": None, "overfit_batches": 0.0, "fast_dev_run": False}, True),
            ({"limit_val_batches": 1.0}, True),
            ({"limit_val_batches": 1}, False),  # one batch
            ({"limit_val_batches": 0.5}, False),
            ({"overfit_batches": 2}, False),
            ({"fast_dev_run": 3}, False),
        ],
        ids=str,
    )
    def test_which_options_leave_images_out(self, options: dict[str, Any], is_recorded: bool) -> None:
        assert is_complete({f"trainer.{name}": value for name, value in options.items()}, "val") == is_recorded

    @pytest.mark.parametrize(
        ("options", "is_recorded"), [({"limit_val_batches": 1.0}, True), ({"limit_val_batches": 1}, False)], ids=str
    )
    def test_scores_of_a_part_of_a_split_are_not_recorded(
        self,
        options: dict[str, Any],
        is_recorded: bool,
        run: Path,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        limits = {f"trainer.{k}": v for k, v in options.items()}
        checkpoint["callbacks"]["RunFolder"] |= {"limits": {}, "options": limits}  # as in an older checkpoint
        torch.save(checkpoint, tmp_path / "limited.ckpt")
        said(capsys, "export", tmp_path / "limited.ckpt", tmp_path / "w")
        assert bool(read_config(tmp_path / "w")["acmix_zoo"]["metrics"]) == is_recorded

    def test_nor_those_of_a_limited_run_in_python(
        self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """Which has no options of a command line."""
        data = ImageDataModule(str(run.parent / "photos"), image_size=32, batch_size=16, val_fraction=0.25)
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            limit_train_batches=1, limit_val_batches=1, callbacks=[RunFolder(str(tmp_path / "run"))],
        )  # fmt: skip
        trainer.fit(ClassificationTask("acmix_resnet_pico", num_classes=10), data)
        said(capsys, "export", tmp_path / "run", tmp_path / "w")
        assert read_config(tmp_path / "w")["acmix_zoo"]["metrics"] == []

    def test_a_finished_run(self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        finished = Path(shutil.copytree(run, tmp_path / "run"))
        shutil.copytree(SHIPPED, finished / "weights")
        said(capsys, "export", finished, tmp_path / "w")
        assert (tmp_path / "w" / "README.md").read_bytes() == (SHIPPED / "README.md").read_bytes()

    def test_a_run_folder_works_as_its_weights(
        self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert "acmix-zoo export" in said(capsys, "verify", run, code=1)  # it was not finished
        finished = tmp_path / "run"
        shutil.copytree(SHIPPED, finished / "weights")
        for place in (finished, finished / "config.yaml"):
            assert f"{place}: verified" in said(capsys, "verify", place)
        assert "weights  acmix_resnet_pico.fashion_mnist" in said(capsys, "info", finished)

    def test_a_file_is_not_a_folder(self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        error = said(capsys, "export", run, tmp_path / "model.onnx", code=1)
        assert "model.onnx is the name of a .onnx file" in error and "torch.onnx.export(" in error
        assert not list(tmp_path.iterdir())

    def test_errors(self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        del checkpoint["current_model_state"]
        torch.save(checkpoint, tmp_path / "plain.ckpt")
        torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
        (tmp_path / "cut.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes()[:1000])
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "a.png").touch()
        for source, options, message in (
            (tmp_path / "plain.ckpt", ["--no-ema"], "has no averaged weights, only the trained ones"),
            (tmp_path / "other.ckpt", [], "is not a Lightning checkpoint of a ClassificationTask"),
            (tmp_path / "cut.ckpt", [], "is damaged"),
            (tmp_path / "none", [], "does not exist. Expected a weight folder, a run folder or a checkpoint"),
        ):
            assert message in said(capsys, "export", source, tmp_path / "w", *options, code=1)
        assert "is not a weight folder. Choose another place" in said(
            capsys, "export", run, tmp_path / "photos", code=1
        )
        assert not (tmp_path / "w").exists()


class TestPortable:
    """What a record shows of the paths on a command line."""

    @pytest.mark.parametrize(
        ("given", "shown"),
        [
            ("--data.source=/data/ann/photos --x 1", "--data.source=photos --x 1"),
            ("--data.source {cwd}/my/photos", "--data.source ./my/photos"),  # my/photos could be a data set of the Hub
            ("--config {cwd}/recipes/finetune/folder.yaml", "--config recipes/finetune/folder.yaml"),
            ("-c {root}/recipes/finetune/folder.yaml", "-c recipes/finetune/folder.yaml"),
            ("-c /home/ann/recipes/finetune/folder.yaml", "-c folder.yaml"),  # does not ship
            ("--config '/home/ann/my recipe.yaml'", "--config 'my recipe.yaml'"),
            ("--data.source photos --run.folder ../runs/a", "--data.source photos --run.folder ../runs/a"),
            ("--data.source hf://org/name --model.pretrained org/name", None),
            ("--a '[/data/x, /data/y]'", "--a '[x, y]'"),
            ('--a \'{"dir": "/data/ann/x", "lr": 0.1}\'', '--a \'{"dir": "x", "lr": 0.1}\''),
            ("--url https://host/a/b --ratio 1/2", None),
            ("--data.source file:///home/ann/x --y=file://localhost/home/ann/z", "--data.source x --y=z"),
            ("--a '[file:///home/ann/x, a:/home/ann/y]' --b a:/home/ann/y", "--a '[x, a:y]' --b a:y"),
        ],
    )
    def test_command(self, given: str, shown: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        given = "acmix-zoo fit " + given.replace("{cwd}", str(tmp_path)).replace("{root}", str(ROOT))
        assert portable_command(given) == (f"acmix-zoo fit {shown}" if shown else given)
        assert portable_command(portable_command(given)) == portable_command(given)

    def test_changes(self) -> None:
        def changes(place: str) -> list[dict[str, Any]]:
            callbacks = [{"class_path": "a.B", "init_args": {"dirpath": place, "every": 2}}]
            return [{"step": 4, "options": {"trainer.callbacks": [None, callbacks], "trainer.max_epochs": [2, 3]}}]

        assert run_record({"changes": changes("/home/ann/ck")}, {}, {})["changes"] == changes("ck")

    def test_in_the_root_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir("/")
        assert portable_command("acmix-zoo fit --data.source /data/ann/photos") == "acmix-zoo fit --data.source photos"
        for given in ("--data.source /data/ann/fashion_mnist", "--data.source=/data/ann/digits"):  # not shipped
            short = given.replace("/data/ann/", "./")
            assert portable_command(f"acmix-zoo fit {given}") == f"acmix-zoo fit {short}"
            assert portable_command(f"acmix-zoo fit {short}") == f"acmix-zoo fit {short}"

    def test_parent(self, tmp_path: Path) -> None:
        assert parent_name(str(SHIPPED), {}) == "acmix_resnet_pico.fashion_mnist"
        assert parent_name(str(tmp_path / "start.pth"), {}) == "start.pth"
        assert parent_name("runs/a/weights", {}) == "runs/a/weights"
