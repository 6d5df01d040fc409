"""The commands and Python's `predict` with images of other than three channels, from folder to ONNX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Capture, fails, message
from PIL import Image
from tiny import random_images, tiny_recipe, tiny_segmenter
from tiny_data import SIZE, save_bands, save_image, save_mask

from emalab import predict
from emalab.checkpoints import export_segmenter, read_recipe
from emalab.cli import main
from emalab.commands.inspect import _look
from emalab.data.errors import UnreadableFileError
from emalab.data.spec import DatasetSpec
from emalab.inference import predict_labels
from emalab.prediction import _shrink, predict_with_confidence
from emalab.recipes.from_folder import describe_recipe, recipe_for_folder
from emalab.segmenter import Segmenter
from emalab.views import MIRRORED
from emalab.viz import overlay


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, count), dtype=np.uint8)


def labels_of(model: Segmenter, values: np.ndarray) -> np.ndarray:
    images = torch.from_numpy(values).permute(2, 0, 1)[None]
    return predict_labels(model, images, MIRRORED)[0].numpy()


@pytest.fixture
def five(tmp_path: Path) -> Path:
    return release(tmp_path / "five.safetensors", 5)


def release(path: Path, count: int) -> Path:
    model = tiny_segmenter(in_channels=count)
    export_segmenter(model, path, tiny_recipe(model=model.config), {}, torch.float32)
    return path


class TestPredictInPython:
    @pytest.mark.parametrize("count", [1, 2, 4, 5])
    def test_files_arrays_and_tensors_agree(self, count: int, tmp_path: Path) -> None:
        model, values = tiny_segmenter(in_channels=count), pixels(count)
        expected = labels_of(model, values)
        file = save_bands(tmp_path / ("a.png" if count == 1 else "a.tif"), values)
        array = save_bands(tmp_path / "b.npy", values)
        tensor = torch.from_numpy(values).permute(2, 0, 1)
        for photo in (file, array, values, tensor, tensor.float() / 255):
            assert np.array_equal(predict(model, photo), expected)
        assert np.array_equal(predict_with_confidence(model, file).labels, expected)

    def test_gray_needs_no_axis_for_its_channel(self) -> None:
        model, values = tiny_segmenter(in_channels=1), pixels(1)
        expected = labels_of(model, values)
        for photo in (values[..., 0], torch.from_numpy(values[..., 0]), Image.fromarray(values[..., 0])):
            assert np.array_equal(predict(model, photo), expected)

    @pytest.mark.parametrize("count", [1, 3, 4])
    def test_shrinking_treats_channels_alike(self, count: int) -> None:
        image = random_images(count, 40, 60)
        small = _shrink(image, 24)
        assert small.shape == (count, 16, 24)
        for channel in range(count):
            assert torch.equal(small[channel], _shrink(image[channel].expand(3, 40, 60), 24)[0])

    def test_bits(self, tmp_path: Path) -> None:
        model = tiny_segmenter(in_channels=4)
        np.save(tmp_path / "a.npy", pixels(4).astype(np.uint16) << 4)
        assert np.array_equal(predict(model, tmp_path / "a.npy", bits=12), labels_of(model, pixels(4)))
        with pytest.raises(UnreadableFileError, match=r"nearly black; .* give bits"):
            predict(model, tmp_path / "a.npy")

    @pytest.mark.parametrize(
        ("count", "photo", "error", "message"),
        [
            (4, pixels(3), ValueError, r"an array must have 4 channels, \(h, w, 4\), with .* got \(24, 32, 3\)"),
            (3, pixels(4), ValueError, r"an array must be RGB, \(h, w, 3\), with .* got \(24, 32, 4\)"),
            (1, pixels(3), ValueError, r"an array must be gray, \(h, w, 1\), with .* got \(24, 32, 3\)"),
            (4, pixels(4)[..., 0], ValueError, r"have 4 channels, \(h, w, 4\), with .* got \(24, 32\)"),
            (
                5,
                random_images(4, 8, 8),
                ValueError,
                r"a tensor must have 5 channels, \(5, h, w\), with .* got \(4, 8, 8\)",
            ),
            (4, 7, TypeError, r"an array \(h, w, 4\) or a tensor \(4, h, w\); got int"),
            (
                4,
                Image.new("RGB", (8, 8)),
                UnreadableFileError,
                "image: is a photograph, and 4 channels are wanted, as the",
            ),
        ],
    )
    def test_other_channels_are_refused(self, count: int, photo: object, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            predict(tiny_segmenter(in_channels=count), photo)


class TestPredictCommand:
    def test_labels_files_with_bands(self, five: Path, tmp_path: Path, capsys: Capture) -> None:
        folder = tmp_path / "in"
        save_bands(folder / "a.npy", pixels(5))
        save_bands(folder / "b.tif", pixels(5))
        main(["predict", str(folder), "--checkpoint", str(five), "--out", str(tmp_path / "out")])
        expected = labels_of(Segmenter.from_pretrained(five), pixels(5))
        for name in ("a", "b"):
            with Image.open(tmp_path / f"out/{name}.mask.png") as mask:
                assert np.array_equal(np.asarray(mask), expected)
            with Image.open(tmp_path / f"out/{name}.overlay.png") as picture:
                assert picture.mode == "RGB"
        assert capsys.readouterr().err == ""

    def test_photographs_and_videos_are_one_line_each(self, five: Path, tmp_path: Path, capsys: Capture) -> None:
        photo = save_image(tmp_path / "a.jpg")
        fails("predict", photo, "--checkpoint", five, "--out", tmp_path)
        assert message(capsys).endswith(
            f"{photo}: is a photograph, and 5 channels are wanted, as the network takes them: a .npy file of an array "
            "(h, w, 5), or a TIFF of 5 bands."
        )
        (tmp_path / "a.mp4").write_bytes(b"not looked at")
        fails("predict", tmp_path / "a.mp4", "--checkpoint", five, "--out", tmp_path)
        assert message(capsys).endswith("a.mp4: is a video in RGB, and the network takes images of 5 channels.")
        frames = [Image.new("RGB", (30, 20), color) for color in ("red", "lime")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        fails("predict", tmp_path / "a.gif", "--checkpoint", five, "--out", tmp_path)
        assert "a.gif: is a photograph, and 5 channels are wanted" in message(capsys)
        assert not list(tmp_path.glob("*.mask*"))

    def test_bands_for_a_network_of_rgb(self, tmp_path: Path, capsys: Capture) -> None:
        rgb = release(tmp_path / "rgb.safetensors", 3)
        for name in ("a.npy", "a.tif"):
            path = save_bands(tmp_path / name, pixels(5))
            fails("predict", path, "--checkpoint", rgb, "--out", tmp_path)
            assert message(capsys).endswith(
                f"{path}: has 5 channels, and RGB images are wanted, as the network takes them."
            )

    def test_a_fourth_channel_for_a_network_of_rgb(self, tmp_path: Path, capsys: Capture) -> None:
        rgb, path = release(tmp_path / "rgb.safetensors", 3), save_bands(tmp_path / "a.tif", pixels(4))
        main(["predict", str(path), "--checkpoint", str(rgb), "--out", str(tmp_path)])
        assert "a.overlay.png (the first 3 of its 4 channels)" in capsys.readouterr().out

    def test_bits_are_those_of_the_data_it_was_trained_on(self, tmp_path: Path, capsys: Capture) -> None:
        model = tiny_segmenter(in_channels=4)
        spec = DatasetSpec("x/", "x", tuple("abcde"), ((0, 0, 0),) * 5, ("train",), "", channels=4, bits=12)
        np.save(tmp_path / "a.npy", pixels(4).astype(np.uint16) << 4)
        for kept, flags in ((spec, []), (replace(spec, bits=None), ["--bits", "12"])):
            path = tmp_path / "net.safetensors"
            recipe = tiny_recipe(model=model.config)
            export_segmenter(model, path, recipe, {"spec": kept.__dict__}, torch.float32)
            out = tmp_path / f"out{len(flags)}"
            main(["predict", str(tmp_path / "a.npy"), "--checkpoint", str(path), "--out", str(out), *flags])
            with Image.open(out / "a.mask.png") as mask:
                assert np.array_equal(np.asarray(mask), labels_of(model, pixels(4)))


class TestInspect:
    @pytest.mark.parametrize("name", ["a.npy", "a.tif"])
    def test_bands(self, name: str, five: Path, tmp_path: Path) -> None:
        save_bands(tmp_path / name, pixels(5))
        for flags in ([], ["--pixel", "3", "4"]):
            main(["inspect", str(tmp_path / name), "--checkpoint", str(five), "--out", str(tmp_path), *flags])
        assert (tmp_path / "a.bases.png").exists()
        assert (tmp_path / "a.attention.png").exists()

    def test_photographs_are_seen_as_before(self) -> None:
        values = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
        small, _ = _look(tiny_segmenter(), values, 32)
        expected = Image.fromarray(values)
        expected.thumbnail((32, 32))
        assert np.array_equal(np.asarray(small), np.asarray(expected))


def test_overlay_shows_what_can_be_seen_of_a_file(tmp_path: Path) -> None:
    spec, labels = DatasetSpec("x", "x", ("background", "b"), ((0, 0, 0),) * 2, ("train",), ""), np.zeros(SIZE, int)
    path = save_bands(tmp_path / "a.npy", pixels(5))
    assert np.array_equal(np.asarray(overlay(path, labels, spec, named=[])), pixels(5)[..., :3])


class TestFromAFolder:
    @staticmethod
    def folder(root: Path, suffix: str, count: int) -> str:
        for index in range(6):
            values = pixels(count, index)
            save_bands(root / f"images/{index}{suffix}", values)
            save_mask(root / f"masks/{index}.png", 255 * (values[..., 0] > 127))
        return f"{root}/"

    def test_the_recipe_follows_from_the_channels(self, tmp_path: Path) -> None:
        recipe = recipe_for_folder(self.folder(tmp_path, ".npy", 5), "cpu", report=lambda line: None)
        assert recipe.model.in_channels == 5
        assert dict(describe_recipe(recipe))["channels"] == "5, their mean and deviation from train"

    @pytest.mark.parametrize(("suffix", "count", "flags"), [(".tif", 4, []), (".png", 1, ["--model.in-channels", "1"])])
    def test_from_training_to_onnx(
        self, suffix: str, count: int, flags: list[str], tmp_path: Path, capsys: Capture
    ) -> None:
        import onnxruntime

        folder, run = self.folder(tmp_path / "f", suffix, count), tmp_path / "run"
        quick = ["--optim.iterations", "2", "--optim.batch-size", "2", "--optim.warmup", "0", "--num-workers", "0"]
        crop = ["--data.crop-size", "32", "32", "--accelerator", "cpu"]
        main(["train", folder, "--out", str(run), *quick, *crop, *flags])
        printed = capsys.readouterr().out
        assert "channels of train: mean " in printed
        adapted = f"backbone.network.conv_stem.weight of emanet-lite2-voc-animals adapted from 3 channels to {count}"
        assert adapted in printed
        model = read_recipe(run / "last.pt").model
        assert (model.in_channels, len(model.channel_mean)) == (count, count)
        main(["evaluate", str(run / "last.pt"), "--device", "cpu"])
        image = f"{folder}images/0{suffix}"
        main(["predict", image, "--checkpoint", str(run / "last.pt"), "--out", str(tmp_path), "--device", "cpu"])
        assert (tmp_path / "0.mask.png").exists()
        main(["export", str(run), str(tmp_path / "net.onnx")])
        session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
        assert session.get_inputs()[0].shape[1] == count
