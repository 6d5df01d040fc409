"""Progress for people: a bar in a terminal or a notebook, and whole lines where a file or a pipe takes the output."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import asyncio, std
from tqdm.auto import tqdm

__all__ = ["progress_bar"]

_SHORTEST, _LONGEST = 5.0, 60.0  # seconds between two lines
_LINE = "{desc}: {n_fmt}/{total_fmt} {unit}, {rate_fmt}{postfix}, {elapsed} so far, {remaining} left"
_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit}, {rate_fmt}{postfix}, {elapsed} so far"


class _Lines(std.tqdm):
    """What tqdm knows, as lines without carriage returns, each written at once.

    The first line comes after 5 s. The next one comes when the work has reached another tenth, but not within 5 s, or
    after 60 s. Work of 5 s or more ends with a line, unless it has ``leave=False``.
    """

    leave: bool

    def __init__(self, *args: Any, **options: Any) -> None:
        # Every step asks `display` for a line; the speed is the mean from the start.
        super().__init__(*args, **{**options, "mininterval": 0, "miniters": 1, "maxinterval": 0, "smoothing": 0})

    def close(self) -> None:
        """Write the last line."""
        if not self.disable:
            self.leave = self.leave and self._time() - self.start_t >= _SHORTEST
        super().close()

    def clear(self, nolock: bool = False) -> None:
        """Nothing: lines stay."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line if one is due; whether there is something for tqdm to erase, which there never is."""
        if self.disable:  # closing: tqdm ends this line itself
            if self.leave:
                self._write(end="")
        elif self._is_due() and not (self.leave and self.n == self.total):
            self._write(end="\n")
        return False

    def _is_due(self) -> bool:
        written, n = self._latest or (self.start_t, None)
        another_tenth = n is None or (self.total and self.n * 10 // self.total > n * 10 // self.total)
        return bool(self._time() - written >= (_SHORTEST if another_tenth else _LONGEST))

    def _write(self, end: str) -> None:
        self._latest = (self._time(), self.n)
        line = self.format_meter(**{**self.format_dict, "bar_format": _LINE if self.total else _WITHOUT_TOTAL})
        print(line, end=end, file=self.fp, flush=True)

    start_t = float("inf")  # tqdm displays once before it knows the time
    _latest: tuple[float, int] | None = None  # line: when it was written, and at which step


def progress_bar(*args: Any, **options: Any) -> tqdm[Any]:
    """`tqdm` with these arguments, in the form that suits what standard error is connected to.

    In a notebook it is the notebook's bar, in a terminal a bar that is drawn again and again. Elsewhere, as under
    nohup, SLURM or a CI, it is a new line after each tenth of the work and at least every 60 s.
    """
    in_notebook = tqdm is not asyncio.tqdm
    kind: Any = tqdm if in_notebook or sys.stderr.isatty() else _Lines
    bar: tqdm[Any] = kind(*args, **options)
    return bar
