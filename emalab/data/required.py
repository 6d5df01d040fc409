"""Data that is not there is refused before torch is imported."""

from __future__ import annotations

from pathlib import Path

from emalab.data.lists import require_root
from emalab.data.names import FOLDERS, check_name, is_folder_name

__all__ = ["check_data", "check_spec"]


def check_spec(name: str) -> None:
    """`check_name`, and refuse a folder without images or with a `classes.yaml` that cannot be read."""
    check_name(name)
    if is_folder_name(name):
        from emalab.data.folder_labels import check_folder

        check_folder(name)


def check_data(name: str, root: Path | None) -> None:
    """`check_spec`, and refuse a benchmark that is read from files where there is no data root."""
    check_spec(name)
    if name in FOLDERS:
        require_root(root, name)
