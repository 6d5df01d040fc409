"""Any photograph in, one label per pixel out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import random_images, tiny_segmenter

from emalab.data import DataError, open_image
from emalab.evaluation import predict_probabilities
from emalab.prediction import predict
from emalab.segmenter import Segmenter


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
    def test_are_those_of_probabilities_enlarged_at_once(self, model: Segmenter, size: tuple[int, int]) -> None:
        """Strips of rows are a way to save memory, not another result."""
        image = photo(*size)
        shrink = min(1.0, 80 / max(size))
        small = image.resize((round(size[1] * shrink), round(size[0] * shrink)), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]
        enlarged = F.interpolate(predict_probabilities(model, pixels, flip=True), size, mode="bilinear")[0]
        labels = predict(model, image, max_side=80)
        assert labels.shape == size
        assert labels.dtype == np.uint8
        best = enlarged.max(0).values
        given = enlarged.gather(0, torch.from_numpy(labels).long()[None])[0]
        assert (best - given).max() < 1e-5  # the largest probability, up to rounding

    def test_a_small_photograph_is_not_enlarged_for_the_network(self, model: Segmenter) -> None:
        assert np.array_equal(predict(model, photo(), max_side=60), predict(model, photo(), max_side=5000))

    def test_flip_makes_mirrored_photographs_mirrored_labels(self, model: Segmenter) -> None:
        image = photo(40, 64)  # a multiple of the stride: padding is on one side alone
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert (predict(model, mirrored)[:, ::-1] == predict(model, image)).mean() > 0.999

    def test_side_of_nothing(self, model: Segmenter) -> None:
        with pytest.raises(ValueError, match="max_side is 0; it must be at least 1 pixel"):
            predict(model, photo(), max_side=0)


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "mode"),
        [("rgb.png", "RGB"), ("grey.png", "L"), ("grey.jpg", "L"), ("opaque.png", "RGBA"), ("print.jpg", "CMYK"),
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
        grey = np.array(photo().convert("L"))
        Image.fromarray(grey.astype(np.uint16) * 256).save(tmp_path / "deep.png")
        assert np.array_equal(predict(model, tmp_path / "deep.png"), predict(model, Image.fromarray(grey)))

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
    """24 megapixels and 9 classes: probabilities at full size alone would take 860 MB."""
    photo(4000, 6000).save(tmp_path / "large.jpg")
    model = tiny_segmenter(num_classes=9)
    predict(model, photo())
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    assert predict(model, tmp_path / "large.jpg").shape == (4000, 6000)
    assert peak_memory() - before < 400  # MB; the photograph alone is 72, and decoding holds it twice


def peak_memory() -> float:
    """Most memory that this process has held since the peak was reset, in MB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1000
