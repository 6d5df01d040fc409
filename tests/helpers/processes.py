"""Other processes, as copies of this one where the system can make them: importing what trains takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from waiting import HANGS

from emalab.processes import hold_gloo_backend

# Autograd does not survive a fork after CUDA, and macOS's libraries do not survive any.
START = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


HANGS_ALONE = 120
"""Seconds after which a rank counts as hanging when another has ended: the last exchange has taken place by then."""


def run_ranks(world_size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run ``work(rank, *arguments)`` in as many processes, each with one thread; all must end well.

    Fails as soon as one ends with an error, since the others then wait for it, and names the ranks that never end.
    """
    context: Any = multiprocessing.get_context(START)
    ranks = [context.Process(target=_with_one_thread, args=(work, rank, *arguments)) for rank in range(world_size)]
    for process in ranks:
        process.start()
    try:
        _wait_for(ranks)
    finally:
        for process in ranks:
            process.kill()  # one that waits for another in vain
            process.join()


def _wait_for(ranks: Sequence[Any]) -> None:
    latest, running = time.monotonic() + HANGS, dict(enumerate(ranks))
    while running:
        sentinels = [process.sentinel for process in running.values()]
        ended = wait(sentinels, timeout=max(latest - time.monotonic(), 0))
        assert ended, f"of {len(ranks)} ranks, {sorted(running)} did not end"
        for rank in [rank for rank, process in running.items() if process.sentinel in ended]:
            process = running.pop(rank)
            process.join()
            assert process.exitcode == 0, f"rank {rank} of {len(ranks)} ended with exit status {process.exitcode}"
        latest = min(latest, time.monotonic() + HANGS_ALONE)


@contextmanager
def group_of(world_size: int, rank: int, meeting: Path) -> Iterator[None]:
    """The process group that the ranks join by a file; a rank gives up waiting for the others after `HANGS`."""
    dist.init_process_group(
        "gloo", f"file://{meeting}", rank=rank, world_size=world_size, timeout=timedelta(seconds=HANGS)
    )
    hold_gloo_backend()
    yield
    dist.destroy_process_group()


def _with_one_thread(work: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    work(*arguments)


TWO_RANKS = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
"""What stands before ``-m MODULE`` or a program's path, for `run_module` to start it twice."""


def run_module(*words: str) -> str:
    """``python -m WORDS`` in new processes of one thread each, which must end well; what they print."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


class Command:
    """A command line of emalab in a process of its own, as far as `subprocess.Popen` is needed."""

    def __init__(self, process: Any, errors: Path) -> None:
        self._process, self._errors = process, errors
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """Exit status, or None as long as the process runs; minus the number of the signal that killed it."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = HANGS) -> tuple[None, str]:
        """Wait for the end; what was written to standard error."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still running after {timeout} s"
        return None, self._errors.read_text(encoding="utf-8")


@contextmanager
def command(
    words: Sequence[str], errors: Path, prepare: Callable[[], None] | None = None, **environment: str
) -> Iterator[Command]:
    """``emalab WORDS`` with one thread, ended at the latest with the block.

    Args:
        words: the command and its arguments.
        errors: file for what it writes to standard error.
        prepare: called in the new process first.
        environment: further variables.
    """
    context: Any = multiprocessing.get_context(START)
    process = context.Process(target=_run, args=(list(words), errors, prepare, environment))
    process.start()
    try:
        yield Command(process, errors)
    finally:
        process.kill()
        process.join()


def _run(words: list[str], errors: Path, prepare: Callable[[], None] | None, environment: dict[str, str]) -> None:
    from emalab.cli import main

    os.environ.update(environment)
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where tests run in the background
    file = os.open(errors, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 2)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if prepare is not None:
        prepare()
    try:
        main(words)
    finally:
        sys.stderr.flush()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
