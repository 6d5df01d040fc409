"""A `classes.yaml` for a folder that has none, from what its masks hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from emalab.data.conversion import run_all
from emalab.data.errors import DataError, MissingFileError
from emalab.data.folder_files import find_layout, find_split, labeled_splits, why_unlabeled
from emalab.data.folder_labels import CLASSES_FILE, MAX_CLASSES, FolderLabels
from emalab.data.masks import StoredMask, read_stored
from emalab.data.spec import Color
from emalab.files import write_atomically

__all__ = ["Proposal", "propose_labels"]

_MANY = 40  # more gray values than this are rather soft edges than classes
_DENSE = 0.25  # part of 0, 1, … up to the largest that occurs where values of 16 bits are classes, some of them rare
_IN_LINE = 24  # classes that a proposal names in one line
_SHOWN = 12  # values that a proposal lists with their share
Stored = int | Color


@dataclass(frozen=True)
class Proposal:
    """What the masks of a folder hold, and what it probably means.

    Args:
        file: where `classes.yaml` belongs.
        labels: the proposal, with names to be replaced.
        shares: value or color -> part of all pixels, 0–1.
        num_masks: how many masks were read.
    """

    file: Path
    labels: FolderLabels
    shares: dict[Stored, float]
    num_masks: int

    @property
    def text(self) -> str:
        """The file, ready to edit."""
        labels = self.labels
        lines = [
            f"# Proposed from {self.num_masks} masks: give the classes their names, and correct the rest.",
            f"# The masks hold {self.in_words()}.",
            *self._absent_line(),
            *self._class_lines(),
        ]
        if labels.values:
            lines.append(f"values: {_flow(list(labels.values))}")
        if labels.colors:
            lines.append(f"colors: {_flow([list(color) for color in labels.colors])}")
        if labels.ignored:
            lines.append(f"ignore: {_flow(list(labels.ignored))}")
        return "\n".join(lines) + "\n"

    def _absent_line(self) -> list[str]:
        """What is assumed of values that do not occur, as a comment."""
        labels = self.labels
        absent = [] if labels.values or labels.colors else set(labels.stored_values) - set(self.shares)
        if not absent:
            return []
        last = len(labels.classes) - 1
        return [f"# {len(absent)} of the values 0 to {last} occur in no mask; they are assumed to be rare classes."]

    def _class_lines(self) -> list[str]:
        """The names in one line, or, where they are many, in a line each with what masks store for it."""
        labels = self.labels
        if len(labels.classes) <= _IN_LINE:
            return [f"classes: {_flow(list(labels.classes))}"]
        entries: Sequence[object] = labels.values or [list(color) for color in labels.colors] or range(MAX_CLASSES)
        return ["classes:", *(f"- {name}  # {entry}" for name, entry in zip(labels.classes, entries, strict=False))]

    def in_words(self) -> str:
        """Such as "0 (71.3 % of pixels), 255 (28.7 %)"."""
        shown = [f"{_shown(key)} ({100 * share:.3g} %)" for key, share in list(self.shares.items())[:_SHOWN]]
        more = f" and {len(self.shares) - _SHOWN} more" if len(self.shares) > _SHOWN else ""
        return ", ".join(shown) + more

    def write(self) -> None:
        """Write the file; `DataError` where there is one already."""
        if self.file.exists():
            raise DataError(f"{self.file} is there already; remove it to have it proposed anew")
        write_atomically(self.file, lambda temporary: temporary.write_text(self.text, encoding="utf-8"))


def propose_labels(folder: Path, *, num_threads: int | None = None, progress: bool = False) -> Proposal:
    """Read every mask of ``folder`` and propose what its values or colors mean.

    255 is taken for ignored where the other values are 0, 1, 2, …, and for a class where they are not, as in masks of
    0 and 255. So is 65535 in masks of 16 bits with values above 255, where classes may be missing in between.

    Raises:
        DataError: there are no masks, a mask cannot be read, or they hold too many values to be labels.
    """
    paths = _mask_files(folder)
    counts: Counter[Stored] = Counter()
    kinds: set[int] = set()
    for ndim, found in run_all(_count, paths, "reading masks", num_threads, progress):
        counts.update(found)
        kinds.add(ndim)
        if len(kinds) > 1:
            raise DataError(f"{folder / 'masks'}: some masks are gray and others in colors; bring them into one form.")
        if ndim == 3 and len(counts) > 256:
            raise DataError(
                f"{folder / 'masks'}: the masks hold more than 256 colors, more like soft edges than classes. JPEG, "
                "scaling and soft brushes make these: save masks as PNG, unscaled. If they are classes, write "
                f"{CLASSES_FILE} yourself: classes and colors."
            )
    total = sum(counts.values())
    shares = {key: counts[key] / total for key in sorted(counts, key=lambda k: k if isinstance(k, tuple) else (k,))}
    return Proposal(folder / CLASSES_FILE, _meaning(list(shares), folder), shares, len(paths))


def _mask_files(folder: Path) -> list[Path]:
    layout = find_layout(folder)
    splits = labeled_splits(folder, layout)
    if not splits:
        raise MissingFileError(
            f"{folder / 'masks'} has no masks of the images, so nothing can be proposed." + why_unlabeled(folder)
        )
    return [path for split in splits for path in find_split(folder, layout, split, True).masks.values()]


def _count(path: Path) -> tuple[int, Counter[Stored]]:
    """Axes of the mask, and pixels of each value or color in it; gray that is stored as RGB counts as gray."""
    stored = _as_gray(read_stored(path))
    if stored.values.ndim == 2:
        values, counts = np.unique(stored.values, return_counts=True)
        return 2, Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    flat = stored.values.reshape(-1, 3).astype(np.int32)
    codes, counts = np.unique(flat @ np.array([1 << 16, 1 << 8, 1], np.int32), return_counts=True)
    colors = [(code >> 16, code >> 8 & 255, code & 255) for code in codes[:300].tolist()]
    return 3, Counter(dict(zip(colors, counts[:300].tolist(), strict=True)))


def _as_gray(stored: StoredMask) -> StoredMask:
    values = stored.values
    if values.ndim == 3 and (values == values[..., :1]).all():
        return stored._replace(values=values[..., 0])
    return stored


def _meaning(found: list[Stored], folder: Path) -> FolderLabels:
    """The classes that values or colors stand for."""
    if isinstance(found[0], tuple):
        colors = [entry for entry in found if isinstance(entry, tuple)]
        _check_number(len(colors), folder)
        return FolderLabels(tuple(_names(len(colors), dark=sum(colors[0]) == 0)), colors=tuple(colors))
    values = [entry for entry in found if isinstance(entry, int)]
    last, ignore = 255 if values[-1] <= 255 else 65535, None
    if last in values and len(values) > 2 and (_is_plain(values[:-1]) or last > 255):
        values, ignore = values[:-1], (last,)
    if len(values) > _MANY and last > 255 and len(values) >= _DENSE * values[-1]:
        values = list(range(values[-1] + 1))
    _check_number(len(values), folder)
    if len(values) > _MANY and not (_is_plain(values) and (len(values) <= 254 or last > 255)):
        raise DataError(
            f"{folder / 'masks'}: the masks hold {len(values)} values between {values[0]} and {values[-1]}, more like "
            f"soft edges than classes. If they are classes, write {CLASSES_FILE} yourself: classes and values."
        )
    if ignore is None and last not in values:
        ignore = (last,)
    names = tuple(_names(len(values), values[0] == 0))
    return FolderLabels(names, () if _is_plain(values) else tuple(values), ignore=ignore)


def _is_plain(values: list[int]) -> bool:
    return values == list(range(len(values)))


def _check_number(count: int, folder: Path) -> None:
    if not 2 <= count <= MAX_CLASSES:
        held = "a single value" if count == 1 else f"{count} values"
        raise DataError(f"{folder / 'masks'}: the masks hold {held}; there must be 2 to {MAX_CLASSES} classes.")


def _names(count: int, dark: bool) -> list[str]:
    if count == 2 and dark:
        return ["background", "object"]
    return ["background" if i == 0 and dark else f"class {i}" for i in range(count)]


def _flow(value: Sequence[object]) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True).strip()


def _shown(entry: Stored) -> str:
    return str(list(entry) if isinstance(entry, tuple) else entry)
