"""Label files as people have them: every number of bits, gray in RGB, 16 bits, colors, turned."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from tiny_data import save_pages

from emalab.data.errors import UnknownLabelError, UnreadableFileError
from emalab.data.masks import lookup_table, open_mask, read_stored

FEW = lookup_table({0: 0, 1: 1, 2: 2, 3: 3, 255: 255})


def save_png(path: Path, values: np.ndarray, bits: int, kind: int = 0) -> Path:
    """A PNG that PIL reads but does not write: gray of 1, 2 or 4 bits, or several channels of 16, side by side."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[0], values.shape[1] // {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    if bits == 16:
        packed = values.astype(">u2").view(np.uint8)
    else:
        packed = np.packbits(np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1), axis=1)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), packed], axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks))
    return path


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_keep_their_labels(tmp_path: Path, bits: int):
    values = np.arange(2**bits, dtype=np.uint8)[None].repeat(3, axis=0)
    path = save_png(tmp_path / "a.png", values, bits)
    assert np.array_equal(open_mask(path, lookup_table({i: i for i in range(16)})), values)
    assert read_stored(path).depth == bits


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_read_as_gray_where_the_folder_says_so(tmp_path: Path, bits: int):
    values = np.array([[0, 2**bits - 1]], np.uint8)
    path = save_png(tmp_path / "a.png", values, bits)
    assert open_mask(path, lookup_table({0: 0, 255: 1})).tolist() == [[0, 1]]


