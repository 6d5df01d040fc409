"""Images of any number of channels: numpy's arrays, TIFFs of several bands, gray photographs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import tifffile
from PIL import Image
from tiny_data import save_pages

from emalab.data.bands import decode_image, read_header, viewable
from emalab.data.errors import MissingFileError, UnreadableFileError
from emalab.data.images import Reading, open_image


def bands(count: int, dtype: type = np.uint8, size: tuple[int, int] = (6, 9)) -> np.ndarray:
    return np.random.default_rng(count).integers(0, np.iinfo(dtype).max, (*size, count), dtype=dtype, endpoint=True)


def save_tiff(path: Path, values: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, values, **{"photometric": "minisblack", "planarconfig": "contig"} | options)
    return path


def save_npy(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def read(path: Path, channels: int | None, **options: Any) -> np.ndarray:
    return decode_image(path, Reading(channels=channels, **options)).pixels


def refused(path: Path, channels: int | None, message: str, **options: Any) -> None:
    with pytest.raises(UnreadableFileError, match=message) as caught:
        read(path, channels, **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


class TestBands:
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 13])
    def test_of_an_array(self, count: int, tmp_path: Path) -> None:
        path = save_npy(tmp_path / "a.npy", bands(count))
        assert read_header(path)[:4] == (9, 6, count, False)
        assert np.array_equal(read(path, count), bands(count))

    def test_of_an_array_without_channels_are_one(self, tmp_path: Path) -> None:
        path = save_npy(tmp_path / "a.npy", bands(1)[..., 0])
        assert read_header(path).channels == 1
        assert np.array_equal(read(path, 1), bands(1))

    def test_of_an_array_in_fortrans_order(self, tmp_path: Path) -> None:
        assert np.array_equal(read(save_npy(tmp_path / "a.npy", np.asfortranarray(bands(4))), 4), bands(4))

    @pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
    @pytest.mark.parametrize("count", [2, 3, 4, 5, 13])
    def test_of_a_tiff(self, count: int, compression: str | None, tmp_path: Path) -> None:
        if compression == "lzw":
            pytest.importorskip("imagecodecs")
        path = save_tiff(tmp_path / "a.tif", bands(count), compression=compression)
        assert read_header(path)[:4] == (9, 6, count, False)
        assert np.array_equal(read(path, count), bands(count))

    def test_of_a_tiff_one_after_the_other(self, tmp_path: Path) -> None:
        separate = np.ascontiguousarray(np.moveaxis(bands(5), -1, 0))
        path = save_tiff(tmp_path / "a.tif", separate, planarconfig="separate", byteorder=">")
        assert read_header(path)[:4] == (9, 6, 5, False)
        assert np.array_equal(read(path, 5), bands(5))

    def test_of_a_big_tiff_in_tiles(self, tmp_path: Path) -> None:
        path = save_tiff(tmp_path / "a.tif", bands(5, size=(70, 90)), bigtiff=True, tile=(32, 32))
        assert np.array_equal(read(path, 5), bands(5, size=(70, 90)))

    @pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
    def test_a_fourth_is_one_of_four(self, photometric: str, tmp_path: Path) -> None:
        path = save_tiff(tmp_path / "a.tif", bands(4), photometric=photometric)
        assert read_header(path).channels == 4
        assert np.array_equal(read(path, 4), bands(4))

    def test_a_fourth_beside_rgb_is_dropped_where_nothing_is_asked_for(self, tmp_path: Path) -> None:
        path = save_tiff(tmp_path / "a.tif", bands(4), photometric="rgb")
        assert np.array_equal(read(path, None), bands(4)[..., :3])
        assert np.array_equal(np.asarray(open_image(path)).transpose(1, 2, 0), bands(4)[..., :3])

    @pytest.mark.parametrize("mode", ["L", "P", "RGB", "CMYK", "LA", "1", "I;16", "YCbCr"])
    def test_a_tiff_that_is_a_photograph(self, mode: str, tmp_path: Path) -> None:
        Image.new(mode, (9, 6)).save(tmp_path / "a.tif")
        try:
            Image.open(tmp_path / "a.tif").load()
        except OSError:  # YCbCr, up to version 12.0
            pytest.skip(f"Pillow {PIL.__version__} writes a {mode} TIFF that it cannot read")
        assert read_header(tmp_path / "a.tif")[:4] == (9, 6, 3, True)
        assert read(tmp_path / "a.tif", None).shape == (6, 9, 3)

    def test_associated_opacity_is_no_band(self, tmp_path: Path) -> None:
        path = save_tiff(tmp_path / "a.tif", bands(4), photometric="rgb", extrasamples=["assocalpha"])
        assert read_header(path)[:4] == (9, 6, 3, True)

    @pytest.mark.parametrize("orientation", ["upright", "stored"])
    def test_are_turned_as_photographs_are(self, orientation: Any, tmp_path: Path) -> None:
        tag = (274, "H", 1, 6, True)
        path = save_tiff(tmp_path / "a.tif", bands(5), extratags=[tag])
        stored = bands(5)
        expected = np.rot90(stored, -1) if orientation == "upright" else stored
        assert np.array_equal(read(path, 5, orientation=orientation), expected)
        assert decode_image(path, Reading(channels=5)).turn == 6

    def test_are_shown_by_their_first_three(self) -> None:
        assert np.array_equal(viewable(bands(5)), bands(5)[..., :3])
        assert np.array_equal(viewable(bands(2)), np.repeat(bands(2)[..., :1], 3, axis=2))


class TestDepth:
    """The rule for 16 bits is that of photographs."""

    @pytest.mark.parametrize("suffix", ["npy", "tif"])
    def test_the_upper_8_of_16_bits(self, suffix: str, tmp_path: Path) -> None:
        save, path = (save_npy if suffix == "npy" else save_tiff), tmp_path / f"a.{suffix}"
        save(path, bands(5, np.uint16))
        assert np.array_equal(read(path, 5), bands(5, np.uint16) >> 8)

    @pytest.mark.parametrize("suffix", ["npy", "tif"])
    def test_12_bits_are_stated_by_file_or_folder(self, suffix: str, tmp_path: Path) -> None:
        save, path = (save_npy if suffix == "npy" else save_tiff), tmp_path / f"a.{suffix}"
        values = np.array([[[0, 1000, 2000, 4095]]], np.uint16)
        save(path, values)
        refused(path, 4, "is of 16 bits, but its largest value is 4095 of 65535, nearly black; .* give bits")
        assert read(path, 4, bits=12).tolist() == [[[0, 62, 125, 255]]]
        refused(path, 4, "has the value 4095, which 11 bits do not hold", bits=11)
        if suffix == "tif":
            save_tiff(path, values, extratags=[(281, "H", 4, (4095,) * 4, True)])
            assert read(path, 4).tolist() == [[[0, 62, 125, 255]]]

    @pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint32, bool])
    def test_other_types_have_no_agreed_range(self, dtype: type, tmp_path: Path) -> None:
        path = save_npy(tmp_path / "a.npy", np.ones((4, 4, 5), dtype))
        refused(path, 5, f"its values are {np.dtype(dtype)}, which has no agreed range; save it as uint8 or uint16")


class TestGray:
    def test_of_a_gray_photograph_is_its_values(self, tmp_path: Path) -> None:
        Image.fromarray(bands(1)[..., 0]).save(tmp_path / "a.png")
        assert np.array_equal(read(tmp_path / "a.png", 1), bands(1))

    def test_of_a_colored_photograph_is_its_luma(self, tmp_path: Path) -> None:
        Image.fromarray(bands(3)).save(tmp_path / "a.png")
        luma = bands(3) @ np.array([0.299, 0.587, 0.114])
        assert np.abs(read(tmp_path / "a.png", 1)[..., 0] - luma).max() <= 0.51

    def test_of_12_bits(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 2000, 4095]], np.uint16)).save(tmp_path / "a.png")
        assert read(tmp_path / "a.png", 1, bits=12).tolist() == [[[0], [125], [255]]]

    def test_of_an_image_that_is_open(self) -> None:
        assert decode_image(Image.new("RGB", (3, 2), "white"), Reading(channels=1)).pixels.tolist() == [[[255]] * 3] * 2


class TestOtherCounts:
    def test_a_photograph_where_bands_are_wanted(self, tmp_path: Path) -> None:
        Image.fromarray(bands(3)).save(tmp_path / "a.jpg")
        message = (
            r"is a photograph, and 4 channels are wanted, as b\.tif has: a \.npy file of an array \(h, w, 4\), or a"
        )
        refused(tmp_path / "a.jpg", 4, message, reason="as b.tif has")

    @pytest.mark.parametrize("channels", [None, 3])
    def test_bands_where_rgb_is_wanted(self, channels: int | None, tmp_path: Path) -> None:
        for path in (save_npy(tmp_path / "a.npy", bands(5)), save_tiff(tmp_path / "a.tif", bands(5))):
            refused(path, channels, "has 5 channels, and RGB images are wanted")

    def test_a_fourth_where_three_are_asked_for(self, tmp_path: Path) -> None:
        refused(save_tiff(tmp_path / "a.tif", bands(4), photometric="rgb"), 3, "has 4 channels, and RGB images")
        refused(save_tiff(tmp_path / "a.tif", bands(4)), None, "has 4 channels, and RGB images")

    def test_another_number_of_bands(self, tmp_path: Path) -> None:
        refused(save_npy(tmp_path / "a.npy", bands(1)), 5, r"has 1 channel, and 5 are wanted\.")
        refused(save_npy(tmp_path / "a.npy", bands(2)), 1, r"has 2 channels, and gray images are wanted\.")

    def test_pages_are_no_bands(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "a.tif", bands(5))  # without planarconfig it writes a page for each row
        refused(tmp_path / "a.tif", 5, r"is a TIFF of 6 pages, and one page of 5 channels is wanted; write an array")
        save_pages(tmp_path / "b.tif", [Image.new("L", (3, 3))] * 5)
        refused(tmp_path / "b.tif", 5, "is a TIFF of 5 pages")
        with tifffile.TiffWriter(tmp_path / "c.tif") as writer:
            for _ in range(2):
                writer.write(bands(5), photometric="minisblack", planarconfig="contig")
        refused(tmp_path / "c.tif", 5, "has 2 pages of several bands")


class TestDamage:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(MissingFileError, match=r"a\.npy: no such file"):
            read(tmp_path / "a.npy", 5)

    @pytest.mark.parametrize("suffix", ["npy", "tif"])
    def test_files_that_are_cut_short(self, suffix: str, tmp_path: Path) -> None:
        save, path = (save_npy if suffix == "npy" else save_tiff), tmp_path / f"a.{suffix}"
        content = save(path, bands(5, size=(40, 40))).read_bytes()
        for length in (4, 9, 60, 150, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:length])
            with pytest.raises(UnreadableFileError, match=rf"^\S+a\.{suffix}: "):
                read(path, 5)

    def test_arrays_of_objects_run_no_code(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([[print]], object), allow_pickle=True)
        refused(tmp_path / "a.npy", 1, "cannot be read")

    def test_arrays_of_other_axes(self, tmp_path: Path) -> None:
        refused(save_npy(tmp_path / "a.npy", np.zeros((2, 3, 4, 5), np.uint8)), 5, r"is an array \(2, 3, 4, 5\); an")
        refused(save_npy(tmp_path / "a.npy", np.zeros((0, 3, 4), np.uint8)), 4, "has no pixels")

    def test_more_pixels_than_are_opened(self, tmp_path: Path) -> None:
        path = save_npy(tmp_path / "a.npy", bands(6))
        refused(path, 6, "9×6 = .* megapixels", max_pixels=100)
        assert read(path, 6, max_pixels=108).shape == (6, 9, 6)

    def test_without_tifffile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save_tiff(tmp_path / "a.tif", bands(5))
        monkeypatch.setitem(sys.modules, "tifffile", None)
        refused(path, 5, r"a TIFF of several bands needs tifffile: pip install 'emalab\[tiff\]'")
        assert read_header(path).channels == 5
