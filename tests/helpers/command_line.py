"""Commands that fail: their exit status, and the one line that they write to standard error."""

from __future__ import annotations

from pathlib import Path

import pytest

from emalab.cli import main

Capture = pytest.CaptureFixture[str]


def fails(*arguments: str | Path, code: int = 1) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == code


def message(capsys: Capture) -> str:
    """The one line that a failed command wrote to standard error."""
    error = capsys.readouterr().err
    assert error.startswith("emalab: error: ")
    assert error.count("\n") == 1
    return error.rstrip()
