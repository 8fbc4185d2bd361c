"""`acmix-zoo classify` and `predict`: results, skipped files and errors."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm

pytest.importorskip("lightning")

from support.commands import assert_fails
from support.weight_folders import SHIPPED

from acmix_zoo.cli.classify import classify
from acmix_zoo.cli.main import main


def test_predict_and_classify_agree(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = photos / "test/class1"
    assert main(["predict", "--config", str(run / "config.yaml"), f"--data.predict={source}"]) == 0
    with (run / "predictions.csv").open() as file:
        predicted = list(csv.DictReader(file))
    (run / "predictions.csv").unlink()
    assert sorted(Path(row["path"]).name for row in predicted) == [f"{i}.png" for i in range(4)]
    capsys.readouterr()
    results = classify([*(row["path"] for row in predicted), "--model", str(run / "weights"), "--top", "2"])
    for row, (_, (best, second)) in zip(predicted, results, strict=True):
        assert row["class"] == best.name
        assert float(row["probability"]) == pytest.approx(best.probability, abs=1e-3)
        assert second.probability <= best.probability
    out, error = capsys.readouterr()
    assert out.splitlines()[0] == predicted[0]["path"] and out.splitlines()[1].endswith(f" %  {predicted[0]['class']}")
    assert "knows 3 classes (class0, class1, class2); every image is assigned to one of them" in error


def test_folders_that_timm_wrote(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """timm also states the number of classes and channels among the arguments of the network."""
    image = str(photos / "test/class0/0.png")
    for channels in (3, 1):
        model = timm.create_model("acmix_resnet_pico", num_classes=4, in_chans=channels)
        timm.models.save_for_hf(model, tmp_path / f"theirs{channels}", safe_serialization=True)
        assert main(["classify", image, "--model", str(tmp_path / f"theirs{channels}")]) == 0
    predict = ["predict", image, "--output", str(tmp_path / "out"), "--model"]
    assert main([*predict, str(tmp_path / "theirs3")]) == 0
    with (tmp_path / "out/predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1
    data = ["--data.source", str(photos), "--trainer.fast_dev_run", "true"]
    fit = ["fit", "--config", "finetune/folder", *data, "--model.model", str(tmp_path / "theirs3")]
    assert main([*fit, "--model.pretrained", "false", "--run.folder", str(tmp_path / "run")]) == 0
    assert_fails([*predict, str(tmp_path / "theirs1")], capsys, "with 1 channel. Expected one for RGB", "classify")


@pytest.mark.parametrize(
    "weights", ["", "config.yaml", "weights", "weights/model.safetensors", "checkpoints/best.ckpt"]
)
def test_classify_accepts_a_run_and_its_files(
    weights: str, run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = classify([str(photos / "test"), "--model", str(run / weights), "--top", "1"])
    assert len(results) == 12 and capsys.readouterr().out.count(" %  class") == 12
    (tmp_path / "empty").mkdir()
    assert_fails(["classify", str(tmp_path / "empty"), "--model", str(run)], capsys, "empty", "no images")


def test_classify_lists_skipped_files(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other images are classified. The command only fails if a file was given explicitly."""
    phone = tmp_path / "phone"
    shutil.copytree(photos / "test/class0", phone)
    for name in ("a.heic", "b.heic", "c.svg", "d.dng", "e.pdf", "list.txt"):
        (phone / name).write_text("-")
    (phone / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    model, picture = f"--model={run / 'weights'}", str(phone / "0.png")
    assert main(["classify", model, str(phone), "--top=1"]) == 0
    out, error = capsys.readouterr()
    assert out.count(" %  class") == 4
    assert f"{phone}: skipped 2 .heic files (first: a.heic): to read them, `pip install pillow-heif`" in error
    assert "skipped 1 .svg file" in error and "skipped 1 .dng file" in error and "skipped 1 .pdf file" in error
    assert "skipped 1 other file: .txt 1" in error and f"skipped image {phone / 'damaged.jpg'} cannot be read" in error

    (tmp_path / "empty").mkdir()
    given = [phone / "a.heic", phone / "c.svg", tmp_path / "no.png", tmp_path / "empty"]
    words = ["4 of the given images", "For .heic files: to read them, `pip install pillow-heif`", "no.png does not"]
    assert_fails(["classify", model, *map(str, given), picture, "--top=1"], capsys, *words, "empty contains no images")
    assert main(["classify", model, str(phone / "a.heic"), picture, "--top=1"]) == 1
    out, error = capsys.readouterr()
    assert out.count(" %  class") == 1 and "For .heic files: to read them" in error


def test_predict_lists_skipped_files(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phone = tmp_path / "phone"
    shutil.copytree(photos / "test/class0", phone)
    (phone / "a.heic").write_text("-")
    (phone / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    command = ["predict", f"--config={run / 'config.yaml'}", f"--run.folder={tmp_path / 'predicted'}"]
    command += [f"--ckpt_path={run / 'checkpoints/best.ckpt'}"]
    assert main([*command, f"--data.predict={phone}"]) == 0
    out = capsys.readouterr().out
    assert f"{phone}: skipped 1 .heic file (first: a.heic): to read them, `pip install pillow-heif`" in out
    assert f"{phone}: 1 file cannot be predicted: image {phone / 'damaged.jpg'} cannot be read" in out
    assert "Saved the predictions for 4 images" in out
    assert_fails([*command, f"--data.predict={phone / 'a.heic'}"], capsys, "For .heic files: to read them, `pip")


def test_predict_fails_if_a_named_image_cannot_be_read(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It predicts the others first."""
    good, bad = photos / "test/class1/0.png", tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    assert_fails(
        ["predict", str(good), str(bad), f"{tmp_path}/./bad.png", f"--model={run}", f"--output={tmp_path / 'found'}"],
        capsys, f"1 of the given images could not be predicted: {bad}",
    )  # fmt: skip
    assert str(good) in (tmp_path / "found/predictions.csv").read_text()


def test_predict_without_a_recipe(run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, image = photos / "test/class0", photos / "test/class1/0.png"
    given = [str(image), f"--model={run}", str(folder), str(folder / "0.png")]
    assert main(["predict", *given, f"--output={tmp_path / 'found'}"]) == 0
    count = 1 + len(list(folder.iterdir()))
    assert (
        f"Saved the predictions for {count} images to {tmp_path / 'found/predictions.csv'}" in capsys.readouterr().out
    )
    for arguments, message in (
        ([], "the following arguments are required: --model"),
        ([str(image)], "the following arguments are required: --model"),
        (
            [str(image), f"--model={run}", "--threshold=50"],
            "--threshold 50.0 is not a score",
        ),
        ([str(image), "--output=found"], "the following arguments are required: --model"),
        ([f"--model={run}"], "the following arguments are required: IMAGES"),
        ([str(image), f"--model={run}", f"--config={run}"], "IMAGES, --model, --threshold and --output cannot"),
        ([f"--config={run}", "--threshold=0.5"], "Use IMAGES --model MODEL, where MODEL may be a run folder"),
    ):
        with pytest.raises(SystemExit):
            main(["predict", *arguments])
        assert message in capsys.readouterr().err


def test_predict_with_weights_without_a_record(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layout is timm's. The default output folder has a name that cannot lead elsewhere."""
    monkeypatch.chdir(tmp_path)
    weights = Path(shutil.copytree(SHIPPED, tmp_path / "weights"))
    config = json.loads((weights / "config.json").read_text())
    image = str(photos / "test/class0/0.png")
    config["acmix_zoo"]["name"] = "../../elsewhere"
    (weights / "config.json").write_text(json.dumps(config))
    assert main(["predict", image, f"--model={weights}"]) == 0
    for key in ("acmix_zoo", "label_names", "num_classes"):
        del config[key]
    (weights / "config.json").write_text(json.dumps(config))
    assert main(["predict", image, f"--model={weights}"]) == 0
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders == ["predict-elsewhere", "predict-weights"]
    header = (tmp_path / "runs/predict-weights/predictions.csv").read_text().splitlines()[0]
    assert header == "path,class,probability,0,1,2,3,4,5,6,7,8,9"
    assert_fails(["predict", image, "--model=acmix_resnet26"], capsys, "there are no weights for acmix_resnet26")


@pytest.mark.slow
def test_classify_needs_no_training_libraries(run: Path, photos: Path) -> None:
    code = (
        "import sys; from acmix_zoo.cli.main import main\n"
        f"code = main(['classify', {str(photos / 'test/class0/0.png')!r}, '--model', {str(run / 'weights')!r}])\n"
        "bad = {'lightning', 'datasets', 'torchmetrics', 'jsonargparse'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "class" in done.stdout


def test_classify_rejects_missing_and_damaged_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, broken = f"--model={run / 'weights'}", tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG....")
    assert_fails(["classify", model, str(tmp_path / "no.png")], capsys, "no.png")
    assert_fails(["classify", model, str(broken)], capsys, str(broken))
    assert_fails(["classify", str(broken), "--model", str(tmp_path / "nothing")], capsys, "nothing")
    assert_fails(["classify", str(broken), "--model", str(tmp_path)], capsys, str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["classify", model])
    assert stop.value.code == 2
