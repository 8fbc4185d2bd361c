"""Every recipe parses, trains a step or two on images of its size and format, and has a header that agrees with it."""

import itertools
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.box_data import write_coco
from support.documents import ROOT
from support.image_data import write_digits
from support.tasks import write_masked_images

from acmix_zoo import create_model
from acmix_zoo.cli.main import main
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.models.published import is_reconstruction, published
from acmix_zoo.scaling.machines import GPUS
from acmix_zoo.scaling.step import UTILISATION

RECIPES = [path for path in sorted((ROOT / "recipes").glob("*/*.yaml")) if path.parent.name != "hardware"]
PROFILES = sorted((ROOT / "recipes/hardware").glob("*.yaml"))
IMAGENET = [path for path in RECIPES if path.parent.name == "imagenet1k"]
# By the group or the name of a recipe. Those of finetune/ are the user's.
TRAINING_IMAGES = {
    "imagenet1k": 1_281_167, "fashion_mnist": 54_000, "tiny_imagenet": 95_000,
    "segment/camvid": 367, "segment/ade20k": 20_210,
    "detect/bccd": 205, "detect/coco_1x": 118_287, "detect/coco_3x": 118_287,
}  # fmt: skip
# One recipe of each kind, and one at 224 pixels with every augmentation, are enough for the quick suite.
QUICK = {
    *("fashion_mnist/acmix_swin_pico", "finetune/folder", "finetune/linear_probe", "imagenet1k/acmix_pvt_t"),
    *("fashion_mnist/acmix_resnet_pico",),
}


def recipe_name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


recipes = pytest.mark.parametrize("recipe", RECIPES, ids=recipe_name)
quick_and_slow_recipes = pytest.mark.parametrize(
    "recipe",
    [pytest.param(path, marks=[] if recipe_name(path) in QUICK else pytest.mark.slow) for path in RECIPES],
    ids=recipe_name,
)
imagenet = pytest.mark.parametrize("recipe", IMAGENET, ids=lambda path: path.stem)
profiles = pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.name)  # a test named gpu needs one


def header(recipe: Path) -> str:
    """Return the comment at the start of a recipe as one line."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), recipe.read_text(encoding="utf-8").splitlines())
    return " ".join(line[1:].strip() for line in lines)


def number(text: str) -> float:
    return float(text.replace(",", ""))


# ---- the first steps


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write train/ and val/ with class folders of JPEG files like ImageNet's: not square, one grey, one CMYK."""
    folder = tmp_path_factory.mktemp("imagenet")
    generator = np.random.default_rng(0)
    kinds = [("RGB", (500, 375)), ("L", (375, 500)), ("CMYK", (500, 375)), ("RGB", (375, 500))]
    for split, each in (("train", 2), ("val", 1)):
        for c in range(2):
            (folder / split / f"n0000000{c}").mkdir(parents=True)
            for i in range(each):
                mode, size = kinds[2 * c + i]
                coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
                coarse.resize(size).convert(mode).save(folder / split / f"n0000000{c}" / f"{i}.JPEG", quality=90)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write train/ with class folders of small PNG files, from which validation images are split off."""
    return write_digits(tmp_path_factory.mktemp("images") / "digits", train=12)


@quick_and_slow_recipes
def test_first_steps(
    recipe: Path, photographs: Path, digits: Path, tmp_path: Path, request: pytest.FixtureRequest, parse: Any
) -> None:
    """Train the full-size network with a batch of 2 on a CPU and without pretrained weights.

    Images have full size, except in segmentation and detection, where that would take half a minute.
    """
    settings = parse("--config", recipe)
    small = ["--data.batch_size=2", "--trainer.fast_dev_run=2", "--trainer.accumulate_grad_batches=1"]
    small += ["--trainer.accelerator=cpu", f"--run.folder={tmp_path / 'run'}", "--model.pretrained=false"]
    if recipe.parent.name == "fashion_mnist":
        request.getfixturevalue("fashion_mnist")
    elif settings.task == "segmentation":
        pytest.importorskip("segmentation_models_pytorch")
        coding = settings.data.first_class_value, settings.data.ignore_values[0]
        small += [f"--data.source={write_masked_images(tmp_path / 'masked', (4, 2, 1), (96, 128), *coding)}"]
        small += ["--data.crop_size=[96, 128]", "--data.eval_resize=96"]
    elif settings.task == "detection":
        small += [f"--data.source={write_coco(tmp_path / 'boxed', 4, 2)}"]
        small += ["--data.image_size=160", "--data.max_size=240"]
    else:
        has_validation = settings.data.image_size == 224 or settings.data.validation_as_test
        small += [f"--data.source={photographs if has_validation else digits}"]
    assert main(["fit", "--config", recipe_name(recipe), *small]) == 0
    assert not (tmp_path / "run").exists()


# ---- headers


@recipes
def test_header_is_complete(recipe: Path, parse: Any) -> None:
    """The commands parse, and every header has the same sections in the same order."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    commands = [line.strip("# ") for line in lines if line.startswith("#   acmix-zoo ")]
    assert any(f"acmix-zoo fit --config {recipe_name(recipe)}" in command for command in commands)
    for command in commands:
        parse(*shlex.split(re.sub(r"[\[\]]", "", command))[2:])
    sections = ["Hardware", "Data", "Batch", "Learning rate", "Time", "Expected"]
    assert re.findall(rf"^# ({'|'.join(sections)}):", "\n".join(lines), re.MULTILINE) == sections
    assert parse("--config", recipe).ckpt_path == "last"
    assert ("(reconstruction)" in lines[0]) == (
        is_reconstruction(yaml.safe_load("\n".join(lines))["model"]["model"]) and recipe in IMAGENET
    )


