"""A disk of a few megabytes that is really full. Only root may mount one; elsewhere the tests are skipped."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FILLER = "filler"


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """``folder`` as a file system of its own, of so many megabytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=60)
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)


def fill(disk: Path, free: int) -> None:
    """Leave so many bytes, in whole pages, and nothing more."""
    status = os.statvfs(disk)
    (disk / FILLER).write_bytes(bytes(max(status.f_bavail * status.f_frsize - free, 0)))


def make_room(disk: Path) -> None:
    """Take the filler away."""
    (disk / FILLER).unlink()


def files(disk: Path) -> set[str]:
    """What else is there."""
    return {str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file()} - {FILLER}
