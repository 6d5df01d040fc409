"""The files of the repository."""

import subprocess
from pathlib import Path

import pytest


def tracked_files(root: Path) -> list[str]:
    """Names of the files that git tracks; skips the test where there is no git, or no repository."""
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, encoding="utf-8", check=True)
    except FileNotFoundError:
        pytest.skip("there is no git on PATH: no list of tracked files")
    except subprocess.CalledProcessError:
        pytest.skip("not a git checkout: no list of tracked files")
    return listing.stdout.rstrip("\0").split("\0")
