"""Ctrl-C, SIGTERM and SIGUSR1 during a run: never in the middle of a step, and in all its processes together."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupted", "Interruption"]

# Windows has no SIGUSR1.
_SIGNALS = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGUSR1")]


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop; the message says where it stands and how to go on."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


class Interruption:
    """A context in which SIGINT, SIGTERM and SIGUSR1 raise `Interrupted`; the second signal has its usual effect.

    Schedulers warn by SIGTERM or SIGUSR1 before they end a job. Only the main thread receives signals, and a handler of
    somebody else's is left alone.

    Args:
        shared: the run has several processes, which have to stop after the same step. Then a signal is only noted, in
            `received`, until they have agreed.
    """

    def __init__(self, shared: bool = False) -> None:
        self._owner, self._shared, self.received = os.getpid(), shared, 0
        self._waits = shared
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if current_thread() is main_thread():
            for number in _SIGNALS:
                usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                if signal.getsignal(number) is usual:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What is done here is done whole: a signal takes effect after it, or when all processes have agreed."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = self._shared
        if self.received and not self._shared:
            raise Interrupted(self.received)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Here no process has anything to save: a signal takes effect at once, in each for itself."""
        shared, self._shared, self._waits = self._shared, False, False
        try:
            if self.received:
                raise Interrupted(self.received)
            yield
        finally:
            self._shared = self._waits = shared

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a loader's worker, which ends with this process
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._restore()
        self.received = number
        if not self._waits:
            raise Interrupted(number)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
