"""Any photograph in, one label per pixel out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import random_images, tiny_segmenter
from torchvision.transforms.v2.functional import to_dtype

from emalab.data import DataError, open_image
from emalab.inference import predict_probabilities
from emalab.prediction import predict, predict_with_confidence
from emalab.segmenter import Segmenter
from emalab.views import SINGLE_SCALE, Views


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return tiny_segmenter()


def photo(height: int = 40, width: int = 60) -> Image.Image:
    """Smooth, so that formats with loss keep it nearly as it is."""
    coarse = Image.fromarray(random_images(4, 6, 3).numpy())
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


class TestLabels:
    @pytest.mark.parametrize("size", [(40, 60), (131, 170), (200, 90)], ids=str)
    @torch.inference_mode()
    def test_are_those_of_logits_enlarged_at_once(self, model: Segmenter, size: tuple[int, int]) -> None:
        """Strips of rows are a way to save memory, not another result."""
        image = photo(*size)
        shrink = min(1.0, 80 / max(size))
        small = image.resize((round(size[1] * shrink), round(size[0] * shrink)), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]
        stride = model.config.output_stride
        extent = [side + -side % stride for side in pixels.shape[-2:]]
        padded = F.pad(model.normalize(pixels), (0, extent[1] - pixels.shape[-1], 0, extent[0] - pixels.shape[-2]))
        logits = F.interpolate(model.coarse_logits(padded), extent, mode="bilinear")
        logits = logits[..., : pixels.shape[-2], : pixels.shape[-1]]
        expected = F.interpolate(logits, size, mode="bilinear").softmax(1)[0]
        labels, confidence = predict_with_confidence(model, image, max_side=80, views=SINGLE_SCALE)
        assert (labels.shape, labels.dtype, confidence.dtype) == (size, np.uint8, np.float32)
        given = expected.gather(0, torch.from_numpy(labels).long()[None])[0]
        assert (expected.max(0).values - given).max() < 1e-5  # the largest probability, up to rounding
        torch.testing.assert_close(torch.from_numpy(confidence), given, rtol=0, atol=1e-5)

    def test_windows_are_those_of_evaluation(self, model: Segmenter) -> None:
        image, views = photo(90, 130), Views((1.0, 1.5), True, (48, 64), 0.5)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            expected = predict_probabilities(model, pixels, views)[0].amax(0)
        found = predict_with_confidence(model, image, views=views)
        torch.testing.assert_close(torch.from_numpy(found.confidence), expected)

    def test_a_large_photograph_is_seen_in_windows(self, model: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[torch.Size] = []
        hook = model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-2:]))
        with hook:
            predict(model, photo(1100, 1200), views=SINGLE_SCALE)
            assert seen == [(1100, 1200)]
            predict(model, photo(1100, 1400), views=SINGLE_SCALE)
        assert set(seen[1:]) == {(1024, 1024)}

    def test_a_small_photograph_is_not_enlarged_for_the_network(self, model: Segmenter) -> None:
        assert np.array_equal(predict(model, photo(), max_side=60), predict(model, photo(), max_side=5000))

    def test_flip_makes_mirrored_photographs_mirrored_labels(self, model: Segmenter) -> None:
        image = photo(40, 64)  # a multiple of the stride: padding is on one side alone
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert (predict(model, mirrored)[:, ::-1] == predict(model, image)).mean() > 0.999

    def test_side_of_nothing(self, model: Segmenter) -> None:
        with pytest.raises(ValueError, match="max_side is 0; it must be at least 1 pixel"):
            predict(model, photo(), max_side=0)


class TestInputs:
    def test_every_kind_gives_the_same(self, model: Segmenter, tmp_path: Path) -> None:
        image = photo()
        image.save(tmp_path / "a.png")
        array = np.array(image)
        kinds = (tmp_path / "a.png", str(tmp_path / "a.png"), array, array[:, ::-1][:, ::-1])
        for kind in (*kinds, torch.from_numpy(array).permute(2, 0, 1)):
            assert np.array_equal(predict(model, kind), predict(model, image))

    def test_floating_point_in_0_to_1_is_an_image(self, model: Segmenter) -> None:
        """Torchvision's convention, and matplotlib's; every uint8 value comes back."""
        image = photo()
        array, expected = np.array(image), predict(model, image)
        unit = to_dtype(torch.from_numpy(array).permute(2, 0, 1), torch.float32, scale=True)
        for kind in (array / 255, np.float32(array / 255), unit, unit.double(), unit.clone().requires_grad_()):
            assert np.array_equal(predict(model, kind), expected)

    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            (np.zeros((4, 5, 3), int), TypeError, "an array must hold values as uint8 in 0–255 or .* got torch.int64"),
            (torch.zeros(3, 4, 5).bool(), TypeError, "a tensor must hold values as uint8 .* in 0…1; got torch.bool"),
            (np.full((4, 5, 3), 200.0), ValueError, "in 0…1, not normalized; they are 200 to 200. Give uint8"),
            (torch.randn(3, 4, 5), ValueError, "a tensor in floating point must hold values in 0…1, not normalized"),
            (torch.full((3, 4, 5), torch.nan), ValueError, "they are nan to nan"),
            (np.zeros((3, 4, 5), np.uint8), ValueError, r"an array must be RGB, \(h, w, 3\), .* got \(3, 4, 5\)"),
            (np.zeros((4, 5), np.uint8), ValueError, r"an array must be RGB, .* got \(4, 5\)"),
            (np.zeros((0, 5, 3), np.uint8), ValueError, r"at least one pixel; got \(0, 5, 3\)"),
            (torch.zeros(1, 3, 4, 5, dtype=torch.uint8), ValueError, r"a tensor must be RGB, \(3, h, w\)"),
            (b"bytes", TypeError, "a photograph is a path, a PIL image, an array .* got bytes"),
            ([[1]], TypeError, "got list"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_other_kinds_are_refused(self, model: Segmenter, value: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            predict(model, value)

    def test_a_network_in_training_stays_in_it_and_learns_nothing(self) -> None:
        model = tiny_segmenter()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        expected = predict(model, photo())
        assert np.array_equal(predict(model.train(), photo()), expected)
        assert model.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "mode"),
        [("rgb.png", "RGB"), ("gray.png", "L"), ("gray.jpg", "L"), ("opaque.png", "RGBA"), ("print.jpg", "CMYK"),
         ("palette.gif", "P"), ("palette.png", "P"), ("binary.png", "1"), ("veiled.png", "LA")],
    )  # fmt: skip
    def test_mode(self, model: Segmenter, tmp_path: Path, name: str, mode: str) -> None:
        """The labels are those of the RGB picture that a viewer shows."""
        image = photo().convert(mode)
        image.save(tmp_path / name)
        with Image.open(tmp_path / name) as stored:
            shown = stored.convert("RGB")
        assert np.array_equal(predict(model, tmp_path / name), predict(model, shown))

    def test_sixteen_bits(self, model: Segmenter, tmp_path: Path) -> None:
        gray = np.array(photo().convert("L"))
        Image.fromarray(gray.astype(np.uint16) * 256).save(tmp_path / "deep.png")
        assert np.array_equal(predict(model, tmp_path / "deep.png"), predict(model, Image.fromarray(gray)))

    def test_transparency_is_white(self, model: Segmenter) -> None:
        clear = photo().convert("RGBA")
        clear.putalpha(0)
        assert np.array_equal(predict(model, clear), predict(model, Image.new("RGB", clear.size, "white")))

    @pytest.mark.parametrize("orientation", [3, 6, 8])
    def test_exif_orientation(self, model: Segmenter, tmp_path: Path, orientation: int) -> None:
        """Labels fit the photograph as viewers show it."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo().save(tmp_path / "turned.png", exif=exif)
        upright = photo().rotate({3: 180, 6: 270, 8: 90}[orientation], expand=True)
        labels = predict(model, tmp_path / "turned.png")
        assert labels.shape == open_image(tmp_path / "turned.png").shape[1:] == upright.size[::-1]
        assert np.array_equal(labels, predict(model, upright))

    @pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)], ids=str)
    def test_sizes_at_the_edge(self, model: Segmenter, size: tuple[int, int]) -> None:
        assert predict(model, photo(*size), max_side=100).shape == size

    def test_no_image(self, model: Segmenter, tmp_path: Path) -> None:
        (tmp_path / "notes.jpg").write_text("not a picture")
        for name in ("notes.jpg", "gone.jpg"):
            with pytest.raises(DataError, match=name):
                predict(model, tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="resets and reads the peak of memory by Linux's /proc")
def test_memory_is_bounded_by_the_photograph(tmp_path: Path) -> None:
    """4 megapixels and 64 classes: the probabilities at full size alone would take 1024 MB."""
    photo(2000, 2000).save(tmp_path / "large.jpg")
    model = tiny_segmenter(num_classes=64)
    predict(model, photo())
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    assert predict(model, tmp_path / "large.jpg", views=Views(overlap=0)).shape == (2000, 2000)
    assert peak_memory() - before < 600  # MB; coarse logits are 67, a strip and its probabilities 200


def peak_memory() -> float:
    """Most memory that this process has held since the peak was reset, in MB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1000
