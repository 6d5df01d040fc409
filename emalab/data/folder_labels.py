"""What the masks of a folder mean: its `classes.yaml`, as a value, and the reading of that file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from emalab.choices import suggestion
from emalab.data.errors import DataError, MissingFileError, UnreadableFileError
from emalab.data.folder_files import find_layout
from emalab.data.images import MAX_PIXELS, Orientation, Reading
from emalab.data.spec import Color, ignored_label
from emalab.yaml_files import read_yaml

__all__ = ["CLASSES_FILE", "MAX_CLASSES", "FolderLabels", "check_folder", "existing_folder", "folder_of", "read_labels"]

CLASSES_FILE = "classes.yaml"
"""Where a folder says what its masks mean."""

MAX_CLASSES = 65534
"""All values of 16 bits but two: the label of ignored pixels, and one that marks unknown values."""

_MAX_BYTES = 1 << 21  # of classes.yaml; as many names as are possible fit


@dataclass(frozen=True)
class FolderLabels:
    """What the masks of a folder mean: `classes.yaml`, as a value.

    A mask of gray values or of indices of a palette is read by ``values``, one drawn in RGB, or with a palette of these
    colors alone, by ``colors``.

    Args:
        classes: names; the position is the label after loading.
        values: what masks store for each class, 0–65535, or several such values; empty for 0, 1, 2, …
        colors: RGB (0–255) of each class; empty for VOC's palette, which is for figures alone.
        ignore: values and colors of pixels that neither train nor count; None for the value 255, or 65535 where a class
            has a value above 255, unless that is a class.
        orientation: whether masks are drawn on the photographs as viewers show them ("upright") or on the pixels in
            their files ("stored"); None where no photograph has an EXIF orientation that makes a difference.
        bits: depth of gray photographs and of bands of more than 8 bits, where their files do not state it.
        channels: of every image: 3 for RGB, 1 for gray, or as many as the bands of its files; None for the number that
            the first file with bands has, and RGB where all are photographs.
        max_megapixels: size of the largest photograph and mask that is opened; None for 100.

    Raises:
        DataError: the fields are of another kind, out of range, repeat, or contradict each other.
    """

    classes: tuple[str, ...]
    values: tuple[int | tuple[int, ...], ...] = ()
    colors: tuple[Color, ...] = ()
    ignore: tuple[int | Color, ...] | None = None
    orientation: Orientation | None = None
    bits: int | None = None
    max_megapixels: float | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        self._check_names()
        color = "a color [red, green, blue], each in 0–255"
        value = "a whole number in 0–65535"
        self._check("values", self.values, _is_value_or_values, f"{value}, or a list of them")
        self._check("colors", self.colors, _is_color, color)
        self._check(
            "ignore", self.ignore or (), lambda e: _is_value(e) or _is_color(e), f"a value in 0–65535 or {color}"
        )
        for key, entries in (("classes", self.classes), ("values", self.stored_values), ("colors", self.colors)):
            if twice := _repeated(entries):
                raise DataError(f"{key} has {_shown(twice[0])} twice; each class needs its own")
        if clash := _repeated([*self.stored_values, *self.colors, *self.ignored]):
            raise DataError(f"{_shown(clash[0])} in ignore is {self._meaning(clash[0])}")
        if self.orientation not in (None, "upright", "stored"):
            raise DataError(f"orientation is {self.orientation!r}; it must be upright or stored")
        if self.bits is not None and not (_is_byte(self.bits) and 8 <= self.bits <= 16):
            raise DataError(f"bits is {self.bits!r}; it must be a whole number in 8–16")
        if self.channels is not None and not (type(self.channels) is int and 1 <= self.channels <= 1024):
            raise DataError(f"channels is {self.channels!r}; it must be a whole number in 1–1024")
        if self.max_megapixels is not None and not (_is_number(self.max_megapixels) and self.max_megapixels > 0):
            raise DataError(f"max_megapixels is {self.max_megapixels!r}; it must be a number above 0")

    def _check_names(self) -> None:
        if len(self.classes) < 2:
            raise DataError(
                f"classes has {len(self.classes)} names; training needs at least 2: name what surrounds the objects as "
                "well, such as background"
            )
        if len(self.classes) > MAX_CLASSES:
            raise DataError(
                f"classes has {len(self.classes)} names; at most {MAX_CLASSES} are possible, as a label has 16 bits "
                "and two of its values have another meaning. Join classes: values takes lists such as [[0, 1], 2]"
            )
        for i, name in enumerate(self.classes):
            if not isinstance(name, str) or not name:
                raise DataError(f'classes[{i}] is {name!r}, not a name; YAML reads yes, no and 1 as names in "quotes"')
            if not name.isprintable():
                raise DataError(f"classes[{i}] is {name!r}; a name must have printable characters only")

    def _check(self, key: str, entries: Sequence[Any], valid: Callable[[Any], bool], what: str) -> None:
        if entries and key != "ignore" and len(entries) != len(self.classes):
            raise DataError(f"{key} has {len(entries)} entries for {len(self.classes)} classes; give one for each")
        for i, entry in enumerate(entries):
            if not valid(entry):
                raise DataError(f"{key}[{i}] is {_shown(entry)}; it must be {what}")

    def _meaning(self, entry: int | Color) -> str:
        """What an entry of `ignore` stands for already, and the way out."""
        known: dict[Any, int] = {**self._label_of_value(), **{color: i for i, color in enumerate(self.colors)}}
        if entry not in known:
            return "there twice; one color that is ignored is written [[red, green, blue]]"
        name = f"that of a class, {_shown(self.classes[known[entry]])}"
        if self.values or not isinstance(entry, int):
            return f"{name}; take another"
        return f"{name}, as masks are taken to store 0 to {len(self.classes) - 1}; give values, or take another"

    @property
    def stored_values(self) -> tuple[int, ...]:
        """What masks store for classes, one after the other."""
        return tuple(self._label_of_value())

    @property
    def ignored(self) -> tuple[int | Color, ...]:
        """Values and colors that are ignored."""
        if self.ignore is None:
            values = self.stored_values
            last = 255 if max(values) <= 255 else 65535  # of 8 bits, or of 16
            return () if last in values else (last,)
        return self.ignore

    @property
    def ignore_index(self) -> int:
        """Label of ignored pixels after loading, whatever masks store for them."""
        return ignored_label(len(self.classes))

    @property
    def label_of_value(self) -> dict[int, int]:
        """Stored value -> label, ignored ones included."""
        ignored = {entry: self.ignore_index for entry in self.ignored if isinstance(entry, int)}
        return self._label_of_value() | ignored

    @property
    def label_of_color(self) -> dict[Color, int]:
        """Color -> label, ignored ones included."""
        ignored = {entry: self.ignore_index for entry in self.ignored if isinstance(entry, tuple)}
        return {color: label for label, color in enumerate(self.colors)} | ignored

    @property
    def reading(self) -> Reading:
        """How the folder's files become pixels."""
        pixels = MAX_PIXELS if self.max_megapixels is None else round(1e6 * self.max_megapixels)
        return Reading(self.orientation, self.bits, pixels)

    def _label_of_value(self) -> dict[int, int]:
        entries = self.values or range(len(self.classes))
        pairs = [(value, label) for label, entry in enumerate(entries) for value in _as_tuple(entry)]
        if twice := _repeated([value for value, _ in pairs]):
            raise DataError(f"values has {_shown(twice[0])} twice; each class needs its own")
        return dict(pairs)


