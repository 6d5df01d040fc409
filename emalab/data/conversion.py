"""From the label maps of a release to PNG files that the loaders read: made once, each whole or not at all.

A conversion that is stopped goes on where it was when it is run again, because files that exist are not made again.
The lists of the splits are written last, so a data set whose lists are there is complete.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from emalab.data.errors import (
    DataError,
    MissingFileError,
    SizeMismatchError,
    UnknownLabelError,
    UnreadableFileError,
)
from emalab.data.loader import num_cores
from emalab.data.masks import UNKNOWN
from emalab.data.spec import Color
from emalab.files import write_atomically
from emalab.progress import progress_bar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_OTHER: Color = (224, 224, 192)  # of what has no color in the palette: VOC's color of ignored pixels
_SHOWN = 10  # failures that the error of a whole conversion lists


def read_mat(path: Path, key: str, *others: str) -> dict[str, Any]:
    """Variables of a MATLAB file (versions 4 to 7.2): arrays without axes of length 1, structs as objects.

    Args:
        path: the file.
        key: a variable that must be there.
        others: further variables, read where they are there.

    Raises:
        DataError: the file is missing or damaged, or does not hold `key`.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise MissingFileError(f"{path}: no such file. Unpack the release again.")
    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False, variable_names=[key, *others])
    except NotImplementedError as error:
        raise UnreadableFileError(
            f"{path}: a file of MATLAB 7.3, which is HDF5; releases have version 5. Save it with -v7, or unpack the "
            "release again."
        ) from error
    except Exception as error:  # scipy's reader raises nearly anything on damaged bytes
        reason = str(error) or type(error).__name__
        raise UnreadableFileError(f"{path}: not a readable .mat file ({reason}); it may be cut short.") from error
    if key not in content:
        raise UnreadableFileError(f"{path}: holds no {key!r}. Is it a file of another data set or release?")
    return content


def translate(source: Path | str, stored: Any, table: np.ndarray) -> np.ndarray:
    """Label values `stored` (h, w) looked up in `table` (n,), as uint8 (h, w).

    MATLAB's numbers may come as floating point; they must still be whole.

    Args:
        source: where the values come from, for the errors.
        stored: values as in the release.
        table: value -> value in the PNG file, or `emalab.data.masks.UNKNOWN` where there is no such label.

    Raises:
        DataError: `stored` is not a matrix of whole numbers, or a value is outside the table.
    """
    stored = np.asarray(stored)
    if stored.ndim != 2 or stored.dtype.kind not in "uif":
        raise UnreadableFileError(
            f"{source}: labels are {stored.dtype} of shape {stored.shape}, expected a matrix of whole numbers."
        )
    with np.errstate(invalid="ignore"):
        broken = np.argwhere(~(np.mod(stored, 1) == 0))  # NaN and infinity, too
    if broken.size:
        row, column = broken[0]
        raise UnreadableFileError(
            f"{source}: the label at row {row}, column {column} is {stored[row, column]} ({len(broken)} such in all), "
            "expected whole numbers."
        )
    outside = (stored < 0) | (stored >= len(table))
    index = np.where(outside, 0, stored).astype(np.int64)
    labels = np.where(outside, UNKNOWN, table[index]).astype(np.uint8)
    if (unknown := np.unique(stored[labels == UNKNOWN])).size:
        shown = ", ".join(f"{value:.15g}" for value in unknown[:_SHOWN])
        raise UnknownLabelError(
            f"{source}: label values outside the label set: {shown}. "
            "Is this the label map of another data set or release?"
        )
    return labels


def value_table(labels: Mapping[int, int], size: int) -> np.ndarray:
    """A table (size,) uint8 for `translate`; values not in `labels` become `UNKNOWN`."""
    table = np.full(size, UNKNOWN, dtype=np.uint8)
    table[list(labels)] = list(labels.values())
    return table


def make_label_files(
    folder: Path,
    names: Sequence[str],
    make: Callable[[str], np.ndarray],
    *,
    images: Path,
    palette: Sequence[Color],
    num_threads: int | None = None,
    progress: bool = False,
) -> int:
    """Write `folder/NAME.png` with the labels `make(NAME)` for every name that has no such file yet.

    A file takes a few milliseconds, so threads do; processes would spend longer on importing torch.

    Args:
        folder: where the PNG files go; made where it does not exist.
        names: of the images.
        make: name -> uint8 labels (h, w); a `DataError` from it is kept for the end.
        images: folder of the images `NAME.jpg`; labels of another size than the image are an error.
        palette: colors of the labels 0, 1, … for those who look at the files.
        num_threads: files made at a time; by default one for each processor.
        progress: show a progress bar.

    Returns:
        How many files were made.

    Raises:
        DataError: some could not be made. All others are there by then, so what is left is to put right the files
            that the message names and to run it again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.stem for path in folder.glob("*.png")}
    missing = [name for name in dict.fromkeys(names) if name not in there]
    # All 256 colors: with fewer, Pillow packs pixels into as many bits as they need, and 255 becomes another label.
    colors = bytes(chain.from_iterable(palette)) + bytes(_OTHER) * (256 - len(palette))

    def convert(name: str) -> DataError | None:
        try:
            labels = make(name)
            _check_size(folder / f"{name}.png", labels, images / f"{name}.jpg")
        except DataError as error:
            return error
        picture = Image.fromarray(labels)
        picture.putpalette(colors)
        write_atomically(folder / f"{name}.png", lambda temporary: picture.save(temporary, format="PNG"))
        return None

    errors = run_all(convert, missing, f"writing {folder.name}", num_threads, progress)
    failed = [error for error in errors if error is not None]
    if len(failed) == 1:
        raise failed[0]
    if failed:
        shown = "\n".join(f"  {error}" for error in failed[:_SHOWN])
        more = f"\n  … and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
        raise DataError(f"{len(failed)} of {len(names)} label maps could not be converted:\n{shown}{more}")
    return len(missing)


def run_all(
    work: Callable[[_Item], _Result], items: Sequence[_Item], title: str, num_threads: int | None, progress: bool
) -> list[_Result]:
    """`work` on every item, in threads; the results in order. Stops at once when interrupted."""
    pool = ThreadPoolExecutor(num_threads or num_cores())
    try:
        results = pool.map(work, items)
        return list(progress_bar(results, total=len(items), desc=title, unit="file", disable=not progress))
    finally:
        pool.shutdown(cancel_futures=True)


def write_names(path: Path, names: Iterable[str]) -> None:
    """A list of images, one name a line, sorted; the file appears whole."""
    text = "".join(f"{name}\n" for name in sorted(names))
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _check_size(target: Path, labels: np.ndarray, image: Path) -> None:
    """Only the header of the image is read; whether it is there and whole, `emalab data check` tells."""
    if not image.is_file():
        return
    try:
        with Image.open(image) as opened:
            width, height = opened.size
    except OSError:
        return
    if labels.shape != (height, width):
        raise SizeMismatchError(
            f"{target.stem}: the release's labels are {labels.shape[1]}×{labels.shape[0]} but the image {image} is "
            f"{width}×{height} (width × height). Take both from the same release."
        )
