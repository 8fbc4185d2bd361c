"""`acmix-zoo verify`, `convert`, `export` and `fit --run.push_to`: results and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

pytest.importorskip("lightning")

import lightning as L
from support.commands import run_command
from support.hub_server import Hub
from support.image_data import write_digits
from support.weight_folders import ROOT, SHIPPED

from acmix_zoo import create_model
from acmix_zoo.cli.main import main
from acmix_zoo.data import ImageDataModule
from acmix_zoo.data.indexed_loaders import IndexedLoaders
from acmix_zoo.data.splits import Split
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training import RunFolder
from acmix_zoo.training.record import is_complete
from acmix_zoo.weights import read_config


class TestVerify:
    def test_all_shipped_weights_verify(self, capsys: pytest.CaptureFixture[str]) -> None:
        folders = [path.parent for path in (ROOT / "checkpoints").glob("*/config.json")]
        out = run_command(capsys, "verify", *folders, "acmix_swin_pico", "acmix_resnet_pico.fashion_mnist")
        assert out.count("verified") == len(folders) + 2

    def test_an_incomplete_folder_is_reported(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        folder = Path(shutil.copytree(SHIPPED, tmp_path / "w"))
        (folder / "test" / "example.safetensors").unlink()
        assert main(["verify", str(folder), str(SHIPPED)]) == 1
        out, error = capsys.readouterr()
        assert f"{folder}: not verified: test/example.safetensors" in error and f"{SHIPPED}: verified" in out
        assert "unknown model 'nothing_here'" in run_command(capsys, "verify", "nothing_here", SHIPPED, code=1)

    def test_the_accuracy_is_measured_again(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fashion_mnist: str
    ) -> None:
        """The measured accuracy is compared with the recorded one. Only some test images are used, to save time."""
        original = IndexedLoaders.splits.func

        def first_images(self: IndexedLoaders) -> dict[str, Split]:
            return {name: Split(split.images, split.indices[:500]) for name, split in original(self).items()}

        monkeypatch.setattr(IndexedLoaders, "splits", property(first_images))
        error = run_command(capsys, "verify", SHIPPED, "--data", fashion_mnist, code=1)
        assert "has 500 test images. Expected 10,000" in error
        folder = Path(shutil.copytree(SHIPPED, tmp_path / "w"))
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text(config.replace('"test": 10000', '"test": 500'))
        out = run_command(capsys, "verify", folder, "--data", fashion_mnist, code=1)
        assert "not verified: test top1: 9" in out and "% measured, 93.87 % recorded" in out
        write_digits(tmp_path / "photos", train=3)
        assert main(["verify", str(SHIPPED), str(folder), "--data", str(tmp_path / "photos"), "--json"]) == 1
        results = json.loads(capsys.readouterr().out)
        assert len(results) == 2 and all("the classes of" in result["problems"][0] for result in results)
        for folder_of_class in list((tmp_path / "photos").glob("*/9")):
            shutil.rmtree(folder_of_class)
        content = json.loads(config)
        del content["label_names"]
        (folder / "config.json").write_text(json.dumps(content))
        error = run_command(capsys, "verify", folder, "--data", tmp_path / "photos", code=1)
        assert f"Expected those of {folder}, 10 classes" in error

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"])
    def test_the_recorded_accuracy_of_every_shipped_network(
        self, capsys: pytest.CaptureFixture[str], fashion_mnist: str, name: str
    ) -> None:
        out = run_command(capsys, "verify", name, "--data", fashion_mnist)
        assert f"{name}: test top1: 9" in out and f"{name}: verified" in out


class TestConvert:
    def test_a_checkpoint_is_converted(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        model = timm.create_model("acmix_resnet_pico", num_classes=4)
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "mine.pth")
        out = run_command(capsys, "convert", tmp_path / "mine.pth", tmp_path / "w", "--model", "acmix_resnet_pico.mine")
        assert out == f"{tmp_path / 'w'}: 651,512 parameters; verified\n" or "parameters; verified" in out
        record = read_config(tmp_path / "w")["acmix_zoo"]
        assert (record["name"], record["origin"]) == ("acmix_resnet_pico.mine", "converted from mine.pth")
        assert torch.equal(create_model(tmp_path / "w").fc.weight, model.fc.weight)

    def test_a_checkpoint_for_grey_images_is_converted(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        model = timm.create_model("acmix_resnet_pico", num_classes=4, in_chans=1)
        torch.save({"net": model.state_dict()}, tmp_path / "grey.pth")
        run_command(capsys, "convert", tmp_path / "grey.pth", tmp_path / "w", "--model", "acmix_resnet_pico.grey")
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
            assert message in run_command(capsys, "convert", tmp_path / file, tmp_path / "w", "--model", name, code=1)
        assert not (tmp_path / "w").exists()

    def test_arguments_of_the_network(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """The folder may come last. Arguments that do not suit the network, or no network, are named."""
        torch.save(timm.create_model("acmix_pvt_pico", img_size=64).state_dict(), tmp_path / "w.pth")
        convert = ["convert", tmp_path / "w.pth", "--model", "acmix_pvt_pico.mine", "--model-kwargs"]
        run_command(capsys, *convert, "img_size=64", "drop_path_rate=0.1", tmp_path / "last")
        assert read_config(tmp_path / "last")["model_args"]["img_size"] == 64
        for word, message in (
            ("img_size=96", "such as img_size=64, instead of {'img_size': 96}"),
            ("window=3", "acmix_pvt_pico cannot be built with {'window': 3}: "),
            ("num_classes=5", "--model-kwargs cannot set num_classes. Expected arguments of the network's constructor"),
            ("pretrained_cfg=x", "cannot set pretrained_cfg"),
        ):
            assert message in run_command(capsys, *convert, word, tmp_path / "w", code=1)
        for words in (["img_size"], ["img_size", tmp_path / "w"]):
            with pytest.raises(SystemExit):
                main([str(word) for word in (*convert, *words)])
        assert "--model-kwargs img_size has no value" in capsys.readouterr().err
        assert "the tag 'a/b' cannot be part of a folder name" in run_command(
            capsys, "convert", tmp_path / "w.pth", "--model", "acmix_pvt_pico.a/b", code=1
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an unfinished run of two epochs with averaged weights. It has checkpoints, but no weights/."""
    folder = tmp_path_factory.mktemp("export")
    write_digits(folder / "photos", train=8)
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


