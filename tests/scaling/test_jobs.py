"""Jobs: read from every recipe, from run folders and from names of networks."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from acmix_zoo.scaling.jobs import Job
from acmix_zoo.scaling.machines import find_gpu
from acmix_zoo.scaling.recipe import read_job
from acmix_zoo.weights.shipped import checkpoints_root

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("hardware", "segment", "detect")  # profiles, and recipes of tasks that cannot be estimated
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name not in OTHERS)
PROFILES = sorted((ROOT / "recipes" / "hardware").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe(recipe: Path) -> None:
    job = read_job(recipe)
    text = recipe.read_text(encoding="utf-8")
    assert re.search(rf"^  model: {job.model}\b", text, re.MULTILINE)
    assert re.search(rf"^  batch_size: {job.batch_size}\b", text, re.MULTILINE)
    images = {"finetune": None, "imagenet1k": 1_281_167, "tiny_imagenet": 95_000, "fashion_mnist": 54_000}
    assert job.images == images[recipe.parent.name]
    if job.base_batch_size:
        assert job.scale_lr(2 * job.base_batch_size) == 2 * job.lr


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_every_hardware_profile(profile: Path) -> None:
    job = read_job("imagenet1k/acmix_swin_t", profile)
    assert job.strategy == ("fsdp" if profile.stem == "fsdp" else "ddp")
    assert job.precision == ("32-true" if profile.stem == "cpu" else "bf16-mixed")


def test_defaults_are_those_of_training() -> None:
    from acmix_zoo.data import ImageDataModule
    from acmix_zoo.tasks import ClassificationTask, Task

    training = {
        name: parameter.default
        for kind in (Task, ClassificationTask, ImageDataModule)
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
    }
    shared = {field.name: field.default for field in fields(Job) if field.name in training and field.name != "model"}
    differing = {name for name, default in shared.items() if default != training[name]}
    assert differing == {"model_kwargs", "image_size"}, "a recipe without image_size has 224, a network its own"
    assert {"batch_size", "optimizer", "momentum", "lr", "base_batch_size"} < shared.keys()


@pytest.mark.slow
def test_gpus_accumulate_to_the_recipes_batch() -> None:
    job = Job("pico", "acmix_resnet_pico", batch_size=32, global_batch=256)
    steps = [job.training(gpus) for gpus in (1, 2, 8, 32)]
    assert [(step.batch, step.micro_batches) for step in steps] == [(32, 8), (32, 4), (32, 1), (32, 1)]
    capped = job.training(64, max_global_batch=512)
    assert (capped.batch, capped.micro_batches) == (8, 1)
    assert job.training(1, max_global_batch=128).micro_batches == 4


def test_suggested_batch_fits_in_16_bit() -> None:
    """The 16-bit copies of the weights, here two gigabytes, do not depend on the batch."""
    gpu = find_gpu("v100")
    job = Job("x", "acmix_resnet_pico", {"num_classes": 2_000_000}, batch_size=10_000, precision="16-mixed")
    (warning,) = job.warnings(job.steps(gpu, [1]), gpu)[:1]
    batch = int(warning.rpartition(" ")[2])
    for images, fits in ((batch, True), (batch + 1, False)):
        (step,) = replace(job, batch_size=images).steps(gpu, [1])
        assert (step.memory.total <= gpu.memory) == fits


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(
        "data: {image_size: 32, batch_size: 16}\n"
        "model: {model: acmix_resnet_pico, optimizer: sgd, momentum: 0.0, lr: 1e-1, base_batch_size: 64,\n"
        "  ema_decay: 0.9, linear_probe: true, model_kwargs: {num_classes: 7}}\n"
        "trainer: {accumulate_grad_batches: 4, max_epochs: 3}\n"
    )
    return path


class TestReading:
    def test_settings_of_a_recipe(self, recipe: Path) -> None:
        job = read_job(recipe)
        assert (job.global_batch, job.precision, job.ema, job.epochs, job.lr) == (64, "32-true", True, 3, 0.1)
        training = job.training(1)
        assert (training.states, training.forward_equivalents, training.micro_batches) == (0, 1, 4)
        assert training.trainable == 7 * (512 + 1)
        # The input of the classifier, log-probabilities and the class.
        assert training.activations.per_image == 4 * (512 + 7) + 8

    def test_hardware_profile_overrides_the_recipe(self, recipe: Path, tmp_path: Path) -> None:
        profile = tmp_path / "o.yaml"
        profile.write_text("trainer: {devices: 8, num_nodes: 2, accumulate_grad_batches: 1, precision: 16-mixed}\n")
        job = read_job(recipe, profile)
        assert (job.global_batch, job.precision, job.epochs) == (256, "16-mixed", 3)
        assert read_job("acmix_resnet_pico", profile, batch_size=8).precision == "16-mixed"

    def test_progressive_image_sizes_shorten_an_epoch(self) -> None:
        job = read_job("tiny_imagenet/acmix_resnet_nano_stage1")
        assert job.images == 95_000 and job.image_size == 64
        assert job.relative_pixels == pytest.approx((14 / 4 + 6 * 0.75**2 + 4) / 24)
        (step,) = job.steps(find_gpu("a100"), [1])
        assert job.epoch_seconds(step) == pytest.approx(job.relative_pixels * 95_000 / step.throughput)

    def test_a_recipe_is_no_hardware_profile(self) -> None:
        with pytest.raises(ValueError, match="is a recipe, not a hardware profile"):
            read_job("acmix_pvt_t", "imagenet1k/acmix_pvt_t")

    def test_weights_in_a_folder_named_like_a_group_of_recipes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(ROOT / "checkpoints/acmix_resnet_pico.fashion_mnist", tmp_path / "finetune/mine")
        monkeypatch.chdir(tmp_path)
        assert read_job("finetune/mine").model == "acmix_resnet_pico"

    def test_arguments_override_the_recipe(self, recipe: Path) -> None:
        job = read_job(recipe, batch_size=8, precision="bf16-mixed", strategy="fsdp")
        assert (job.batch_size, job.precision, job.strategy) == (8, "bf16-mixed", "fsdp")
        assert job.training(2).strategy == "fsdp"

    def test_name_of_a_shipped_recipe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        path = ROOT / "recipes/imagenet1k/acmix_swin_t.yaml"
        assert read_job("imagenet1k/acmix_swin_t", "hardware/fsdp").strategy == "fsdp"
        for name in ("imagenet1k/acmix_swin_t", "imagenet1k/acmix_swin_t.yaml"):
            assert read_job(name) == replace(read_job(path), name=name)

    def test_run_folder(self, recipe: Path, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text(recipe.read_text())
        assert read_job(tmp_path / "run") == replace(read_job(recipe), name=str(tmp_path / "run"))

    @pytest.mark.parametrize(
        ("devices", "processes"), [(4, 4), ("4", 4), ([0, 1, 2, 3], 4), ("0,2", 2), ("auto", 1), (-1, 1), (None, 1)]
    )
    def test_devices_as_lightning_accepts_them(self, recipe: Path, devices: object, processes: int) -> None:
        """`--trainer.devices 4` is recorded as text."""
        config = yaml.safe_load(recipe.read_text())
        recipe.write_text(yaml.safe_dump({**config, "trainer": {"devices": devices}}))
        assert read_job(recipe).global_batch == 16 * processes

    @pytest.mark.parametrize(
        ("source", "images"),
        [("/data/imagenet", 1_281_167), ("/photos/imagenette2", None), ("a/imagenet100", None), ("mine", None)],
    )
    def test_only_known_data_have_a_number_of_images(self, recipe: Path, source: str, images: int | None) -> None:
        recipe.write_text(recipe.read_text().replace("data: {", f"data: {{source: {source}, "))
        assert read_job(recipe).images == images

    def test_training_until_it_is_stopped_has_no_number_of_epochs(self, recipe: Path) -> None:
        recipe.write_text(recipe.read_text().replace("max_epochs: 3", "max_epochs: -1"))
        assert read_job(recipe).epochs is None

    def test_settings_that_a_run_left_to_lightning(self, recipe: Path, tmp_path: Path) -> None:
        config = yaml.safe_load(recipe.read_text())
        config["trainer"].update(precision=None, strategy=None, devices="auto", num_nodes=None)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        assert read_job(tmp_path) == replace(read_job(recipe), name=str(tmp_path))

    @pytest.mark.parametrize(
        "tag",
        [pytest.param("acmix_resnet_pico.fashion_mnist", marks=pytest.mark.slow), "acmix_resnet_nano.tiny_imagenet"],
    )
    def test_weight_folder_is_trained_with_its_own_classes_and_image_size(self, tag: str) -> None:
        by_tag = read_job(tag).training(1)
        by_folder = read_job(checkpoints_root() / tag).training(1)
        assert by_folder == by_tag

    def test_image_size_of_fine_tuned_weights(self, tmp_path: Path) -> None:
        shutil.copytree(checkpoints_root() / "acmix_resnet_nano.tiny_imagenet", tmp_path / "w")
        config = json.loads((tmp_path / "w/config.json").read_text())
        config["pretrained_cfg"]["input_size"] = [3, 96, 96]
        (tmp_path / "w/config.json").write_text(json.dumps(config))
        fine_tuned = read_job(tmp_path / "w").training(1)
        assert fine_tuned == replace(read_job("acmix_resnet_nano.tiny_imagenet"), image_size=96).training(1)

    def test_weights_of_a_detector(self) -> None:
        with pytest.raises(ValueError, match="holds weights for detection, which cannot be estimated"):
            read_job(checkpoints_root() / "fcos_acmix_resnet_nano.bccd")
