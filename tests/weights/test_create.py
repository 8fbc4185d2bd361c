"""create_model and list_models: names, tags, paths, adaptation; and every shipped weight."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.weight_folders import ROOT, pico, write_weights
from torch import nn

import acmix_zoo
from acmix_zoo import ACmix2d, from_pretrained
from acmix_zoo.weights import check_folder, create_model, list_models, load_weights, read_config
from acmix_zoo.weights.card import render_card
from acmix_zoo.weights.convert_checkpoint import convert
from acmix_zoo.weights.shipped import checkpoints_root


def first_conv(model: nn.Module) -> nn.Module:
    return model.get_submodule(model.pretrained_cfg["first_conv"])


class TestCreate:
    def test_only_networks_of_this_project_are_listed(self) -> None:
        names = list_models()
        assert {"acmix_resnet_pico", "acmix_swin_pico", "acmix_resnet50", "acmix_swin_t"} <= set(names)
        assert not {"resnet50", "swin_tiny_patch4_window7_224", "test_resnet"} & set(names)  # of timm
        assert list_models("*swin*") == [name for name in names if "swin" in name]
        assert list_models(["*swin_t", "*resnet50"]) == ["aa_resnet50", "acmix_resnet50", "acmix_swin_t"]
        assert "acmix_swin_t.swin_in1k" in list_models(["acmix_swin_t*"], pretrained=True)
        assert all("." in name for name in list_models(pretrained=True))
        assert acmix_zoo.create_model is create_model and acmix_zoo.list_models is list_models

    def test_networks_of_timm_are_created(self) -> None:
        assert create_model("test_resnet", num_classes=4).num_classes == 4

    @pytest.mark.parametrize(
        ("name", "pretrained", "message"),
        [
            ("acmix_resnet_pic", False, "unknown model .*The closest names are acmix_resnet_pico"),
            ("acmix_resnet_pic.fashion_mnist", True, "unknown model .*The closest names are acmix_resnet_pico"),
            ("acmix_resnet51", False, "acmix_resnet50"),
            ("resnet_50", False, "resnet50"),
            ("zzzzzz", False, "unknown model 'zzzzzz'. Expected the name of a network"),
            ("acmix_resnet50", True, "no weights for acmix_resnet50. Expected one of acmix_"),
            ("acmix_swin_t.of_nobody", False, "no tag 'of_nobody'"),
            ("acmix_swin_t", "of_nobody", "no tag 'of_nobody'"),
            (
                "acmix_swin_pico",
                "acmix_resnet_pico.fashion_mnist",
                "holds weights of acmix_resnet_pico. Expected weights of acmix_s",
            ),
        ],
    )
    def test_unknown_names_and_tags_are_rejected(self, name: str, pretrained: bool | str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            create_model(name, pretrained)

    def test_arguments_of_none_are_left_out(self, tmp_path: Path) -> None:
        """As in timm, whose scripts pass their unset options."""
        folder = write_weights(tmp_path / "w", pico(num_classes=5, kernel_att=5))
        torch.save(create_model(folder).state_dict(), tmp_path / "w.pth")
        unset = {"num_classes": None, "global_pool": None}
        assert create_model(folder, kernel_att=None, **unset).layer1[0].conv2.kernel_att == 5
        loaded = create_model("acmix_resnet_pico", pretrained=str(tmp_path / "w.pth"), kernel_att=5, **unset)
        assert loaded.num_classes == 5

    def test_files_beside_the_weights_have_other_hashes(self, tmp_path: Path) -> None:
        folder, other = write_weights(tmp_path / "w"), pico()
        torch.save(other.state_dict(), folder / "mine.pth")
        loaded = create_model("acmix_resnet_pico", pretrained=str(folder / "mine.pth"))
        assert torch.equal(loaded.fc.weight, other.fc.weight)

    def test_checkpoints_of_other_projects_may_have_similar_hyperparameters(self, tmp_path: Path) -> None:
        state = {f"net.{key}": value for key, value in pico(num_classes=5).state_dict().items()}
        for model in ("my_acmix", {"name": "x"}):
            content = {"state_dict": state, "hyper_parameters": {"model": model, "num_classes": 5}}
            torch.save(content, tmp_path / "theirs.ckpt")
            loaded = create_model("acmix_resnet_pico", pretrained=str(tmp_path / "theirs.ckpt"))
            assert torch.equal(loaded.fc.weight, state["net.fc.weight"])

    def test_conversion_does_not_change_the_size(self, tmp_path: Path) -> None:
        """Position tables would be interpolated, and the logits differ."""
        for name, kwargs in {"acmix_pvt_pico": {"img_size": 64}, "acmix_swin_pico": {"window_size": 8}}.items():
            model, folder = pico(name, **kwargs).eval(), tmp_path / name
            torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
            with pytest.raises(
                ValueError,
                match=r"for another image size or window: .* State the size of the weights with --model-kwargs",
            ):
                convert(tmp_path / "w.pth", f"{name}.mine", folder, {"origin": "test"})
            convert(tmp_path / "w.pth", f"{name}.mine", folder, {"origin": "test"}, kwargs)
            x = torch.randn(1, 3, 64, 64)
            assert torch.allclose(create_model(folder).eval()(x), model(x), atol=1e-5)

    def test_weights_are_loaded_from_a_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = write_weights(tmp_path / "w")
        monkeypatch.chdir(tmp_path)
        first = next(create_model(folder).parameters())
        for name, pretrained in (
            ("w", False),
            ("./w", True),
            ("acmix_resnet_pico", "w"),
            ("acmix_resnet_pico", folder),
        ):
            assert torch.equal(next(create_model(name, pretrained).parameters()), first)
        file = folder / "model.safetensors"
        assert torch.equal(next(create_model("acmix_resnet_pico", str(file)).parameters()), first)
        with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
            create_model("acmix_resnet_pico", "./nowhere")
        with pytest.raises(FileNotFoundError, match="is a folder without weights"):
            create_model(str(tmp_path))
        with pytest.raises(ValueError, match="both refer to weights"):
            create_model(folder, folder)
        with pytest.raises(ValueError, match=r"of acmix_resnet_pico\. Expected weights of acmix_swin_pico"):
            create_model("acmix_swin_pico", folder)
        with pytest.raises(ValueError, match=r"of acmix_resnet_pico\. Expected weights of acmix_swin_pico"):
            create_model("acmix_swin_pico", file)
        bare = file.rename(tmp_path / "bare.safetensors")  # without a config.json next to it
        with pytest.raises(ValueError, match=r"does not fit ACmixSwin.*missing"):
            create_model("acmix_swin_pico", bare)

    @pytest.mark.parametrize("source", ["folder", "file"])
    def test_a_different_number_of_classes_gets_a_new_classifier(self, tmp_path: Path, source: str) -> None:
        folder = write_weights(tmp_path / "w")
        path = folder if source == "folder" else folder / "model.safetensors"
        model, original = create_model("acmix_resnet_pico", path, num_classes=3), create_model(folder)
        assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 3)
        state, original_state = model.state_dict(), original.state_dict()
        same = [key for key in state if state[key].shape == original_state[key].shape]
        assert set(state) - set(same) == {"fc.weight", "fc.bias"}
        assert all(torch.equal(state[key], original_state[key]) for key in same)
        assert create_model("acmix_resnet_pico", path, num_classes=0)(torch.randn(2, 3, 32, 32)).shape == (2, 512)

    def test_a_file_of_another_program_has_its_own_classes(self, tmp_path: Path) -> None:
        """The names, tag and licence that timm knows belong to the weights of this project."""
        torch.save(create_model("acmix_resnet_pico", num_classes=7).state_dict(), tmp_path / "mine.pth")
        stored = torch.load(tmp_path / "mine.pth", weights_only=True)
        model = create_model("acmix_resnet_pico", tmp_path / "mine.pth")
        assert torch.equal(model.fc.weight, stored["fc.weight"]), "not a new classifier"
        cfg = model.pretrained_cfg
        assert (model.num_classes, cfg["num_classes"]) == (7, 7)
        assert [cfg[name] for name in ("label_names", "tag", "license")] == [None] * 3
        assert create_model("acmix_resnet_pico", tmp_path / "mine.pth", num_classes=3).num_classes == 3

    @pytest.mark.parametrize("source", ["acmix_resnet_pico", "folder"])
    def test_other_classes_do_not_get_the_names_of_the_weights(self, source: str, tmp_path: Path) -> None:
        weights = write_weights(tmp_path / "w", pretrained_cfg={"label_names": list("abcdefghij")})
        name = weights if source == "folder" else source
        assert len(create_model(name, pretrained=True).pretrained_cfg["label_names"]) == 10
        assert create_model(name, pretrained=True, num_classes=12).pretrained_cfg["label_names"] is None

    def test_from_pretrained_advises_what_it_accepts(self) -> None:
        with pytest.raises(ValueError, match=r"no weights for acmix_resnet50\. .* Pass the path of weights"):
            from_pretrained("acmix_resnet50")

    def test_pretrained_weights_with_feature_maps_and_grey_images(self, tmp_path: Path) -> None:
        folder = write_weights(tmp_path / "w")
        maps = create_model(folder, features_only=True).eval()(torch.randn(1, 3, 32, 32))
        original = create_model(folder).eval()
        assert len(maps) > 2 and original(torch.randn(1, 3, 32, 32)).shape == (1, 10)
        grey, colour = (first_conv(model).weight for model in (create_model(folder, in_chans=1), original))
        torch.testing.assert_close(grey, colour.sum(1, keepdim=True))
        maps = create_model("acmix_resnet_pico", folder / "model.safetensors", features_only=True)
        assert len(maps.eval()(torch.randn(1, 3, 32, 32))) > 2
        bare = (folder / "model.safetensors").rename(tmp_path / "bare.safetensors")
        image = torch.randn(1, 1, 32, 32)
        backbone = create_model("acmix_resnet_pico", bare, features_only=True, in_chans=1, out_indices=(0, 2)).eval()
        expected = (
            create_model("acmix_resnet_pico", bare, in_chans=1)
            .eval()
            .forward_intermediates(image, indices=(0, 2), intermediates_only=True)
        )
        assert all(torch.equal(a, b) for a, b in zip(backbone(image), expected, strict=True))

    @pytest.mark.parametrize("source", ["folder", "file"])
    def test_weights_are_adapted_to_the_input_channels(self, tmp_path: Path, source: str) -> None:
        """As in timm, a single channel gets the sum of the three, and more channels repeat them."""
        folder = write_weights(tmp_path / "w")
        path = folder if source == "folder" else folder / "model.safetensors"
        colour = first_conv(create_model(folder)).weight
        grey = first_conv(create_model("acmix_resnet_pico", path, in_chans=1)).weight
        torch.testing.assert_close(grey, colour.sum(1, keepdim=True))
        five = first_conv(create_model("acmix_resnet_pico", path, in_chans=5)).weight
        torch.testing.assert_close(five, colour[:, [0, 1, 2, 0, 1]] * 3 / 5)
        assert create_model("acmix_resnet_pico", path, in_chans=1, num_classes=3).num_classes == 3

    def test_a_new_classifier_is_not_a_matching_key(self, tmp_path: Path) -> None:
        file = tmp_path / "other.pth"
        torch.save({f"unrelated.{i}": torch.zeros(1) for i in range(3)}, file)
        with pytest.raises(ValueError, match=r"does not fit ACmixResNet \(0 keys match\)") as caught:
            create_model("acmix_resnet_pico", file, num_classes=3)
        assert "fc." not in str(caught.value)


class TestRuns:
    """The output of `acmix-zoo fit` works wherever a weight folder does."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        """Return an interrupted run, which has checkpoints and no weights/."""
        network = pico(layers=(1, 2, 1), num_classes=4)
        cfg = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, 32, 32], "label_names": ["a", "b", "c", "d"]}
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        (tmp_path / "run" / "config.yaml").touch()
        checkpoint = {
            "state_dict": {f"model.{key}": value for key, value in network.state_dict().items()},
            "hyper_parameters": {
                "model": "acmix_resnet_pico", "num_classes": 4, "pretrained": "start.pth",
                "model_kwargs": {"layers": (1, 2, 1), "drop_path_rate": 0.1},
            },
            "ImageDataModule": {"card": {"cfg": cfg}},
        }  # fmt: skip
        torch.save(checkpoint, tmp_path / "run" / "checkpoints" / "best.ckpt")
        return tmp_path / "run"

    def test_a_checkpoint_is_loaded(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoint = run / "checkpoints" / "best.ckpt"
        expected = torch.load(checkpoint, weights_only=True)["state_dict"]
        monkeypatch.chdir(run.parent)
        for name in (checkpoint, str(checkpoint), run, "run", "run/config.yaml"):
            model = create_model(name)
            assert all(torch.equal(value, expected[f"model.{key}"]) for key, value in model.state_dict().items())
        assert model.pretrained_cfg["label_names"] == ["a", "b", "c", "d"] and model.pretrained_cfg["mean"] == [0.5] * 3
        small = acmix_zoo.from_pretrained("run", num_classes=2, in_chans=1)
        assert small.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 2)
        load_weights(model, run)

    def test_arguments_of_a_checkpoint_are_kept(self, run: Path, tmp_path: Path) -> None:
        """Many arguments, such as kernel_att, change no shape. Without them, a different network would be built,
        and no error would occur."""
        path = run / "checkpoints" / "best.ckpt"
        content = torch.load(path, weights_only=True)
        content["hyper_parameters"]["model_kwargs"]["kernel_att"] = 3
        torch.save(content, path)
        x = torch.randn(2, 3, 32, 32)
        expected = create_model(path).eval()(x)
        for source in (path, str(path), run):
            model = create_model("acmix_resnet_pico", source).eval()
            torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
            assert model.pretrained_cfg["label_names"] == ["a", "b", "c", "d"]
        small = create_model("acmix_resnet_pico", path, num_classes=2, kernel_att=5)
        assert small(x).shape == (2, 2) and {m.kernel_att for m in small.modules() if isinstance(m, ACmix2d)} == {5}
        with pytest.raises(ValueError, match=r"of acmix_resnet_pico\. Expected weights of acmix_resnet50"):
            create_model("acmix_resnet50", path)
        for source in (path, run):
            folder = convert(source, "acmix_resnet_pico", tmp_path / "converted", {"origin": "test"})
            torch.testing.assert_close(create_model(folder).eval()(x), expected, rtol=0, atol=0)
        with pytest.raises(ValueError, match="Use --model acmix_resnet_pico"):
            convert(path, "acmix_resnet50", tmp_path / "other", {"origin": "test"})

    @pytest.mark.parametrize("license", ["cc0-1.0", None])
    def test_preprocessing_classes_and_licence_of_a_checkpoint_are_kept(
        self, run: Path, tmp_path: Path, license: str | None
    ) -> None:
        """They are not those of the shipped weights of the same network."""
        path = run / "checkpoints" / "best.ckpt"
        content = torch.load(path, weights_only=True)
        content["ImageDataModule"]["card"]["cfg"] |= {"input_size": [3, 48, 48], "crop_pct": 0.75}
        content["callbacks"] = {"RunFolder": {"license": license}}
        torch.save(content, path)
        folder = convert(path, "acmix_resnet_pico.mine", tmp_path / "converted", {"origin": "test"})
        again = convert(folder, "acmix_resnet_pico.mine", tmp_path / "again", {"origin": "test"})
        for model in (create_model(path), create_model(folder), create_model(again)):
            cfg = model.pretrained_cfg
            assert cfg["label_names"] == ["a", "b", "c", "d"] and cfg["mean"] == [0.5] * 3
            assert tuple(cfg["input_size"]) == (3, 48, 48) and cfg["crop_pct"] == 0.75 and cfg.get("license") == license
        assert read_config(again)["acmix_zoo"]["license"] == license

    def test_a_detector_is_not_converted(self, tmp_path: Path) -> None:
        folder = checkpoints_root() / "fcos_acmix_resnet_nano.bccd"
        with pytest.raises(ValueError, match=r"holds weights for object detection.*Use `acmix-zoo export"):
            convert(folder, "acmix_resnet_nano", tmp_path / "x", {})

    def test_a_finished_run_is_loaded(self, run: Path) -> None:
        """The tested weights take precedence over the checkpoints."""
        folder = write_weights(run / "weights")
        expected = create_model(folder).fc.weight
        assert torch.equal(create_model(run).fc.weight, expected)
        assert torch.equal(create_model("acmix_resnet_pico", run).fc.weight, expected)
        assert torch.equal(create_model(folder / "model.safetensors").fc.weight, expected)
        assert torch.equal(load_weights(pico(), run).fc.weight, expected)

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"hyper_parameters": {}}, r"does not state which network .* create_model\(NAME, pretrained="),
            ({"task": "classification", "hyper_parameters": {"model": "os.system", "num_classes": 4}},
             "which is not a known model"),
            ({"hyper_parameters": {"model": "acmix_resnet_pico", "num_classes": 5}}, "does not fit"),
            (
                {"hyper_parameters": {"model": "acmix_resnet_pico", "num_classes": 4,
                                      "model_kwargs": {"checkpoint_path": "/etc/passwd"}}},
                "must not set checkpoint_path",
            ),
        ],
    )  # fmt: skip
    def test_unsuitable_checkpoints_are_rejected(self, run: Path, entry: dict[str, object], message: str) -> None:
        path = run / "checkpoints" / "best.ckpt"
        torch.save({**torch.load(path, weights_only=True), **entry}, path)
        with pytest.raises(ValueError, match=message):
            create_model(run)


SHIPPED = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/config.json"))


def test_two_small_networks_are_shipped() -> None:
    """Their recorded test accuracy is at least the promised one."""
    for name, least in (("acmix_resnet_pico.fashion_mnist", 0.93), ("acmix_swin_pico.fashion_mnist", 0.93)):
        metrics = read_config(ROOT / "checkpoints" / name)["acmix_zoo"]["metrics"]
        assert [m["value"] >= least for m in metrics if (m["split"], m["name"]) == ("test", "top1")] == [True]


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_weights_verify(folder: Path) -> None:
    config = read_config(folder)
    assert check_folder(folder) == []
    assert config["acmix_zoo"]["name"] == folder.name
    assert (folder / "README.md").read_text() == render_card(config)
    assert folder.name in list_models(pretrained=True)
    assert config["acmix_zoo"]["license"]
    model = create_model(folder.name, pretrained=True)
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(torch.equal(value, stored[key].to(value.dtype)) for key, value in model.state_dict().items())


def test_weights_on_the_hub_need_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"of acmix_swin_t.swin_in1k are timm/swin_tiny.* cannot be reached"):
        create_model("acmix_swin_t", "swin_in1k")
