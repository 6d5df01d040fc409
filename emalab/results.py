"""Result records: one JSON file per run, with everything needed to trust its numbers and to run it again."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emalab.files import write_atomically
from emalab.recipes import Recipe, recipe_to_dict
from emalab.version import __version__

if TYPE_CHECKING:  # records are read without torch
    import torch

    from emalab.metrics import SegmentationScores

__all__ = [
    "checksum",
    "environment",
    "find_origin",
    "git_commit",
    "load_records",
    "make_record",
    "read_record",
    "write_record",
]

_PACKAGES = ("torch", "torchvision", "timm")


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
    """Where a result came from: device, versions, date, time of day in UTC, and the command that was given.

    Versions are those of the running sources: a package that is found through PYTHONPATH has no metadata.
    """
    import torch

    now = datetime.now(UTC)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "python": platform.python_version(),
        "versions": {"emalab": __version__, **{package: _version(package) for package in _PACKAGES}},
        "date": now.strftime("%Y-%m-%d"),
        "time": now.strftime("%H:%M:%SZ"),
        **_command(),
    }


def find_origin(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Commit of the source (looked up when not given) and `environment`: what a run asks for before it starts."""
    return {"commit": commit or git_commit(), **environment(device)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return getattr(import_module(package), "__version__", None)


def _command() -> dict[str, Any]:
    """The running program and its arguments; "emalab" for the command line, a script by its path in the checkout.

    Of an absolute path only the last part is kept: records are published, folders of a machine are not.
    """
    if not sys.argv or not sys.argv[0]:
        return {"program": "python", "arguments": []}
    arguments = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parents[1]
    if script == root / "emalab" / "__main__.py" or script.stem == "emalab":
        return {"program": "emalab", "arguments": arguments}
    program = script.relative_to(root).as_posix() if script.is_relative_to(root) else script.name
    return {"program": program, "arguments": arguments}


def checksum(record: Mapping[str, Any]) -> str:
    """``sha256:`` and the digest of a record's content, without its own entry ``checksum``.

    The digest is taken over JSON with sorted keys and without spaces. It does not depend on how a file is indented, and
    shows whether a value was changed after the record was written. It is no signature: anybody can compute it.
    """
    content = {key: value for key, value in record.items() if key != "checksum"}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


def make_record(
    recipe: Recipe,
    scores: Mapping[str, SegmentationScores],
    *,
    origin: Mapping[str, Any],
    **extra: Any,
) -> dict[str, Any]:
    """A result record.

    Args:
        recipe: what was run, seed included.
        scores: by evaluation protocol, e.g. ``"single scale"``.
        origin: what `find_origin` gave before the run; nothing is looked up here, where it could fail.
        extra: anything else that JSON can hold: seconds, images per second, curves.
    """
    return {
        "recipe": recipe_to_dict(recipe),
        "seed": recipe.seed,
        "scores": {protocol: result.to_dict() for protocol, result in scores.items()},
        **origin,
        **extra,
    }


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, atomically, and in it the `checksum` of its content."""
    content = json.loads(json.dumps(record))  # as a reader will see it: tuples as lists, keys as strings
    content["checksum"] = checksum(content)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if not _encodable(text):  # a path or an argument with bytes that are no UTF-8
        text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_record(path: Path) -> dict[str, Any]:
    """One record. Records from before checksums existed lack the entry ``checksum``, and are read as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a JSON object, or its content does not have the checksum that it names; the message names
            the file.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON and of its encoding
        raise ValueError(f"{path} is not a result record: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is not a result record: it holds a {type(record).__name__}, not an object")
    if "checksum" in record and record["checksum"] != checksum(record):
        raise ValueError(f"{path} was changed after it was written: its content does not have the checksum it names")
    return record


def load_records(folder: Path, pattern: str = "*.json") -> list[dict[str, Any]]:
    """Every record of a folder, sorted by file name; errors of a single file as in `read_record`.

    Raises:
        FileNotFoundError: nothing there matches ``pattern``.
    """
    records = [read_record(path) for path in sorted(folder.glob(pattern))]
    if not records:
        raise FileNotFoundError(f"no result record matches {folder / pattern}")
    return records
