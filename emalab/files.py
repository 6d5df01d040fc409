"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["CannotWriteError", "refusal", "remove_leftovers", "write_atomically"]


class CannotWriteError(OSError):
    """A file could not be written: a full disk, a limit, a folder that is read-only. What was there before is whole."""

    def __init__(self, path: Path, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        super().__init__(getattr(error, "errno", None), reason, str(path))
        self.path, self.reason = path, reason
        self.way_out = ""

    def __str__(self) -> str:
        kept = "; the file from before is whole" if self.path.exists() else ""
        return f"{self.path} could not be written: {self.reason}{self.way_out or kept}"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary neighbor of ``path``, then rename it: readers see the old file or the new one.

    Raises:
        CannotWriteError: the system refuses; ``path`` is what it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)  # as the umask has it; safetensors would leave 0600
        write(temporary)
        with temporary.open("r+b") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except FileExistsError as error:
        raise CannotWriteError(path, NotADirectoryError(errno.ENOTDIR, f"{path.parent} is a file")) from error
    except OSError as error:
        raise CannotWriteError(path, error) from error
    except RuntimeError as error:  # how torch reports a full disk
        raise CannotWriteError(path, refusal(temporary) or error) from error
    finally:
        with suppress(OSError):  # a folder that has become read-only
            temporary.unlink(missing_ok=True)


def refusal(file: Path) -> OSError | None:
    """Why the system lets nobody write on in a file, if that is so."""
    try:
        with file.open("ab") as stream:
            stream.write(bytes(2**20))
    except OSError as error:
        return error
    return None


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote ``path``, which nobody writes now."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
