"""Ctrl-C and SIGTERM during a run: never in the middle of a step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupted", "Interruption"]


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop; the message says where it stands and how to go on."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


class Interruption:
    """A context in which SIGINT and SIGTERM raise `Interrupted`; the second signal has its usual effect.

    Only the main thread receives signals, and a handler of somebody else's is left alone.
    """

    def __init__(self) -> None:
        self._owner, self._waits, self._received = os.getpid(), False, 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if current_thread() is main_thread():
            for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) is usual:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What is done here is done whole: a signal takes effect after it."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        if self._received:
            raise Interrupted(self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a loader's worker, which ends with this process
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._restore()
        self._received = number
        if not self._waits:
            raise Interrupted(number)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
