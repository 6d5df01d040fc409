"""Names of data sets: what a mistyped one is met with at once, before anything that reads images is imported."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from emalab.data.errors import DataError

__all__ = ["BENCHMARKS", "SCENES", "check_name", "is_folder_name", "offer"]

SCENES = ("shapes-pooled", "shapes-far")
"""Generated scenes; `emalab.data.scene_settings` says what can be set of them."""

BENCHMARKS = (
    *("camvid", "voc", "voc-animals", "context-59", "context-60"),
    *("coco-stuff-10k", "coco-stuff-164k", "coco-voc", "cityscapes"),
    *SCENES,
)
"""Every name that `emalab.data.load_dataset` knows, in the order of lists."""


def check_name(name: str) -> None:
    """Refuse, with a `DataError` that offers the nearest one, what is neither a benchmark nor the path of a folder."""
    if is_folder_name(name) or name in BENCHMARKS:
        return
    if (kind := name.partition(":")[0]) in SCENES:
        raise DataError(f"there is no data set {name!r}; say {kind}, and set its scenes: --data.scenes.grain 12")
    folder = f"for the folder say {name}/. " if Path(name).is_dir() else ""
    raise DataError(f"there is no data set {name!r}; {folder}{offer(name, BENCHMARKS)}")


def is_folder_name(name: str) -> bool:
    """Whether ``name`` is the path of a folder, or of its `classes.yaml`, rather than the name of a benchmark."""
    return "/" in name or "\\" in name or Path(name).suffix in (".yaml", ".yml")


def offer(name: str, known: Iterable[str]) -> str:
    """What there is, the nearest to ``name`` first."""
    known = list(known)
    nearest = get_close_matches(name, known, n=1, cutoff=0.4)
    return (f"did you mean {nearest[0]!r}? " if nearest else "") + f"There are: {', '.join(known)}."