class TestPushAfterTraining:
    """`--run.push_to` publishes the weights. The run succeeds even if the Hub fails."""

    def fit(self, folder: Path, *more: str) -> int:
        write_digits(folder / "photos", train=8)
        options = {
            "config": ROOT / "recipes" / "finetune" / "folder.yaml", "data.source": folder / "photos",
            "run.folder": folder / "run", "trainer.max_epochs": 1, "trainer.accelerator": "cpu",
        }  # fmt: skip
        return main(["fit", *(f"--{key}={value}" for key, value in options.items()), *more])

    @pytest.mark.slow
    def test_the_weights_are_published(self, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.fit(tmp_path, "--run.push_to=org/photos") == 0
        assert f"Published the weights: {hub.url}/org/photos/commit/" in capsys.readouterr().out
        repo = hub.repos["org/photos"]
        weights = (tmp_path / "run" / "weights" / "model.safetensors").read_bytes()
        assert repo.commits[repo.refs["main"]]["model.safetensors"] == weights

    @pytest.mark.slow
    def test_a_failing_hub_does_not_fail_the_run(
        self, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hub.faults["create"] = [503] * 100
        assert self.fit(tmp_path, "--run.push_to=org/photos") == 0
        out = capsys.readouterr().out
        assert "Warning: could not publish the weights: org/photos: the Hub answered with an error (503)" in out
        assert f"To try again: acmix-zoo push {tmp_path / 'run' / 'weights'} org/photos" in out
        hub.faults.clear()
        assert run_command(capsys, "push", tmp_path / "run" / "weights", "org/photos").startswith(hub.url)

    def test_a_missing_token_is_reported_before_the_first_epoch(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        assert self.fit(tmp_path, "--run.push_to=org/photos") == 1
        assert "there is no token for the Hub" in capsys.readouterr().err
        assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


class TestExport:
    def test_averaged_weights_are_exported_by_default(
        self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert "acmix_resnet_pico.digits8; verified" in run_command(capsys, "export", run, tmp_path / "w")
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

    def test_trained_weights_are_exported_with_no_ema(
        self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        run_command(capsys, "export", run / "checkpoints" / "last.ckpt", tmp_path / "w", "--no-ema")
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
    def test_options_that_leave_images_out_are_recognised(self, options: dict[str, Any], is_recorded: bool) -> None:
        assert is_complete({f"trainer.{name}": value for name, value in options.items()}, "val") == is_recorded

    @pytest.mark.parametrize(
        ("options", "is_recorded"), [({"limit_val_batches": 1.0}, True), ({"limit_val_batches": 1}, False)], ids=str
    )
    def test_scores_on_part_of_a_split_are_not_recorded(
        self,
        options: dict[str, Any],
        is_recorded: bool,
        run: Path,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        limits = {f"trainer.{k}": v for k, v in options.items()}
        checkpoint["callbacks"]["RunFolder"] |= {"limits": limits}
        torch.save(checkpoint, tmp_path / "limited.ckpt")
        run_command(capsys, "export", tmp_path / "limited.ckpt", tmp_path / "w")
        assert bool(read_config(tmp_path / "w")["acmix_zoo"]["metrics"]) == is_recorded

    def test_scores_of_a_limited_run_in_python_are_not_recorded(
        self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """Such a run has no recorded command-line options."""
        data = ImageDataModule(str(run.parent / "photos"), image_size=32, batch_size=16, val_fraction=0.25)
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            limit_train_batches=1, limit_val_batches=1, callbacks=[RunFolder(str(tmp_path / "run"))],
        )  # fmt: skip
        trainer.fit(ClassificationTask("acmix_resnet_pico", num_classes=10), data)
        run_command(capsys, "export", tmp_path / "run", tmp_path / "w")
        assert read_config(tmp_path / "w")["acmix_zoo"]["metrics"] == []

    def test_the_weights_of_a_finished_run_are_copied(
        self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        finished = Path(shutil.copytree(run, tmp_path / "run"))
        shutil.copytree(SHIPPED, finished / "weights")
        (finished / "weights/pictures/notes").mkdir(parents=True)
        (finished / "weights/pictures/mine.png").touch()
        for _ in range(2):  # the second copy replaces the first
            run_command(capsys, "export", finished, tmp_path / "w")
        assert not (tmp_path / "w/pictures/notes").exists() and not (tmp_path / "w/pictures/mine.png").exists()
        assert (tmp_path / "w/pictures/curves.png").exists()
        assert (tmp_path / "w" / "README.md").read_bytes() == (SHIPPED / "README.md").read_bytes()

    def test_a_finished_run_can_be_given_instead_of_its_weights(
        self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert "acmix-zoo export" in run_command(capsys, "verify", run, code=1)  # not finished
        finished = tmp_path / "run"
        shutil.copytree(SHIPPED, finished / "weights")
        for path in (finished, finished / "config.yaml"):
            assert f"{path}: verified" in run_command(capsys, "verify", path)
        assert "weights  acmix_resnet_pico.fashion_mnist" in run_command(capsys, "info", finished)

    def test_a_weight_folder_with_the_name_of_a_file_is_rejected(
        self, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        error = run_command(capsys, "export", run, tmp_path / "model.pth", code=1)
        assert "model.pth is the name of a .pth file" in error and "torch.save(" in error
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
            (tmp_path / "other.ckpt", [], "is not a Lightning checkpoint of a task"),
            (tmp_path / "cut.ckpt", [], "is damaged"),
            (tmp_path / "none", [], "does not exist. Expected a weight folder, a run folder or a checkpoint"),
        ):
            assert message in run_command(capsys, "export", source, tmp_path / "w", *options, code=1)
        assert "is not a weight folder. Expected a new path" in run_command(
            capsys, "export", run, tmp_path / "photos", code=1
        )
        assert not (tmp_path / "w").exists()