@pytest.mark.parametrize("mode", ["L", "1", "I;16", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_gray_however_it_is_stored(tmp_path: Path, mode: str, suffix: str):
    values = np.array([[0, 1], [1, 0]], np.uint8)
    if mode == "1":
        image = Image.fromarray(values.astype(bool))
    else:
        image = Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else Image.fromarray(values).convert(mode)
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    assert open_mask(path, FEW).tolist() == values.tolist()


def test_16_bits_beyond_255(tmp_path: Path):
    Image.fromarray(np.array([[0, 258, 300]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UnknownLabelError, match=r"a\.png: label values outside .*: 258 \(1 px\), 300 \(1 px\);"):
        open_mask(tmp_path / "a.png", FEW)


def test_16_bits_of_many_classes(tmp_path: Path):
    """The labels are int32, which every operator of torch takes, and 65535 is ignored."""
    labels = np.array([[0, 254, 255], [256, 999, 65535]], np.uint16)
    table = lookup_table({label: label for label in (*range(1000), 65535)}, ignore_index=65535)
    for name in ("a.png", "a.tif"):
        Image.fromarray(labels).save(tmp_path / name)
        mask = open_mask(tmp_path / name, table)
        assert mask.dtype == torch.int32
        assert np.array_equal(mask, labels)
    Image.fromarray(np.array([[7, 1000, 65534]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UnknownLabelError, match=r"1000 \(1 px\), 65534 \(1 px\); expected 0–999, 65535\."):
        open_mask(tmp_path / "a.png", table)


def test_16_bits_of_few_classes(tmp_path: Path):
    """Large values in the file, small labels in memory."""
    Image.fromarray(np.array([[1000, 2000, 65535, 3000]], np.uint16)).save(tmp_path / "a.png")
    mask = open_mask(tmp_path / "a.png", lookup_table({1000: 0, 3000: 0, 2000: 1, 65535: 255}))
    assert (mask.dtype, mask.tolist()) == (torch.uint8, [[0, 1, 255, 0]])
    with pytest.raises(UnknownLabelError, match=r"1000 \(1 px\), .*; expected 0, 3000, 65535\."):
        open_mask(tmp_path / "a.png", lookup_table({0: 0, 3000: 0, 65535: 255}))


def test_32_bits(tmp_path: Path):
    Image.fromarray(np.array([[0, 3, 255]], np.int32)).save(tmp_path / "a.tif")
    assert open_mask(tmp_path / "a.tif", FEW).tolist() == [[0, 3, 255]]
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableFileError, match=r"a\.tif: has labels from 0 to 70000; they must be in 0–65535"):
        open_mask(tmp_path / "a.tif", FEW)


def test_16_bits_in_several_channels(tmp_path: Path):
    """PIL keeps the upper byte of each: label 300 would be read as 1."""
    values = np.full((3, 4), 300, np.uint16)
    for channels, kind in ((2, 4), (3, 2), (4, 6)):
        path = save_png(tmp_path / "a.png", values.repeat(channels, axis=1), 16, kind)
        with pytest.raises(
            UnknownLabelError, match="in several channels of 16 bits, of which 8 can be read; save them as"
        ):
            open_mask(path, FEW)
        with pytest.raises(UnknownLabelError, match="in several channels of 16 bits"):
            open_mask(path, lookup_table({300: 0, 1: 1, 65535: 65535}, ignore_index=65535))


@pytest.mark.parametrize("mode", ["F", "CMYK", "LAB"])
def test_kinds_that_hold_no_labels(tmp_path: Path, mode: str):
    Image.new(mode, (4, 3)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableFileError, match=r"a\.tif: labels are stored as \w+, expected one channel"):
        open_mask(tmp_path / "a.tif", FEW)


def test_colors_without_a_meaning(tmp_path: Path):
    Image.new("RGB", (4, 3), (1, 2, 3)).save(tmp_path / "a.png")
    with pytest.raises(UnknownLabelError, match=r"a\.png: labels are stored as RGB colors, and no colors are known"):
        open_mask(tmp_path / "a.png", FEW)


def test_a_mask_of_several_pages(tmp_path: Path):
    """Its first page was taken without a word."""
    page = Image.fromarray(np.zeros((4, 6), np.uint8))
    path = save_pages(tmp_path / "a.tif", [page, page])
    with pytest.raises(UnreadableFileError, match="has 2 pages; save each as an image of its own"):
        open_mask(path, lookup_table({0: 0}))
    assert open_mask(save_pages(path, [page], [page]), lookup_table({0: 0})).shape == (4, 6)


def test_loss_is_refused(tmp_path: Path):
    Image.new("L", (8, 8)).save(tmp_path / "a.tif", compression="jpeg")
    Image.new("L", (8, 8)).save(tmp_path / "b.png", format="JPEG")
    for name in ("a.tif", "b.png"):
        with pytest.raises(UnreadableFileError, match=rf"{name}: labels are compressed with loss"):
            open_mask(tmp_path / name, FEW)


def test_inverted_gray_is_ambiguous(tmp_path: Path):
    buffer = io.BytesIO()
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[262] = 0
    Image.new("L", (3, 3)).save(buffer, format="TIFF", tiffinfo=directory)
    content = bytearray(buffer.getvalue())
    entry = content.index(struct.pack("<HHI", 262, 3, 1))
    content[entry + 8] = 0  # PIL writes 1 whatever it is asked for
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"a\.tif: its gray is stored inverted"):
        open_mask(tmp_path / "a.tif", FEW)


def test_colors_strip_by_strip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("emalab.data.masks._STRIP", 5)
    colors = {(200, 0, 0): 0, (0, 7, 255): 1, (9, 9, 9): 255}
    wide = {(i, i % 7, 3): i for i in range(256)} | {(1, 1, 1): 700}
    labels = np.random.default_rng(0).integers(0, 3, (6, 7))
    Image.fromarray(np.array(list(colors), np.uint8)[labels]).save(tmp_path / "a.png")
    expected = np.array([0, 1, 255])[labels]
    assert np.array_equal(open_mask(tmp_path / "a.png", FEW, colors), expected)
    Image.fromarray(np.array([[(255, 3, 3), (1, 1, 1)]], np.uint8)).save(tmp_path / "a.png")
    assert open_mask(tmp_path / "a.png", lookup_table({}, ignore_index=65535), wide).tolist() == [[255, 700]]
