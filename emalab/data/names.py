"""Names of data sets: what a mistyped one is met with at once, before anything that reads images is imported."""

from __future__ import annotations

from pathlib import Path

from emalab.choices import suggestion
from emalab.data.errors import DataError

__all__ = ["BENCHMARKS", "SCENES", "check_name", "is_folder_name"]

SCENES = ("shapes-pooled", "shapes-far")
"""Generated scenes; `emalab.data.scene_settings` says what can be set of them."""

BENCHMARKS = (
    *("camvid", "voc", "voc-animals", "context-59", "context-60"),
    *("coco-stuff-10k", "coco-stuff-164k", "coco-voc", "cityscapes", "cityscapes-256"),
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
    raise DataError(f"there is no data set {name!r}; {folder}{suggestion(name, BENCHMARKS)}")


def is_folder_name(name: str) -> bool:
    """Whether ``name`` is the path of a folder, or of its `classes.yaml`, rather than the name of a benchmark."""
    return "/" in name or "\\" in name or Path(name).suffix in (".yaml", ".yml")