@recipes
def test_arithmetic_of_batch_and_rate(recipe: Path, parse: Any) -> None:
    settings, text = parse("--config", recipe), header(recipe)
    stated = re.search(r"Batch: (\d+) device × (\d+)(?: × (\d+) accumulated)? = ([\d,]+) images per step;", text)
    assert stated, text
    devices, batch, accumulated, total = (int(number(value or "1")) for value in stated.groups())
    trainer = settings.trainer
    assert (devices, batch, accumulated) == (
        int(trainer.devices), settings.data.batch_size, trainer.accumulate_grad_batches
    )  # fmt: skip
    assert devices * batch * accumulated == total
    if images := TRAINING_IMAGES.get(recipe.parent.name) or TRAINING_IMAGES.get(recipe_name(recipe)):
        assert f"{images:,} training images" in text
        steps = images // total
        assert (
            f"= {total:,} images per step; {steps:,} steps per epoch, {steps * trainer.max_epochs:,} in total" in text
        )
    rate = re.search(r"Learning rate: ([\d.e-]+) × ([\d,]+) / ([\d,]+) = ([\d.e-]+)\. ", text)
    assert rate, text
    lr, over, under, result = map(number, rate.groups())
    assert (lr, over, under) == (settings.model.lr, total, settings.model.base_batch_size)
    assert result == pytest.approx(lr * over / under)


@imagenet
def test_estimate_and_expected_score(recipe: Path, parse: Any) -> None:
    settings, text = parse("--config", recipe), header(recipe)
    name = settings.model.model
    stated = re.search(
        r"Time: 3 × 2 × ([\d.]+) GMACs × ([\d,]+) images × (\d+) epochs / "
        r"\((\d+) TFLOP/s × (\d+) %\) = ([\d,]+) GPU-hours of an A100\. This is an estimate, not a measurement: (\d+) ",
        text,
    )
    assert stated, text
    gmacs, images, epochs, peak, share, hours, peak_again = map(number, stated.groups())
    with torch.device("meta"):
        macs = complexity(create_model(name)).macs
    assert gmacs == pytest.approx(macs / 1e9, abs=0.005)
    assert (images, epochs) == (TRAINING_IMAGES["imagenet1k"], settings.trainer.max_epochs)
    assert (peak, share) == (GPUS["a100"].peak["bfloat16"] / 1e12, 100 * UTILISATION[2])  # as `plan` assumes
    assert peak == peak_again
    assert hours == round(6 * macs * images * epochs / (peak * 1e12 * share / 100) / 3600)
    if recipe.stem == name:
        assert f"Expected: {published(name).top1} % top-1 as published; not run here." in text
    else:  # nobody published ACmix with a modern recipe
        assert "Expected: unknown" in text


@imagenet
def test_plain_baseline_builds(recipe: Path, parse: Any) -> None:
    """The options in the header build the plain network, with a separate run folder."""
    stated = re.search(r"Plain baseline: (--model\.model .*?)(?: \(published ([\d.]+) %\))?\.$", header(recipe))
    assert stated
    settings = parse("--config", recipe, *shlex.split(stated[1]))
    assert settings.run.folder != parse("--config", recipe).run.folder
    with torch.device("meta"):
        create_model(settings.model.model, num_classes=1000, **settings.model.model_kwargs)
    assert not settings.model.model.startswith("acmix_")
    if top1 := published(settings.model.model).top1:
        assert stated[2] == top1


