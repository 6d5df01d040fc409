"""The log of a run: one JSON object a line for programs, TensorBoard for people."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from emalab.files import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["RunLog", "read_log"]


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
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            kept = [line for line in read_log(folder) if line["iteration"] <= iteration] if iteration else []
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            self._file = self.path.open("a", encoding="utf-8")
            self._board: SummaryWriter | None = SummaryWriter(str(folder / "tensorboard"), purge_step=iteration + 1)

    def write(self, iteration: int, **values: float) -> None:
        """Log ``values`` under the number of iterations done."""
        if self.enabled:
            self._file.write(json.dumps({"iteration": iteration, **values}) + "\n")
            self._file.flush()

            def draw(board: SummaryWriter) -> None:
                for name, value in values.items():
                    board.add_scalar(name.replace(" + ", "_").replace(" ", "_"), value, iteration)

            self._show(draw)

    def _show(self, draw: Callable[[SummaryWriter], object]) -> None:
        """Let ``draw`` use TensorBoard's writer, until it fails first."""
        if self._board is None:
            return
        try:
            draw(self._board)
        except Exception as error:  # of its own thread as well, which writes files when it likes
            self._board = None
            warnings.warn(f"TensorBoard gets no more of this run ({error}); log.jsonl has everything", stacklevel=2)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            self._file.close()
            self._show(lambda board: board.close())


def read_log(folder: Path) -> list[dict[str, float]]:
    """Lines of a run's log, in order; a last line that a kill cut short is left out."""
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
    return entries
