"""Fixtures for the whole test suite."""

import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ARCHIVES = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data_root() -> Callable[[str], Path]:
    """`real_data_root("camvid-480x360")` is a data root with that archive unpacked; skips where there is none.

    The folder is named after the archive's checksum and kept between runs.
    """

    @cache
    def unpack(archive: str) -> Path:
        path = ARCHIVES / f"{archive}.tar.gz"
        if not path.is_file():
            pytest.skip(f"real data: no {path.name} in {ARCHIVES}")
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        root = Path(tempfile.gettempdir()) / "emalab-test-data" / checksum[:16]
        if not root.is_dir():
            root.parent.mkdir(exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=root.parent))
            with tarfile.open(path) as tar:
                tar.extractall(partial, filter="data")
            try:
                partial.rename(root)
            except OSError:  # another process was first
                shutil.rmtree(partial)
        return root

    return unpack
