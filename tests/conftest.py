"""Fixtures for the whole test suite."""

import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

ARCHIVES = Path(__file__).resolve().parents[2] / "shared" / "data"

# Which examples Hypothesis draws is no matter of luck; `pytest --hypothesis-profile=default` looks for further ones.
settings.register_profile("same examples every time", derandomize=True, deadline=None)
settings.load_profile("same examples every time")


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


@pytest.fixture
def compare(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """``compare(what, ours, theirs, bound=1e-10)`` asserts, and leaves the difference for the table below."""

    def check(what: str, ours: Any, theirs: Any, bound: float = 1e-10) -> None:
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape, what
        difference = float(np.abs(ours - theirs).max())
        record_property("difference", (what, difference, bound))
        assert difference <= bound, what

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End a run that compared with recorded arrays by a table: ``pytest tests -k parity`` for all of it."""
    rows: dict[str, tuple[float, float]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == "difference":
                    what, difference, bound = value
                    rows[what] = (max(difference, rows.get(what, (0.0, bound))[0]), bound)
    if rows:
        terminalreporter.section("largest absolute differences from recorded arrays")
        terminalreporter.write_line(f"{'':<62} found  allowed")
        for what, (difference, bound) in sorted(rows.items()):
            terminalreporter.write_line(f"{what:<62} {difference:.0e}    {bound:.0e}")
