"""Networks for images of other than three channels: shapes, adapted weights, normalization, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from tiny import random_images, tiny_recipe, tiny_segmenter
from torch import Tensor, nn

from emalab.backbones import build_backbone
from emalab.checkpoints import CheckpointError, export_segmenter
from emalab.inference import predict_labels, predict_probabilities
from emalab.initial_weights import load_initial_weights
from emalab.input_channels import adapt_input, adapt_inputs
from emalab.modules import Normalize
from emalab.onnx_export import export_onnx
from emalab.segmenter import Segmenter
from emalab.segmenter_config import SegmenterConfig
from emalab.views import Views

LITE2 = "tf_efficientnet_lite2"
COUNTS = [1, 2, 4, 5, 12]
BACKBONES = {"tiny": 4, LITE2: 16, "resnet18": 16, "resnet50s": 16, "convnext_atto": 16, "vit_tiny_patch16_224": 16}


def first_convolution(network: nn.Module) -> nn.Conv2d:
    return next(module for module in network.modules() if isinstance(module, nn.Conv2d))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class TestAdaptedWeights:
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 12])
    def test_are_those_of_timm(self, count: int) -> None:
        weight = noise(8, 3, 3, 3)
        torch.testing.assert_close(adapt_input(weight, count), adapt_input_conv(count, weight.clone()))

    @pytest.mark.parametrize("count", [1, 3, 6, 9])
    def test_an_image_with_equal_channels_gives_the_same(self, count: int) -> None:
        weight, gray = noise(8, 3, 3, 3).double(), noise(1, 1, 9, 9).double()
        expected = nn.functional.conv2d(gray.expand(1, 3, 9, 9), weight)
        found = nn.functional.conv2d(gray.expand(1, count, 9, 9), adapt_input(weight, count))
        torch.testing.assert_close(found, expected)

    def test_of_other_tensors_are_left_alone(self) -> None:
        state = {"stem": noise(8, 3, 3, 3), "depthwise": noise(8, 1, 3, 3), "head": noise(8, 3, 1, 1)}
        wanted = {"stem": noise(8, 4, 3, 3), "depthwise": noise(8, 1, 3, 3), "head": noise(7, 4, 1, 1)}
        adapted, names = adapt_inputs(state, wanted)
        assert names == ["stem"]
        assert [key for key in state if adapted[key] is not state[key]] == ["stem"]


class TestBackbones:
    @pytest.mark.parametrize("count", [1, 4, 5])
    @pytest.mark.parametrize(("name", "stride"), BACKBONES.items())
    @torch.inference_mode()
    def test_take_any_number(self, name: str, stride: int, count: int) -> None:
        backbone = build_backbone(name, stride, in_channels=count).eval()
        assert backbone(noise(1, count, 65, 96)).shape == (1, backbone.channels, -(-65 // stride), 96 // stride)

    @pytest.mark.parametrize("count", [1, 4])
    @pytest.mark.parametrize("name", [LITE2, "resnet18", "convnext_atto"])
    def test_weights_for_rgb_are_adapted(self, name: str, count: int, tmp_path: Path) -> None:
        torch.manual_seed(0)
        rgb = timm.create_model(name)
        save_file(rgb.state_dict(), tmp_path / "weights.safetensors")
        backbone = build_backbone(name, 16, weights=str(tmp_path / "weights.safetensors"), in_channels=count)
        expected = adapt_input_conv(count, first_convolution(rgb).weight.detach().clone())
        torch.testing.assert_close(first_convolution(backbone).weight.detach(), expected)

    def test_weights_for_other_channels_than_rgb_are_refused(self, tmp_path: Path) -> None:
        save_file(timm.create_model("resnet18", in_chans=5).state_dict(), tmp_path / "five.safetensors")
        with pytest.raises(ValueError, match=r"'conv1\.weight' is \(64, 5, 7, 7\) and should be \(64, 4, 7, 7\)"):
            build_backbone("resnet18", 16, weights=str(tmp_path / "five.safetensors"), in_channels=4)


class TestSegmenter:
    @pytest.mark.parametrize("count", COUNTS)
    @torch.inference_mode()
    def test_labels_every_pixel(self, count: int) -> None:
        model, images = tiny_segmenter(in_channels=count), random_images(2, count, 33, 50)
        assert model(images).shape == (2, 5, 33, 50)
        assert predict_labels(model, images, Views((0.5, 1.0), flip=True, window=(32, 32))).shape == (2, 33, 50)
        assert torch.equal(model(model.normalize(images)), model(images))

    def test_every_channel_counts(self) -> None:
        model, images = tiny_segmenter(in_channels=5), random_images(1, 5, 16, 16)
        logits = model(images)
        for channel in range(5):
            changed = images.clone()
            changed[:, channel] = 255 - changed[:, channel]
            assert not torch.equal(model(changed), logits)

    def test_channels_are_normalized_by_the_configuration(self) -> None:
        mean, std = (0.1, 0.2, 0.3, 0.4), (0.5, 0.25, 0.125, 0.2)
        model = tiny_segmenter(in_channels=4, channel_mean=mean, channel_std=std)
        images = random_images(1, 4, 8, 8)
        by_hand = (images.double() / 255 - torch.tensor(mean).view(4, 1, 1)) / torch.tensor(std).view(4, 1, 1)
        torch.testing.assert_close(model.normalize(images), by_hand.float())
        assert model.with_output_stride(4).normalize.values == (mean, std)

    def test_three_channels_may_have_a_mean_of_their_own(self) -> None:
        model = tiny_segmenter(channel_mean=(0.1, 0.2, 0.3), channel_std=(0.2, 0.2, 0.2))
        assert model.normalize.values == ((0.1, 0.2, 0.3), (0.2, 0.2, 0.2))

    def test_gray_and_more_bands_without_a_mean_take_the_average_of_the_backbones(self) -> None:
        for count in (1, 4):
            model = Segmenter(SegmenterConfig(backbone="resnet18", channels=8, in_channels=count))
            mean, std = model.normalize.values
            assert mean == pytest.approx([0.449] * count, abs=1e-3)
            assert std == pytest.approx([0.226] * count, abs=1e-3)

    @pytest.mark.parametrize(
        ("count", "given", "words"), [(3, 4, "RGB"), (3, 1, "RGB"), (1, 3, "gray"), (4, 3, "of 4 channels")]
    )
    def test_images_of_other_channels_are_refused(self, count: int, given: int, words: str) -> None:
        model, images = tiny_segmenter(in_channels=count), random_images(1, given, 8, 8)
        message = rf"expects images \(b, {count}, h, w\), {words}; got \(1, {given}, 8, 8\)"
        for call in (model, lambda x: predict_labels(model, x), lambda x: model(x.float() / 50)):
            with pytest.raises(ValueError, match=message):
                call(images)
        with pytest.raises(TypeError, match=f"must be uint8 {words} in 0–255"):
            predict_probabilities(model, images.float())

    def test_normalize_refuses_to_broadcast(self) -> None:
        with pytest.raises(ValueError, match=r"takes images \(…, 3, h, w\), got \(2, 1, 8, 8\)"):
            Normalize()(random_images(2, 1, 8, 8))
        with pytest.raises(ValueError, match="mean has 3 channels, std has 1"):
            Normalize(std=(0.2,))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"in_channels": 0}, "in_channels must be 1 to 1024, got 0"),
            ({"in_channels": 1025}, "in_channels must be 1 to 1024, got 1025"),
            (
                {"in_channels": 4, "channel_mean": (0.5,) * 3, "channel_std": (0.5,) * 4},
                "for each of 4 channels; got 3",
            ),
            ({"channel_mean": (0.5,) * 3}, "each of 3 channels; got 3 and 0"),
            ({"channel_mean": (0.5, 0.5, 50), "channel_std": (0.5,) * 3}, "channel_mean must be in 0–1"),
            ({"channel_mean": (0.5,) * 3, "channel_std": (0.5, 0.5, 0.0)}, "channel_std must be at least 0.0333"),
        ],
    )
    def test_settings_that_cannot_be(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SegmenterConfig(**settings)


class TestInitialWeights:
    def release(self, path: Path, model: Segmenter) -> Path:
        export_segmenter(model, path / "net.safetensors", tiny_recipe(model=model.config), {}, torch.float32)
        return path / "net.safetensors"

    @pytest.mark.parametrize(("there", "here"), [(3, 4), (3, 1), (1, 3), (4, 2)])
    def test_the_first_convolution_is_adapted(self, there: int, here: int, tmp_path: Path) -> None:
        trained, model = tiny_segmenter(seed=1, in_channels=there), tiny_segmenter(seed=2, in_channels=here)
        lines: list[str] = []
        path = self.release(tmp_path, trained)
        assert load_initial_weights(model, path, report=lines.append) == []
        assert lines == [f"backbone.layers.0.weight of {path} adapted from {there} channels to {here}"]
        theirs = trained.state_dict()
        for key, value in model.state_dict().items():
            expected = adapt_input(theirs[key], here) if key == "backbone.layers.0.weight" else theirs[key]
            assert torch.equal(value, expected), key

    def test_nothing_is_said_of_equal_channels(self, tmp_path: Path) -> None:
        lines: list[str] = []
        model = tiny_segmenter(seed=2, in_channels=4)
        load_initial_weights(model, self.release(tmp_path, tiny_segmenter(in_channels=4)), report=lines.append)
        assert lines == []

    def test_another_network_is_refused_all_the_same(self, tmp_path: Path) -> None:
        path, model = self.release(tmp_path, tiny_segmenter()), tiny_segmenter(in_channels=4, channels=16)
        with pytest.raises(CheckpointError, match="only the numbers of classes and of channels may differ"):
            load_initial_weights(model, path)


def test_a_checkpoint_keeps_channels_and_their_mean(tmp_path: Path) -> None:
    config = replace(tiny_segmenter().config, in_channels=2, channel_mean=(0.1, 0.2), channel_std=(0.3, 0.4))
    model = Segmenter(config).eval()
    export_segmenter(model, tmp_path / "net.safetensors", tiny_recipe(model=config), {}, torch.float32)
    again, images = Segmenter.from_pretrained(tmp_path / "net.safetensors"), random_images(1, 2, 16, 16)
    assert again.normalize.values == ((0.1, 0.2), (0.3, 0.4))
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("count", [1, 5])
def test_onnx(count: int, tmp_path: Path) -> None:
    import onnxruntime

    model, images = tiny_segmenter(in_channels=count), random_images(1, count, 40, 24)
    assert export_onnx(model, tmp_path / "net.onnx") < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert session.get_inputs()[0].shape[1] == count
    (found,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(images).detach(), rtol=1e-3, atol=1e-4)
