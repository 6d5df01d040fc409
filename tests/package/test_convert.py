"""Checkpoints of the authors' code and of mmsegmentation: nothing missing, nothing left over, read without trust."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from lab.recordings import KEYS, MMSEG_KEYS, Source, shapes
from test_checkpoints import Evil
from torch import Tensor

from emalab.backbones import build_backbone
from emalab.checkpoints import CheckpointError, read_metadata, read_recipe
from emalab.cli import main
from emalab.convert import load_mmseg, load_official, mmseg_recipe, official_recipe, read_mmseg, read_official
from emalab.recipes import get_recipe
from emalab.segmenter import EMAConfig, Segmenter, SegmenterConfig

SMALL = (1, 1, 1, 1)


def empty(blocks: tuple[int, ...] = SMALL, source: Source = "official") -> dict[str, Tensor]:
    """A state dict of the right names and shapes, all zeros, that takes no memory."""
    counter = torch.zeros((), dtype=torch.int64)
    return {
        name: counter if name.endswith("num_batches_tracked") else torch.zeros(()).expand(shape)
        for name, shape in shapes(blocks, source).items()
    }


@pytest.fixture
def small() -> dict[str, Tensor]:
    """One block per stage; random bases and classifier, which tests can find again."""
    state, generator = empty(), torch.Generator().manual_seed(0)
    for key in ("emau.mu", "fc2.weight", "extractor.7.0.bn3.running_mean", "emau.conv2.1.running_var"):
        state[key] = torch.rand(state[key].shape, generator=generator)
    return state


class TestLoadOfficial:
    @pytest.mark.parametrize(
        ("name", "blocks"), [("resnet50s", (3, 4, 6, 3)), ("resnet101s", (3, 4, 23, 3)), ("resnet152s", (3, 8, 36, 3))]
    )
    def test_finds_the_depth(self, name: str, blocks: tuple[int, ...]) -> None:
        depth = f"r{name[6:-1]}"
        model = load_official(empty(blocks))
        assert model.config == replace(get_recipe(f"voc-{depth}").model, backbone_weights=None)
        if depth in KEYS:
            assert shapes(blocks) == KEYS[depth]
            assert sum(p.numel() for p in model.parameters()) == KEYS[f"{depth}_num_parameters"]

    def test_reads_sizes_off_the_tensors(self, small: dict[str, Tensor]) -> None:
        small["emau.mu"] = torch.rand(1, 512, 16)
        small["fc2.weight"], small["fc2.bias"] = torch.rand(60, 256, 1, 1), torch.rand(60)
        config = load_official(small, 16, ()).config
        assert (config.ema.num_bases, config.num_classes, config.channels, config.head_channels) == (16, 60, 512, 256)
        assert (config.backbone_blocks, config.output_stride, config.align_corners) == (SMALL, 16, True)

    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_carries_values(self, small: dict[str, Tensor], prefix: str) -> None:
        model = load_official({prefix + key: value for key, value in small.items()}, 8, ())
        assert not model.training
        assert torch.equal(model.context.bases, small["emau.mu"][0].T)
        ours = model.state_dict()
        for here, there in (
            ("classifier.2.weight", "fc2.weight"),
            ("backbone.network.layer4.0.bn3.running_mean", "extractor.7.0.bn3.running_mean"),
            ("context.conv_out.1.running_var", "emau.conv2.1.running_var"),
        ):
            assert torch.equal(ours[here], small[there])

    def test_batch_counters_may_be_missing(self, small: dict[str, Tensor]) -> None:
        load_official({key: value for key, value in small.items() if "num_batches" not in key}, 8, ())

    @pytest.mark.parametrize(
        "key",
        ["emau.mu", "fc2.bias", "extractor.4.0.conv1.weight", "extractor.6.0.bn2.running_var", "extractor.1.bias"],
    )
    def test_missing(self, small: dict[str, Tensor], key: str) -> None:
        del small[key]
        with pytest.raises(CheckpointError, match=f"not a network of the authors' code: without {key}$"):
            load_official(small, 8, ())

    def test_a_missing_stage_is_named_by_its_first_tensors(self, small: dict[str, Tensor]) -> None:
        state = {key: value for key, value in small.items() if not key.startswith("extractor.5.")}
        with pytest.raises(CheckpointError, match=r"without extractor\.5\.0\.conv1\.weight, .* and 17 more tensors"):
            load_official(state, 8, ())

    @pytest.mark.parametrize("key", ["fc3.weight", "extractor.4.0.bn4.weight", "backbone.network.conv1.0.weight"])
    def test_left_over(self, small: dict[str, Tensor], key: str) -> None:
        with pytest.raises(CheckpointError, match=f"with unknown {key}$"):
            load_official({**small, key: torch.zeros(1)}, 8, ())

    @pytest.mark.parametrize(
        ("key", "shape", "message"),
        [
            (
                "extractor.0.6.weight",
                (64, 64, 3, 3),
                r"extractor.0.6.weight is \(64, 64, 3, 3\) where .* \(128, 64, 3, 3",
            ),
            ("emau.mu", (1, 256, 64), r"emau.mu is \(64, 256\) where the other tensors ask for \(64, 512\)"),
            ("emau.mu", (512, 64), r"emau.mu is \(512, 64\) and not \(1, c, k\)"),
            ("fc2.bias", (19,), r"fc2.bias is \(19,\) where the other tensors ask for \(21,\)"),
        ],
    )
    def test_other_shapes(self, small: dict[str, Tensor], key: str, shape: tuple[int, ...], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_official({**small, key: torch.zeros(shape)}, 8, ())

    def test_a_multi_grid_that_does_not_fit(self, small: dict[str, Tensor]) -> None:
        with pytest.raises(
            ValueError, match=r"multi_grid \(1, 2, 4\) needs one factor per block; resnet50s ends with 1"
        ):
            load_official(small)


@pytest.fixture
def small_mmseg() -> dict[str, Tensor]:
    """One block per stage; values that tests can find again."""
    state, generator = empty(source="mmseg"), torch.Generator().manual_seed(0)
    for key in ("decode_head.ema_module.bases", "decode_head.conv_seg.weight", "backbone.layer4.0.bn3.running_var"):
        state[key] = torch.rand(state[key].shape, generator=generator)
    return state


def without_auxiliary(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("auxiliary_head.")}


class TestLoadMmseg:
    @pytest.mark.parametrize(("depth", "blocks"), [("r50", (3, 4, 6, 3)), ("r101", (3, 4, 23, 3))])
    def test_every_key_of_the_published_networks(self, depth: str, blocks: tuple[int, ...]) -> None:
        assert shapes(blocks, "mmseg") == MMSEG_KEYS[depth]
        config = load_mmseg(empty(blocks, "mmseg")).config
        assert config == SegmenterConfig(
            num_classes=19,
            backbone=f"resnet{depth[1:]}c",
            output_stride=8,
            concat_input=True,
            auxiliary_channels=256,
            ema=EMAConfig(renormalize="batch_mean", eps=1e-12, clamp=True),
        )

    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_carries_values(self, small_mmseg: dict[str, Tensor], prefix: str) -> None:
        model = load_mmseg({prefix + key: value for key, value in small_mmseg.items()})
        assert not model.training
        assert torch.equal(model.context.bases, small_mmseg["decode_head.ema_module.bases"][0].T)
        ours = model.state_dict()
        for here, there in (
            ("classifier.2.weight", "decode_head.conv_seg.weight"),
            ("backbone.network.layer4.0.bn3.running_var", "backbone.layer4.0.bn3.running_var"),
        ):
            assert torch.equal(ours[here], small_mmseg[there])

    def test_without_auxiliary_head(self, small_mmseg: dict[str, Tensor]) -> None:
        model = load_mmseg(without_auxiliary(small_mmseg), 16, align_corners=True)
        assert model.auxiliary is None
        assert (model.config.output_stride, model.config.align_corners) == (16, True)

    def test_without_concatenation(self, small_mmseg: dict[str, Tensor]) -> None:
        state = {key: value for key, value in small_mmseg.items() if "conv_cat" not in key}
        state["decode_head.bottleneck.conv.weight"] = torch.rand(256, 512, 3, 3)
        model = load_mmseg(state)
        assert model.bottleneck is None
        assert torch.equal(model.classifier[0][0].weight, state["decode_head.bottleneck.conv.weight"])

    @pytest.mark.parametrize(
        "key",
        [
            "backbone.stem.0.weight",
            "decode_head.ema_module.bases",
            "decode_head.conv_cat.bn.bias",
            "decode_head.ema_mid_conv.conv.bias",
            "auxiliary_head.convs.0.conv.weight",
            "auxiliary_head.conv_seg.bias",
        ],
    )
    def test_missing(self, small_mmseg: dict[str, Tensor], key: str) -> None:
        del small_mmseg[key]
        with pytest.raises(CheckpointError, match=f"not a network of mmsegmentation: without {key}$"):
            load_mmseg(small_mmseg)

    @pytest.mark.parametrize("key", ["decode_head.conv_seg.scale", "backbone.conv1.weight", "ema.decode_head"])
    def test_left_over(self, small_mmseg: dict[str, Tensor], key: str) -> None:
        with pytest.raises(CheckpointError, match=f"mmsegmentation: with unknown {key}$"):
            load_mmseg({**small_mmseg, key: torch.zeros(1)})

    @pytest.mark.parametrize(
        ("key", "shape", "message"),
        [
            ("decode_head.ema_module.bases", (512, 64), r"bases is \(512, 64\) and not \(1, c, k\)"),
            (
                "auxiliary_head.conv_seg.weight",
                (21, 256, 1, 1),
                r"conv_seg.weight is \(21, .* ask for \(19, 256, 1, 1\)",
            ),
            ("decode_head.conv_cat.conv.weight", (256, 2048, 3, 3), r"ask for \(256, 2304, 3, 3\)"),
        ],
    )
    def test_other_shapes(self, small_mmseg: dict[str, Tensor], key: str, shape: tuple[int, ...], message: str) -> None:
        with pytest.raises(CheckpointError, match=f"not a network of mmsegmentation: .*{message}"):
            load_mmseg({**small_mmseg, key: torch.zeros(shape)})

    def test_a_network_of_the_other_code(self, small: dict[str, Tensor], small_mmseg: dict[str, Tensor]) -> None:
        with pytest.raises(
            CheckpointError, match=r"not a network of mmsegmentation: without backbone\.stem\.0\.weight"
        ):
            load_mmseg(small)
        with pytest.raises(CheckpointError, match="not a network of the authors' code: without extractor"):
            load_official(small_mmseg)


@pytest.mark.parametrize("source", ["official", "mmseg"])
class TestBothRefuse:
    """What would otherwise be lost, or spread, without a word."""

    LOAD: ClassVar = {"official": lambda state: load_official(state, 8, ()), "mmseg": load_mmseg}
    CLASSIFIER: ClassVar = {"official": "fc2", "mmseg": "decode_head.conv_seg"}

    def test_the_same_tensor_twice(self, source: Source) -> None:
        state, bias = empty(source=source), f"{self.CLASSIFIER[source]}.bias"
        state[f"module.{bias}"] = torch.ones_like(state[bias])
        with pytest.raises(CheckpointError, match=rf"two tensors, with and without module\. in front, .* {bias}$"):
            self.LOAD[source](state)

    @pytest.mark.parametrize(("most", "few"), [("", "module."), ("module.", "")])
    def test_some_keys_with_a_prefix(self, source: Source, most: str, few: str) -> None:
        bias = f"{self.CLASSIFIER[source]}.bias"
        state = {(few if key == bias else most) + key: value for key, value in empty(source=source).items()}
        with pytest.raises(CheckpointError, match=rf"most keys are .* module\. in front, but .* it are {few}{bias}$"):
            self.LOAD[source](state)

    def test_scalars_and_whole_numbers(self, source: Source) -> None:
        keys = {
            "official": ("fc2.weight", "fc0.conv.weight", "fc1.0.conv.weight"),
            "mmseg": (
                "decode_head.conv_seg.weight",
                "decode_head.ema_in_conv.conv.weight",
                "decode_head.bottleneck.conv.weight",
                "auxiliary_head.convs.0.conv.weight",
            ),
        }
        for key in keys[source]:
            state = empty(source=source)
            for tensor, found in (
                (torch.zeros(()), r"\(\), torch\.float32"),
                (state[key].long(), r"\(.+\), torch\.int64"),
            ):
                with pytest.raises(CheckpointError, match=f"{key} is {found}, and not the real numbers"):
                    self.LOAD[source]({**state, key: tensor})

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_no_numbers(self, source: Source, value: float) -> None:
        bases = {"official": "emau.mu", "mmseg": "decode_head.ema_module.bases"}[source]
        for key in (f"{self.CLASSIFIER[source]}.bias", bases):
            state = empty(source=source)
            state[key] = state[key].clone()
            state[key].view(-1)[:2] = value
            with pytest.raises(CheckpointError, match=rf"2 of the {state[key].numel()} values of {key} are NaN or inf"):
                self.LOAD[source](state)


class TestReadMmseg:
    def test_the_way_out_of_code_beside_the_weights(self, tmp_path: Path) -> None:
        """The message's command, run as it stands, leaves a file that can be read."""
        state, path = {"a": torch.rand(2)}, tmp_path / "it's.pth"
        torch.save({"state_dict": state, "meta": {"loss": np.float64(1)}, "message_hub": Fraction(1, 2)}, path)
        with pytest.raises(CheckpointError, match="only if you trust the file") as refused:
            read_mmseg(path)
        _, *arguments = shlex.split(str(refused.value)[str(refused.value).index("python -c") :])
        subprocess.run([sys.executable, *arguments], check=True)
        assert torch.equal(read_mmseg(tmp_path / "it's-weights.pth")["a"], state["a"])


