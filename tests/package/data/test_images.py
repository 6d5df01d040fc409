"""Photographs as people have them: turned, deep, with a fourth channel, huge, or nothing of the kind."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, TiffImagePlugin
from tiny_data import save_pages

from emalab.data import open_image
from emalab.data.errors import UnreadableFileError
from emalab.data.images import IMAGE_SUFFIXES, decode_rgb, turned


def picture() -> np.ndarray:
    """uint8 (5, 7, 3) without symmetry."""
    return np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def tagged(**tags: object) -> TiffImagePlugin.ImageFileDirectory_v2:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[int(tag[1:])] = value
    return directory


def pixels(path: Path, **options: int) -> np.ndarray:
    return open_image(path, **options).permute(1, 2, 0).numpy()


def refused(path: Path, message: str, **options: int) -> None:
    with pytest.raises(UnreadableFileError, match=message) as caught:
        open_image(path, **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_turn_upright_and_as_stored(tmp_path: Path, suffix: str, turn: int):
    """TIFFs are turned by PIL itself when they are read, other files are not."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture()).save(path, exif=exif)
    upright = {
        1: picture(),
        2: picture()[:, ::-1],
        3: picture()[::-1, ::-1],
        4: picture()[::-1],
        5: picture().swapaxes(0, 1),
        6: np.rot90(picture(), -1),
        7: np.rot90(picture(), 2).swapaxes(0, 1),
        8: np.rot90(picture()),
    }[turn]
    assert np.array_equal(pixels(path), upright)
    assert decode_rgb(path).turn == turn
    assert np.array_equal(decode_rgb(path, upright=False).pixels, picture())
    assert np.array_equal(turned(picture(), turn), upright)


def test_strips_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("emalab.data.images._STRIP", 21)  # three rows at a time
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "a.png"), np.rot90(picture(), -1))


# Depth


def test_depth_is_that_of_the_file(tmp_path: Path):
    gray = np.array([[0, 2000, 4000, 4095]], np.uint16)
    Image.fromarray(gray).save(tmp_path / "stated.tif", tiffinfo=tagged(t281=4095))
    assert pixels(tmp_path / "stated.tif")[0, :, 0].tolist() == [0, 125, 250, 255]
    Image.fromarray(gray).save(tmp_path / "unsaid.tif")
    refused(tmp_path / "unsaid.tif", r"16 bits, but its largest value is 4095 of 65535, nearly black; .* give bits")
    assert pixels(tmp_path / "unsaid.tif", bits=12)[0, :, 0].tolist() == [0, 125, 250, 255]
    refused(tmp_path / "unsaid.tif", "has the value 4095, which 11 bits do not hold", bits=11)


def test_12_bits_packed(tmp_path: Path):
    """PIL cannot write these: two pixels in three bytes."""
    strip = bytes([0x00, 0x07, 0xD0, 0xFA, 0x0F, 0xFF])  # 0, 2000, 4000, 4095
    tags = tagged(t256=4, t257=1, t258=12, t259=1, t262=1, t273=0, t277=1, t278=1, t279=len(strip))
    (tmp_path / "a.tif").write_bytes(b"II*\0" + (8).to_bytes(4, "little") + tags.tobytes(8) + strip)
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 125, 250, 255]


def test_black_is_not_taken_for_a_lack_of_depth(tmp_path: Path):
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "a.png")
    assert not pixels(tmp_path / "a.png").any()


def test_32_bits_are_refused(tmp_path: Path):
    Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "a.tif")
    refused(tmp_path / "a.tif", "32 bits, or below 0, have no agreed range")


def test_a_fourth_channel_of_a_tiff_is_not_opacity(tmp_path: Path):
    rgba = np.full((2, 2, 4), (200, 40, 40, 30), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif")[0, 0].tolist() == [200, 40, 40]
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, 0].tolist() == [249, 230, 230]


# What is not opened


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_a_file_of_several_pictures(tmp_path: Path, suffix: str):
    """Its first was taken without a word."""
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "lime", "navy")]
    path, what = tmp_path / f"a.{suffix}", "pages" if suffix == "tif" else "frames"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    refused(path, f"has 3 {what}; save each as an image of its own")
    with Image.open(path) as image:
        image.seek(2)
        assert np.abs(open_image(image).permute(1, 2, 0).numpy().astype(int) - [0, 0, 128]).max() < 10  # WebP is lossy


def test_an_empty_file(tmp_path: Path):
    (tmp_path / "a.png").touch()
    refused(tmp_path / "a.png", "is empty, it has 0 bytes")


def test_thumbnails_are_no_pages(tmp_path: Path):
    path = save_pages(tmp_path / "a.tif", [Image.fromarray(picture())], [Image.new("RGB", (2, 1))] * 2)
    assert np.array_equal(pixels(path), picture())


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.jpg")
    refused(tmp_path / "a.jpg", "is a device, a pipe or a socket")
    refused(Path(os.devnull), "is a device, a pipe or a socket")
    refused(tmp_path, "is a folder; name the images in it")


def test_no_program_is_started_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """PIL would hand PostScript to Ghostscript, whatever the file's ending."""
    monkeypatch.setattr("subprocess.Popen", None)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n"
    (tmp_path / "a.jpg").write_bytes(postscript)
    refused(tmp_path / "a.jpg", r"not an image in a format that is read \(AVIF, .*; is its ending true")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everything may be read here")
def test_a_file_that_may_not_be_read(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("L", (2, 2)).save(path)
    path.chmod(0)
    refused(path, r"cannot be opened \(Permission denied\)")


def test_a_small_file_with_a_huge_image(tmp_path: Path):
    """The size is read from the header: nothing of it is decoded."""
    path = tmp_path / "a.png"
    Image.new("1", (13_000, 13_000)).save(path)
    refused(path, r"has 13000×13000 = 169 megapixels; at most 100 are opened.*max_megapixels")
    Image.new("L", (20, 10)).save(path)
    refused(path, "20×10", max_pixels=199)
    assert pixels(path, max_pixels=200).shape == (10, 20, 3)


def test_the_limit_can_be_raised_above_that_of_pil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    monkeypatch.setattr("emalab.data.images._STRIP", 40)  # PIL may check what it crops; strips are below its own limit
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").shape == (10, 20, 3)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_endings_are_lower_case():
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)
