"""Result records: one JSON file per run, with everything needed to trust its numbers and to run it again."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emalab.files import write_atomically
from emalab.recipes import Recipe, recipe_to_dict

if TYPE_CHECKING:  # records are read without torch
    import torch

    from emalab.metrics import SegmentationScores

__all__ = ["environment", "git_commit", "load_records", "make_record", "write_record"]


def git_commit() -> str | None:
    """Commit of the source that is running, with "+" when the tree was edited; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # a repository around .venv is not that of the source
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """Where a result came from: device, versions, date."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    packages = ("emalab", "torch", "torchvision", "timm")
    return {
        "device": name,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def make_record(
    recipe: Recipe,
    scores: Mapping[str, SegmentationScores],
    *,
    device: torch.device,
    commit: str | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """A result record.

    Args:
        recipe: what was run, seed included.
        scores: by evaluation protocol, e.g. ``"single scale"``.
        device: where it ran.
        commit: of the source; looked up when not given.
        extra: anything else that JSON can hold: seconds, images per second, curves.
    """
    return {
        "recipe": recipe_to_dict(recipe),
        "seed": recipe.seed,
        "scores": {protocol: result.to_dict() for protocol, result in scores.items()},
        "commit": commit or git_commit(),
        **environment(device),
        **extra,
    }


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, atomically."""
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def load_records(folder: Path, pattern: str = "*.json") -> list[dict[str, Any]]:
    """Every record of a folder, sorted by file name.

    Raises:
        FileNotFoundError: nothing there matches ``pattern``.
        ValueError: a file that is not JSON; the message names it.
    """
    records = []
    for path in sorted(folder.glob(pattern)):
        try:
            records.append(json.loads(path.read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not a result record: {error}") from error
    if not records:
        raise FileNotFoundError(f"no result record matches {folder / pattern}")
    return records
