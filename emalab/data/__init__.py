"""Benchmarks, and folders of one's own: what they are (`get_spec`) and their samples (`load_dataset`).

Everything is imported when it is first asked for: names and errors must not wait for what reads images.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emalab.data.catalog import DATASETS, DatasetEntry, dataset_names, get_spec, load_dataset, load_images
    from emalab.data.dataset import LabeledImages, Sample, SegmentationDataset
    from emalab.data.errors import DataError
    from emalab.data.images import open_image
    from emalab.data.spec import DatasetSpec

__all__ = [
    "DATASETS",
    "DataError",
    "DatasetEntry",
    "DatasetSpec",
    "LabeledImages",
    "Sample",
    "SegmentationDataset",
    "dataset_names",
    "get_spec",
    "load_dataset",
    "load_images",
    "open_image",
]

_MODULES = {
    "catalog": ("DATASETS", "DatasetEntry", "dataset_names", "get_spec", "load_dataset", "load_images"),
    "dataset": ("LabeledImages", "Sample", "SegmentationDataset"),
    "errors": ("DataError",),
    "images": ("open_image",),
    "spec": ("DatasetSpec",),
}


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'emalab.data' has no attribute {name!r}")
    return getattr(import_module(f"emalab.data.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
