"""The log of a run: one JSON object a line for programs, TensorBoard for people."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from emalab.files import CannotWriteError, write_atomically

if TYPE_CHECKING:  # to read a log needs no torch
    from lightning_fabric import Fabric
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["RunLog", "Window", "read_log"]


class RunLog:
    """Appends to ``log.jsonl`` and ``tensorboard/`` in ``folder``; a context manager.

    TensorBoard is for looking at: when it fails, a warning says so, and the run goes on without it.

    Args:
        folder: of the run.
        iteration: where the run stands; later lines, left by a run that was killed, are dropped.
        enabled: False on all ranks but one.
    """

    def __init__(self, folder: Path, iteration: int, *, enabled: bool = True) -> None:
        self.path = folder / "log.jsonl"
        self.enabled = enabled
        if enabled:
            kept = [line for line in read_log(folder) if line["iteration"] <= iteration] if iteration else []
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            self._file = self.path.open("a", encoding="utf-8")
            self._board: SummaryWriter | None = None
            self._excepthook = threading.excepthook
            threading.excepthook = self._of_a_thread
            try:
                self._board = _open_board(folder / "tensorboard", iteration)
            except Exception as error:  # of the disk, or of an installation
                self._lose(error)

    def write(self, iteration: int, **values: float) -> None:
        """Log ``values`` under the number of iterations done."""
        if self.enabled:
            try:
                self._file.write(json.dumps({"iteration": iteration, **values}) + "\n")
                self._file.flush()
            except OSError as error:
                raise CannotWriteError(self.path, error) from error
        self.draw(iteration, **values)

    def draw(self, iteration: int, **values: float) -> None:
        """Points of curves for TensorBoard alone; one that is NaN, as is the IoU of an absent class, is left out."""

        def draw(board: SummaryWriter) -> None:
            for name, value in values.items():
                if not math.isnan(value):
                    board.add_scalar(name.replace(" + ", "_").replace(" ", "_"), value, iteration)

        if self.enabled:
            self._show(draw)

    def _show(self, draw: Callable[[SummaryWriter], object]) -> None:
        """Let ``draw`` use TensorBoard's writer, until it fails first."""
        if self._board is None:
            return
        try:
            draw(self._board)
        except Exception as error:  # of its own thread as well, which writes files when it likes
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._board = None
        warnings.warn(f"TensorBoard gets no more of this run ({error}); log.jsonl has everything", stacklevel=3)

    def _of_a_thread(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread keeps its error for the next call of the writer, which reports it; no traceback."""
        if not type(args.thread).__module__.startswith("tensorboard."):
            self._excepthook(args)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            with suppress(OSError):  # a failed write has raised its error already
                self._file.close()
            self._show(lambda board: board.close())
            threading.excepthook = self._excepthook


def _open_board(folder: Path, iteration: int) -> SummaryWriter:
    # With this module TensorBoard does without TensorFlow, which takes seconds and gigabytes where it is installed.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    return SummaryWriter(str(folder), purge_step=iteration + 1, flush_secs=10)


class Window:
    """Mean loss and speed since the last look, without waiting for the device in between."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forget the losses, and measure from now on."""
        self.losses: list[Tensor] = []
        self.since = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        """Count the mean loss of a step, which may still be being computed."""
        self.losses.append(loss)

    def close(self, fabric: Fabric, stops: bool = False) -> tuple[float, float, bool]:
        """Mean loss over all ranks, images per second, and whether a rank stops; starts the next window.

        All ranks get the same values, so that they stop together.
        """
        import torch

        mean = torch.stack(self.losses).mean()
        shared: Any = fabric.all_reduce(torch.stack([mean, torch.full_like(mean, stops)]), reduce_op="mean")
        loss, stop = shared.tolist()
        return loss, self._speed(), stop > 0

    def rest(self) -> tuple[float, float] | None:
        """Mean loss on this rank and images per second since the last look, or None without a step."""
        losses = [loss.item() for loss in self.losses]
        return (sum(losses) / len(losses), self._speed()) if losses else None

    def _speed(self) -> float:
        speed = len(self.losses) * self.batch_size / (time.perf_counter() - self.since)
        self.restart()
        return speed


def read_log(folder: Path) -> list[dict[str, float]]:
    """Lines of a run's log, in order; a last line that a kill cut short is left out.

    Raises:
        ValueError: another line is none that a run writes; the message names it.
    """
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not (isinstance(entry, dict) and isinstance(entry.get("iteration"), int)):
                raise ValueError("no 'iteration' in it")
            entries.append(entry)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is damaged ({error}); remove that line") from error
    return entries
