"""Progress in a terminal, and in a file or a pipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import short_train, tiny_recipe
from tqdm import std

from emalab import progress
from emalab.cli import main
from emalab.progress import progress_bar

Capture = pytest.CaptureFixture[str]


class Clock:
    """Stands in for the module time: every look takes as long as it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(std, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def walk(clock: Clock, steps: int, seconds: float, **options: Any) -> None:
    """So many steps of so many seconds each."""
    for _ in progress_bar(range(steps), "training", unit="it", **options):
        clock.now += seconds


class TestLines:
    def test_of_quick_work_come_with_each_tenth(self, clock: Clock, capsys: Capture) -> None:
        walk(clock, 100, 1.0)
        lines = capsys.readouterr().err.splitlines()
        assert [line.split()[1] for line in lines] == [f"{n}/100" for n in (5, *range(10, 101, 10))]
        assert lines[1] == "training: 10/100 it,  1.00it/s, 00:10 so far, 01:30 left"

    def test_of_slow_work_come_every_minute(self, clock: Clock, capsys: Capture) -> None:
        walk(clock, 1000, 10.0)
        counts = [int(re.findall(r" (\d+)/1000", line)[0]) for line in capsys.readouterr().err.splitlines()]
        assert counts[:4] == [1, 7, 13, 19]
        assert np.diff(counts).max() == 6
        assert {100, 200, 900, 1000} <= set(counts)

    def test_hold_no_carriage_return_and_are_written_at_once(self, clock: Clock, capsys: Capture) -> None:
        for step in progress_bar(range(3), "reading", unit="img"):
            clock.now += 6
            error = capsys.readouterr().err
            assert error.endswith("left\n") if step else error == ""
            assert "\r" not in error

    def test_end_without_an_empty_one(self, clock: Clock, capsys: Capture) -> None:
        walk(clock, 4, 1.0)  # too short to be worth a line
        walk(clock, 4, 2.0, leave=False)
        walk(clock, 4, 1.0, disable=True)
        assert capsys.readouterr().err == "training: 3/4 it,  2.00s/it, 00:06 so far, 00:02 left\n"

    def test_without_a_total_and_with_news(self, clock: Clock, capsys: Capture) -> None:
        with progress_bar(desc="unpacking", unit="file") as bar:
            clock.now += 10
            bar.set_postfix({"loss": "0.5"})
            bar.update()
        assert capsys.readouterr().err.splitlines()[-1] == "unpacking: 1 file, 10.00s/file, loss=0.5, 00:10 so far"


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert not isinstance(progress_bar(range(3), disable=True), progress._Lines)


class TestCommands:
    """Each with a line at every look, however fast this machine is."""

    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(progress, "_SHORTEST", 0.0)
        monkeypatch.setattr(progress, "_LONGEST", 0.0)

    def test_train(self, tmp_path: Path, capsys: Capture) -> None:
        short_train(tiny_recipe(), tmp_path / "run", progress=True)
        error = capsys.readouterr().err
        assert "\r" not in error
        last = r"[\w-]+: 8/8 it, +\S+, loss=[\d.]+, lr=\S+, img/s=\d+, \S+ so far, 00:00 left"
        assert any(re.fullmatch(last, line) for line in error.splitlines())
        assert re.search(r"^evaluating: \d+/\d+ img, ", error, re.MULTILINE)

    def test_predict(self, tmp_path: Path, capsys: Capture) -> None:
        for name in "ab":
            Image.new("RGB", (40, 30), "gray").save(tmp_path / f"{name}.png")
        main(["predict", str(tmp_path), "--out", str(tmp_path), "--device", "cpu"])
        out, error = capsys.readouterr()
        assert out.count(" → ") == 2
        assert re.search(r"^predicting: 2/2 file, ", error, re.MULTILINE)
        assert "\r" not in error
