"""Waiting for another process: as long as it takes, since how long says nothing about whether the code is right."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import pytest

HANGS = 900
"""Seconds after which a process counts as hanging, on the slowest machine; no outcome of a test depends on less."""


class Process(Protocol):
    """What `subprocess.Popen` has, too."""

    @property
    def returncode(self) -> Any: ...
    def poll(self) -> int | None: ...
    def communicate(self) -> tuple[Any, Any]: ...


def wait_until(condition: Callable[[], bool], process: Process | None) -> None:
    """Return once the condition holds; fail where the process that is to bring it about has ended without it."""
    latest = time.monotonic() + HANGS
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            _, error = process.communicate()
            pytest.fail(f"the process ended with exit status {process.returncode}: {error!r}")
        if time.monotonic() > latest:
            pytest.fail(f"waited {HANGS} s in vain")
        time.sleep(0.01)