def folder_of(root: Path | str) -> Path:
    """The folder, from its own path or that of its `classes.yaml`."""
    root = Path(root)
    return root.parent if root.suffix in (".yaml", ".yml") else root


def existing_folder(root: Path | str) -> Path:
    """`folder_of`, once it is known to be a folder; else a DataError."""
    folder = folder_of(root)
    if not folder.is_dir():
        here = "" if folder.is_absolute() else f" in {Path.cwd()}"  # recipes and records name it as it was given
        raise MissingFileError(f"{folder} is not a folder{here}. It is to hold {CLASSES_FILE}, images/ and masks/.")
    return folder


def check_folder(root: Path | str) -> None:
    """Raise the DataError of a folder without images, or whose `classes.yaml` cannot be read; no image is opened."""
    folder = existing_folder(root)
    find_layout(folder)
    file = folder / CLASSES_FILE if folder == Path(root) else Path(root)
    if file.exists():
        read_labels(file)


def read_labels(path: Path) -> FolderLabels:
    """What a `classes.yaml` says.

    Raises:
        DataError: no such file, not YAML, a key that does not exist, or an entry that `FolderLabels` refuses.
    """
    content = _read_yaml(path)
    keys = [field.name for field in fields(FolderLabels)]
    if not isinstance(content, dict) or "classes" not in content:
        raise DataError(f"{path}: has no key classes. It is to begin like this: classes: [ground, roof]")
    for key in content:
        if key not in keys:
            raise DataError(f"{path}: {key!r} is no key; {suggestion(str(key), keys)}")
    ignore = content.get("ignore")
    content["ignore"] = [ignore] if isinstance(ignore, int) else ignore
    for key in ("classes", "values", "colors", "ignore"):
        entries = content.get(key)
        if not isinstance(entries, list) and not (key != "classes" and entries is None):
            raise DataError(f"{path}: {key} is {_shown(entries)}; it must be a list in [ ]")
    try:
        return FolderLabels(
            classes=tuple(content["classes"]),
            values=tuple(map(_frozen, content.get("values") or ())),
            colors=tuple(map(_frozen, content.get("colors") or ())),
            ignore=None if content["ignore"] is None else tuple(map(_frozen, content["ignore"])),
            **{key: content[key] for key in ("orientation", "bits", "max_megapixels", "channels") if key in content},
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read_yaml(path: Path) -> Any:
    try:
        return read_yaml(path, most_bytes=_MAX_BYTES)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: no such file. It says what the masks mean; one line will do: classes: [ground, roof]. "
            f"`emalab data check {path.parent}/` proposes it from the masks, and with --write writes it."
        ) from error
    except (ValueError, OSError) as error:
        raise UnreadableFileError(str(error)) from error


def _is_byte(entry: Any) -> bool:
    return _is_value(entry) and entry <= 255


def _is_value(entry: Any) -> bool:
    return isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry <= 65535


def _is_number(entry: Any) -> bool:
    return isinstance(entry, int | float) and not isinstance(entry, bool)


def _is_value_or_values(entry: Any) -> bool:
    return _is_value(entry) or (isinstance(entry, tuple) and len(entry) > 0 and all(map(_is_value, entry)))


def _is_color(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 3 and all(map(_is_byte, entry))


def _as_tuple(entry: Any) -> tuple[Any, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def _repeated(entries: Sequence[Any]) -> list[Any]:
    seen: set[Any] = set()
    return [entry for entry in entries if entry in seen or seen.add(entry)]  # type: ignore[func-returns-value]


def _frozen(entry: Any) -> Any:
    return tuple(entry) if isinstance(entry, list) else entry


def _shown(entry: Any) -> str:
    shown = repr(list(entry) if isinstance(entry, tuple) else entry)
    return shown if len(shown) <= 80 else f"{shown[:80]}…"