class TestReadOfficial:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize("nested", [True, False])
    def test_bare_or_beside_other_things(self, nested: bool, zipped: bool, tmp_path: Path) -> None:
        state = {"fc2.weight": torch.rand(2, 2)}
        content = {"step": 3, "net": state, "opt": {"state": {}, "lr": 0.1}} if nested else state
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        assert torch.equal(read_official(tmp_path / "a.pth")["fc2.weight"], state["fc2.weight"])

    def test_none_or_two(self, tmp_path: Path) -> None:
        state = {"a": torch.zeros(1)}
        for content, found in (({"step": 1}, "no"), ([1], "no"), ({"net": state, "averaged": state}, "2")):
            torch.save(content, tmp_path / "a.pth")
            with pytest.raises(CheckpointError, match=rf"a\.pth holds {found} state dicts"):
                read_official(tmp_path / "a.pth")

    def test_code_is_refused(self, tmp_path: Path) -> None:
        torch.save({"net": Evil(tmp_path / "trace")}, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=r"a\.pth .*could run code.* refused"):
            read_official(tmp_path / "a.pth")
        assert not (tmp_path / "trace").exists()


class TestCommand:
    def convert(self, state: dict[str, Tensor], tmp_path: Path, *flags: str) -> Path:
        source, out = tmp_path / "final.pth", tmp_path / "net.safetensors"
        torch.save({"net": {f"module.{key}": value.clone() for key, value in state.items()}}, source)
        main(["convert", "official", str(source), str(out), *flags])
        return out

    def test_makes_a_release(
        self, small: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = self.convert(small, tmp_path, "--output-stride", "16", "--multi-grid", "1")
        assert "net.safetensors: resnet50s, 21 classes" in capsys.readouterr().out
        released, direct = Segmenter.from_pretrained(out), load_official(small, 16, (1,))
        recipe = read_recipe(out)
        assert released.config == direct.config == recipe.model
        assert recipe == official_recipe(direct)
        assert (recipe.published, recipe.notes) == ((), "")
        assert recipe.optim == get_recipe("voc-r101").optim
        assert read_metadata(out)["source"] == "final.pth"
        for key, value in direct.state_dict().items():
            assert torch.equal(released.state_dict()[key], value), key  # float32: not rounded

    def test_data_set_with_other_classes(
        self, small: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stopped:
            self.convert(small, tmp_path, "--multi-grid", "1", "--data", "camvid")
        assert stopped.value.code == 1
        assert "the network predicts 21 classes, camvid has 11; name the data set" in capsys.readouterr().err
        assert not (tmp_path / "net.safetensors").exists()

    def test_something_else(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            self.convert({"conv1.weight": torch.zeros(1)}, tmp_path)
        assert "not a network of the authors' code: without extractor.4.0.conv1.weight" in capsys.readouterr().err


class TestMmsegCommand:
    def test_makes_a_release(
        self, small_mmseg: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source, out = tmp_path / "emanet.pth", tmp_path / "net.safetensors"
        state = {key: value.clone() for key, value in small_mmseg.items()}
        torch.save({"meta": {"CLASSES": ("road",), "iter": 80_000}, "state_dict": state, "optimizer": {}}, source)
        main(["convert", "mmseg", str(source), str(out), "--align-corners"])
        assert "net.safetensors: resnet50c, 19 classes" in capsys.readouterr().out
        released, direct = Segmenter.from_pretrained(out), load_mmseg(read_mmseg(source), align_corners=True)
        assert released.config == direct.config
        assert read_recipe(out) == mmseg_recipe(direct)
        assert read_recipe(out).data.name == "cityscapes"
        for key, value in direct.state_dict().items():
            assert torch.equal(released.state_dict()[key], value), key

    def test_data_set_with_other_classes(
        self, small_mmseg: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save({key: value.clone() for key, value in small_mmseg.items()}, tmp_path / "emanet.pth")
        with pytest.raises(SystemExit):
            main(["convert", "mmseg", str(tmp_path / "emanet.pth"), str(tmp_path / "a.safetensors"), "--data", "voc"])
        assert "the network predicts 19 classes, voc has 21; name the data set" in capsys.readouterr().err
        assert not (tmp_path / "a.safetensors").exists()


def test_blocks_are_for_resnets() -> None:
    for name, blocks in (("mobilenetv3_large_100", SMALL), ("resnet50", (1, 1)), ("resnet50", (1, 0, 1, 1))):
        with pytest.raises(ValueError, match=r"blocks are four counts, for the stages of a ResNet; got"):
            build_backbone(name, 8, blocks=blocks)
