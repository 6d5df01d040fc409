"""The folder of a run: its files, and the one process that may write them."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emalab.files import remove_leftovers

__all__ = ["RunBusyError", "RunFolder"]

_HELD: set[Path] = set()  # by this process: to open a file that it has locked, and to close it, would free the lock


class RunBusyError(OSError):
    """Another process trains in this folder; the message says which."""


class RunFolder:
    """Where one run keeps ``last.pt``, ``best.pt``, ``record.json``, ``log.jsonl`` and ``tensorboard/``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last, self.best, self.record = (path / name for name in ("last.pt", "best.pt", "record.json"))
        self._lock = path / "run.lock"

    def refuse_another_run(self, resume: bool) -> None:
        """`FileExistsError` where results lie that a run which starts now would mix with its own."""
        if self.last.exists() and not resume:
            raise FileExistsError(
                f"{self.path} holds a run already; go on with it (--resume), or choose another folder for this one"
            )
        if not self.last.exists() and self.record.exists():
            raise FileExistsError(
                f"{self.path} holds the record of a run whose last.pt is gone; choose another folder for this one, or "
                "remove record.json and best.pt"
            )

    def refuse_if_held(self) -> None:
        """`RunBusyError` at once, where another process trains here."""
        if self._lock.exists():
            with self.hold():
                pass

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep every other process out, and remove the temporary files of those that were killed.

        The kernel holds the lock, so that it ends with this process, however that ends.

        Raises:
            RunBusyError: another process holds it.
            OSError: the folder cannot be written.
        """
        path = self._lock.resolve()
        if path in _HELD:
            raise RunBusyError(f"{self.path} is in use by another run of this process")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self._take()
        except RunBusyError:
            raise
        except OSError as error:
            raise OSError(
                f"{self.path} cannot be written ({error.strerror or error}); choose another folder with --out"
            ) from error
        _HELD.add(path)
        try:
            for name in (self.last, self.best, self.record, self.path / "log.jsonl"):
                remove_leftovers(name)
            yield
        finally:
            _HELD.discard(path)
            self._lock.unlink(missing_ok=True)
            os.close(file)

    def _take(self) -> int:
        """Lock the file, which its former holder may just be removing."""
        while True:
            file = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(file)
            except OSError as error:
                os.close(file)
                if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                    raise RunBusyError(self._holder()) from None
                raise
            if self._lock.exists() and os.path.samestat(os.fstat(file), self._lock.stat()):
                os.truncate(file, 0)
                os.write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
                return file
            os.close(file)

    def _holder(self) -> str:
        try:
            holder = json.loads(self._lock.read_text(encoding="utf-8"))
            who = f"process {holder['pid']} on {holder['host']}"
        except (OSError, ValueError, TypeError, KeyError):
            who = "another process"
        return f"{self.path} is in use by {who}; wait for it or end it, or choose another folder with --out"


def _lock(file: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(file, 2**20, os.SEEK_SET)  # beyond the content, which others may read
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: forked loaders do not hold it