def test_imagenet_recipes_have_the_same_commented_keys_in_the_same_order() -> None:
    """There is one recipe for each network of the paper, two modern ones, and two for networks that it names."""
    keys = {}
    for recipe in IMAGENET:
        body = [line for line in recipe.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        keys[recipe.stem] = [line.split(":")[0] for line in body]
        assert not [line for line in body if "  # " not in line and not re.fullmatch(r"\w+:", line)], recipe
    assert len({tuple(value) for value in keys.values()}) == 1
    paper = {"resnet26", "resnet38", "resnet50", "swin_t", "swin_s", "san10", "san15", "san19", "pvt_t", "pvt_s"}
    others = {"acmix_resnet50_modern", "acmix_swin_t_modern", "aa_resnet50", "container_light"}
    assert set(keys) == {f"acmix_{name}" for name in paper} | others


# ---- hardware profiles


@profiles
@pytest.mark.parametrize("all_recipes", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"])
def test_profile_overrides_a_recipe(profile: Path, all_recipes: bool, parse: Any) -> None:
    """It takes precedence over the recipe in what it states, and changes nothing else."""
    stated = flat(yaml.safe_load(profile.read_text(encoding="utf-8")))
    for recipe in RECIPES if all_recipes else RECIPES[::7]:
        before = flat(parse("--config", recipe).as_dict())
        after = flat(parse("--config", recipe, "--config", profile).as_dict())
        assert holds(after, stated)
        assert {key for key in after if key != "config" and after[key] != before.get(key)} <= stated.keys()


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as {"trainer.devices": 8, …}."""
    groups = {key: value if isinstance(value, dict) else {"": value} for key, value in settings.items()}
    return {f"{key}.{name}".strip("."): value for key, group in groups.items() for name, value in group.items()}


def holds(found: Any, stated: Any) -> bool:
    """Return whether everything stated was found. Defaults may have been added."""
    if isinstance(stated, dict):
        return all(holds(found[key], value) for key, value in stated.items())
    if isinstance(stated, list):
        return all(holds(*pair) for pair in zip(found, stated, strict=True))
    return bool(getattr(found, "name", found) == stated)  # enumeration members are stated by name


@imagenet
def test_eight_gpus_keep_the_global_batch(recipe: Path, parse: Any) -> None:
    def total(*arguments: str | Path) -> int:
        settings = parse("--config", recipe, *arguments)
        trainer = settings.trainer
        devices = int(trainer.devices) * trainer.num_nodes
        return int(devices * settings.data.batch_size * trainer.accumulate_grad_batches)

    text, eight = header(recipe), total("--config", "hardware/ddp_8gpu")
    assert f"8 devices × {parse('--config', recipe).data.batch_size} × 1 = {eight:,}" in text
    if recipe.stem == "acmix_swin_t_modern":  # its batch is that of four machines
        assert total() == total("--config", "hardware/nodes_4x8") == 4 * eight
        assert total("--config", "hardware/ddp_8gpu", "--trainer.accumulate_grad_batches=4") == total()
    else:
        assert eight == total() == total("--config", "hardware/fsdp") == total("--config", "hardware/slurm")
        assert total("--config", "hardware/nodes_4x8") == 4 * total()


@profiles
def test_profiles_say_that_they_were_not_run(profile: Path) -> None:
    text = " ".join(profile.read_text(encoding="utf-8").split("\ndata:")[0].replace("#", " ").split())
    assert "Batch:" in text
    assert profile.stem == "cpu" or "ot run" in text or "UNTESTED" in text


def test_slurm_script_and_profile_agree(parse: Any, tmp_path: Path) -> None:
    script = ROOT / "recipes/hardware/slurm.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", text, re.MULTILINE))
    settings = parse("--config", RECIPES[0], "--config", "hardware/slurm")
    assert int(options["ntasks-per-node"]) == int(options["gpus-per-node"]) == int(settings.trainer.devices)
    assert int(options["nodes"]) == settings.trainer.num_nodes
    assert int(options["cpus-per-task"]) == settings.data.num_workers + 1
    assert options["signal"] == "SIGUSR1@120" and "requeue" in options
    (plugin,) = settings.trainer.plugins
    assert plugin.class_path.endswith(".SLURMEnvironment") and plugin.init_args.auto_requeue is False

    # Run it with a script in place of srun that prints its arguments.
    (tmp_path / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_NUM_NODES": "3"}
    command = ["bash", script, recipe_name(RECIPES[0]), "--data.source", "a folder"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT)
    words = done.stdout.splitlines()
    assert words[1:3] == ["acmix-zoo", "fit"]
    assert parse(*words[3:]).trainer.num_nodes == 3
    assert parse(*words[3:]).data.source == "a folder"
    assert subprocess.run(["bash", script], capture_output=True, env=environment).returncode == 2
