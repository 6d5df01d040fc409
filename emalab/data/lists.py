"""The text files that list the images of a split, and the folders that hold the images."""

from collections import Counter
from pathlib import Path

from emalab.data.errors import DataError, MissingFileError
from emalab.data.names import FOLDERS


def require_root(root: Path | None, name: str) -> Path:
    """The data root, once it is known to be a folder.

    Args:
        root: the folder that contains the unpacked releases.
        name: the data set that is wanted.

    Raises:
        DataError: there is no root, or no such folder.
    """
    advice = f"Set --data-root (or EMALAB_DATA) to the folder that contains {FOLDERS[name]}."
    if root is None:
        raise MissingFileError(f"{name} is read from files, and no data root was given. {advice}")
    if not root.is_dir():
        raise MissingFileError(f"{name}: the data root {root} is not a folder. {advice}")
    return root


def read_names(root: Path, *candidates: str, advice: str | None = None) -> list[str]:
    """Names (file stems) in the first of the lists that exists under `root`, one a line, in order.

    Some releases list names, others "image-file label-file" with paths of the authors' machine: the stem of the
    first field is the name in both.

    Args:
        root: the data root.
        candidates: places of the list under `root`.
        advice: what to do when the list is in none of them, where that is more than unpacking the release.

    Raises:
        DataError: none of the files exists, or the list is empty or has a name twice.
    """
    path = next((root / candidate for candidate in candidates if (root / candidate).is_file()), None)
    if path is None:
        raise MissingFileError(
            f"{root} has no {' or '.join(candidates)}, the list of this split's images. The data root must be the "
            f"folder that contains {candidates[0].partition('/')[0]}/ (--data-root or EMALAB_DATA). "
            + (advice or "The release must hold this split.")
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a list of names in UTF-8 ({error}). Unpack the data set again.") from error
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path}: lists no images. Unpack the data set again.")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: lists {name} {count} times. Every image of a split must be listed once.")
    return names


def files_by_name(folder: Path, *suffixes: str) -> dict[str, Path]:
    """Stem -> file for the files in `folder` with one of the `suffixes` (".png"); empty without such a folder."""
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in folder.iterdir() if path.suffix.lower() in suffixes}
