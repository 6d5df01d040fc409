"""Random folders, images, masks, YAML and archives: the result is right, or one line of a DataError; nothing else."""

import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from emalab.data import DataError, load_dataset, open_image
from emalab.data.archives import ArchiveError, unpack
from emalab.data.bands import decode_image
from emalab.data.check import check_dataset
from emalab.data.folder import read_labels
from emalab.data.images import Reading
from emalab.data.masks import UNKNOWN, lookup_table, open_mask
from emalab.data.propose import propose_labels

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of PIL on damaged tags, of zipfile on repeated names
few = settings(max_examples=60, deadline=None)
FORMATS = {"png": "PNG", "tif": "TIFF", "jpg": "JPEG", "bmp": "BMP", "webp": "WEBP", "gif": "GIF", "jp2": "JPEG2000"}
TABLE = lookup_table({label: label for label in range(16)} | {255: 255})


def is_one_line(error: DataError, *names: str) -> None:
    assert "\n" not in str(error)
    assert any(name in str(error) for name in names)


@st.composite
def encoded_images(draw: st.DrawFn) -> tuple[str, bytes]:
    """An ending and the bytes of an image in any mode, perhaps with a turn, and perhaps damaged."""
    ending = draw(st.sampled_from(sorted(FORMATS)))
    mode = draw(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]))
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    shade = draw(st.integers(0, 255))
    image = Image.new("L", size, shade).convert(mode) if mode != "I;16" else Image.new(mode, size, shade * 257)
    exif = Image.Exif()
    if turn := draw(st.integers(0, 9)):
        exif[ExifTags.Base.Orientation] = turn
    buffer = io.BytesIO()
    try:
        image.save(buffer, FORMATS[ending], **({} if ending in ("bmp", "jp2") else {"exif": exif}))
    except (OSError, ValueError, KeyError):  # a mode that the format has not
        Image.new("L", size, shade).save(buffer, FORMATS[ending])
    content = bytearray(buffer.getvalue())
    for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = draw(st.integers(0, 255))
    return ending, bytes(content[: draw(st.sampled_from([len(content), len(content), len(content) // 2, 20]))])


@few
@given(encoded_images())
def test_images(image: tuple[str, bytes]):
    ending, content = image
    with TemporaryDirectory() as folder:
        path = Path(folder, f"image.{ending}")
        path.write_bytes(content)
        try:
            pixels = open_image(path, max_pixels=10_000)
        except DataError as error:
            is_one_line(error, str(path))
        else:
            assert pixels.shape[0] == 3
            assert pixels.numel() <= 30_000


@st.composite
def encoded_bands(draw: st.DrawFn) -> tuple[str, bytes]:
    """An ending and the bytes of an array or a TIFF of any number of channels, perhaps damaged."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7)))
    values = np.full(
        shape, draw(st.integers(0, 255)), draw(st.sampled_from(["u1", "u2", ">u2", "i2", "f4", "?", "c8"]))
    )
    ending, buffer = draw(st.sampled_from(["npy", "tif"])), io.BytesIO()
    if ending == "npy":
        np.save(buffer, values)
    else:
        values = values if values.dtype.kind in "uif" else np.ones(shape, "u1")
        planes = "contig" if shape[-1] > 1 else None
        compression = draw(st.sampled_from([None, "zlib"]))
        tifffile.imwrite(buffer, values, photometric="minisblack", planarconfig=planes, compression=compression)
    content = bytearray(buffer.getvalue())
    for place in draw(st.lists(st.integers(0, min(len(content), 300) - 1), max_size=4)):
        content[place] = draw(st.integers(0, 255))
    return ending, bytes(content[: draw(st.sampled_from([len(content), len(content), len(content) // 2, 20]))])


@few
@given(encoded_bands(), st.sampled_from([None, 1, 2, 3, 5]))
def test_bands(image: tuple[str, bytes], channels: int | None):
    ending, content = image
    with TemporaryDirectory() as folder:
        path = Path(folder, f"image.{ending}")
        path.write_bytes(content)
        try:
            pixels = decode_image(path, Reading(channels=channels, max_pixels=10_000)).pixels
        except DataError as error:
            is_one_line(error, str(path))
        else:
            assert (pixels.dtype, pixels.ndim, pixels.shape[-1]) == (np.uint8, 3, channels or 3)
            assert pixels.size <= 50_000


@few
@given(encoded_images())
def test_masks(image: tuple[str, bytes]):
    ending, content = image
    with TemporaryDirectory() as folder:
        path = Path(folder, f"mask.{ending}")
        path.write_bytes(content)
        try:
            labels = open_mask(path, TABLE, max_pixels=10_000)
        except DataError as error:
            is_one_line(error, str(path))
        else:
            assert not (labels == UNKNOWN).any()


@few
@given(bits=st.sampled_from([1, 2, 4, 8]), data=st.data())
def test_every_label_that_a_png_can_store_comes_back(bits: int, data: st.DataObject):
    height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    labels = data.draw(st.lists(st.integers(0, min(2**bits, 16) - 1), min_size=height * width, max_size=height * width))
    stored = np.array(labels, np.uint8).reshape(height, width)
    places = np.unpackbits(stored[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), np.packbits(places, axis=1)], axis=1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    with TemporaryDirectory() as folder:
        path = Path(folder, "mask.png")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
        assert np.array_equal(open_mask(path, TABLE), stored)


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 300), st.floats(), st.text(max_size=4), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=8,
)
KEYS = ("classes", "values", "colors", "ignore", "orientation", "bits", "max_megapixels")
yaml_texts = st.one_of(
    st.text(max_size=60),
    st.dictionaries(st.sampled_from(KEYS), plain, max_size=5).map(
        lambda entries: "\n".join(f"{key}: {value!r}" for key, value in ({"classes": ["a", "b"]} | entries).items())
    ),
)


@settings(max_examples=150, deadline=None)
@given(yaml_texts)
def test_yaml(text: str):
    with TemporaryDirectory() as folder:
        path = Path(folder, "classes.yaml")
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            labels = read_labels(path)
        except DataError as error:
            is_one_line(error, str(path))
        else:
            assert len(labels.classes) >= 2
            assert set(labels.label_of_value.values()) <= {*range(len(labels.classes)), 255}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_folders(data: st.DataObject):
    """A folder in any layout is read as its masks were written, or refused."""
    split = data.draw(st.sampled_from(["", "train", "all/deep"]))
    ending = data.draw(st.sampled_from(["", "_mask", "-label", "_other"]))
    values = data.draw(st.sampled_from([(0, 1), (0, 255), (0, 1, 2, 255), (3, 9), (0,)]))
    stems = data.draw(st.lists(st.sampled_from(["a", "b c", "ä", "x.y", "c"]), min_size=1, max_size=4, unique=True))
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for stem in stems:
            stored = np.array(values, np.uint8)[None].repeat(2, axis=0)
            Image.fromarray(stored).save(root / "images" / split / f"{stem}.PNG")
            if data.draw(st.booleans()) or len(stems) > 1:
                Image.fromarray(stored).save(root / "masks" / split / f"{stem}{ending}.png")
        try:
            proposal = propose_labels(root)
            proposal.write()
            report = check_dataset(f"{root}/", None)
            assert report.ok or all("\n" not in problem.message for problem in report.problems)
            for name in report.counts:
                for sample in load_dataset(f"{root}/", name):
                    assert sample.mask[0].tolist() == [proposal.labels.label_of_value[value] for value in values]
        except DataError as error:
            is_one_line(error, str(root))


@pytest.mark.parametrize("kind", ["a.tar", "a.tgz", "a.zip"])
@few
@given(data=st.data())
def test_archives(kind: str, data: st.DataObject):
    """Nothing leaves the folder, and what is refused leaves nothing in it."""
    names = st.lists(st.sampled_from(["a", "b", "..", ".", "c" * 300, "\\x", "C:", "é"]), min_size=1, max_size=4)
    members = data.draw(st.lists(names.map("/".join), min_size=1, max_size=4))
    kinds = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
    with TemporaryDirectory() as folder:
        root, path = Path(folder, "root"), Path(folder, kind)
        root.mkdir()
        if kind == "a.zip":
            with zipfile.ZipFile(path, "w") as archive:
                for member in members:
                    archive.writestr(zipfile.ZipInfo(member), b"content")
        else:
            with tarfile.open(path, "w:gz" if kind == "a.tgz" else "w") as tar:
                for member in members:
                    info = tarfile.TarInfo(member)
                    info.type = data.draw(st.sampled_from(kinds))
                    info.linkname, info.size = "../outside", 7 if info.isfile() else 0
                    tar.addfile(info, io.BytesIO(b"content"))
        content = bytearray(path.read_bytes())
        for place in data.draw(st.lists(st.integers(0, min(len(content), 600) - 1), max_size=2)):
            content[place] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            unpack(path, root, max_bytes=10_000)
        except ArchiveError as error:
            is_one_line(error, str(path), kind)
            assert list(root.iterdir()) == []
        assert sorted(entry.name for entry in Path(folder).iterdir()) == [kind, "root"]
        assert all(entry.resolve().is_relative_to(root.resolve()) for entry in root.rglob("*"))
