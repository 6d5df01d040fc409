"""Execute chapters, and keep what they gave: what ``make book`` renders and ``make test`` checks.

Executed notebooks lie in ``_build/executed``. One serves again while its code, and everything else its outputs depend
on, is unchanged; its prose may change. A chapter with a failed cell is kept too, to be shown, and executed again the
next time. All cells of a chapter are executed, whatever failed before them.
"""

import asyncio
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "_build"
EXECUTED = BUILD / "executed"
NOTE = "emalab"  # our part of an executed notebook's metadata
SECONDS_A_CELL = 600  # when a cell counts as hanging; a full recipe may take hours

# All that a chapter computes with, apart from itself and the installed packages.
SOURCES = (
    "emalab/**/*",
    "book/lab/**/*",
    "book/results/**/*",
    "book/experiments/*.py",
    "book/site/interactive/*",
    "tests/reference/*",
)
# Variables that change what a chapter computes, beside those that begin with EMALAB_.
VARIABLES = (
    "OMP_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
)

# Every kernel warns about this once; nothing here leaves the machine.
UNENCRYPTED = "Kernel is running over TCP without encryption"

_COLORS = re.compile(r"\x1b\[[\d;]*m")
_RAISED = re.compile(r"^-+> *\d+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Failure:
    """A cell that ended in an error: its position in the notebook, its id, and the error on one line."""

    cell: int
    id: str
    line: str
    traceback: str


@dataclass(frozen=True)
class Chapter:
    """A notebook after its execution, which took that many seconds; `reused` if that was an earlier one."""

    path: Path
    notebook: NotebookNode
    seconds: float
    reused: bool

    @property
    def failures(self) -> list[Failure]:
        return failures_of(self.notebook)


def is_full() -> bool:
    """Whether the chapters train the full recipes, which take turns on the GPU."""
    return os.environ.get("EMALAB_FULL") == "1"


def environment() -> dict[str, str]:
    """The variables of a kernel: one thread, as kernels share the cores, unless the caller chose a number."""
    threads = {} if is_full() else {"OMP_NUM_THREADS": "1"}
    return threads | os.environ


def digest_of(*patterns: str) -> str:
    """Digest of names and contents of the files below the root that match."""
    digest = hashlib.sha256()
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    for path in sorted(p for p in found if p.is_file()):
        if not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts):
            name = path.relative_to(ROOT).as_posix()
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def surroundings() -> str:
    """Digest of all that the outputs of chapters depend on, apart from their own code."""
    digest = hashlib.sha256((sys.version + digest_of(*SOURCES)).encode())
    packages = {f"{package.name}=={package.version}" for package in distributions()}
    digest.update("\n".join(sorted(packages)).encode())
    for name, value in sorted(environment().items()):
        if name.startswith("EMALAB_") or name in VARIABLES:
            digest.update(f"\n{name}={value}".encode())
    return digest.hexdigest()


def key_of(notebook: NotebookNode) -> str:
    """Digest of a chapter's code and surroundings: its outputs belong to it."""
    digest = hashlib.sha256(surroundings().encode())
    for cell in code_cells(notebook):
        digest.update(f"\0{cell.source}\0{cell.metadata.get('tags', [])}".encode())
    return digest.hexdigest()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def failures_of(notebook: NotebookNode) -> list[Failure]:
    """The cells whose outputs hold an error that their tags do not announce."""
    found = []
    for number, cell in enumerate(notebook.cells, 1):
        if "raises-exception" in cell.metadata.get("tags", []):
            continue
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                text = _COLORS.sub("", "\n".join(output.traceback))
                found.append(Failure(number, cell.id, _line(output, text), text))
    return found


def _line(output: NotebookNode, traceback: str) -> str:
    """Name and text of an error; where it has no text, as a plain assertion, the line of code that raised it."""
    text = output.evalue
    if not text and (marked := _RAISED.findall(traceback)):
        text = marked[-1]
    return " ".join(f"{output.ename}: {text}".removesuffix(": ").split())


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def kept(path: Path) -> Chapter | None:
    """The chapter as it was executed last, if its code and surroundings are still the same; it may have failed."""
    file = EXECUTED / path.name
    if not file.exists():
        return None
    notebook = read(file)
    note = notebook.metadata.get(NOTE, {})
    if note.get("key") != key_of(read(path)):
        return None
    return Chapter(path, notebook, note["seconds"], reused=True)


def seconds_before(path: Path) -> float | None:
    """How long the chapter took the last time, whatever has changed since."""
    file = EXECUTED / path.name
    return read(file).metadata.get(NOTE, {}).get("seconds") if file.exists() else None


def keep(path: Path, notebook: NotebookNode, key: str, seconds: float) -> Chapter:
    """Write the executed notebook, whole or not at all: another process may read it."""
    notebook.metadata[NOTE] = {"key": key, "seconds": round(seconds, 2)}
    EXECUTED.mkdir(parents=True, exist_ok=True)
    partial = EXECUTED / f"{path.name}.{os.getpid()}"
    nbformat.write(notebook, partial)
    partial.replace(EXECUTED / path.name)
    return Chapter(path, notebook, seconds, reused=False)


def break_off(cell: NotebookNode, error: Exception, log: Path) -> None:
    """Record on the cell that its kernel did not come back, and the end of what the kernel's process printed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line for line in lines if UNENCRYPTED not in line]
    cell.outputs.append(
        nbformat.v4.new_output(
            "error",
            ename=type(error).__name__,
            evalue=str(error).strip().splitlines()[0],
            traceback=[*str(error).splitlines(), *lines[-40:]],
        )
    )


async def _execute(path: Path) -> Chapter:
    notebook = read(path)
    key, start = key_of(notebook), time.monotonic()
    task = asyncio.current_task()
    assert task is not None
    started: list[NotebookNode] = []
    client = NotebookClient(
        notebook,
        kernel_name=NATIVE_KERNEL_NAME,
        timeout=None if is_full() else SECONDS_A_CELL,
        allow_errors=True,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=lambda cell, cell_index: started.append(cell),
    )
    EXECUTED.mkdir(parents=True, exist_ok=True)
    log = EXECUTED / f"{path.stem}.log"
    with log.open("w", encoding="utf-8") as said:  # what the kernel's process prints
        try:
            await client.async_execute(env=environment(), stderr=said, stdout=said)
        except (CellTimeoutError, DeadKernelError) as error:
            if task.cancelling():  # nbclient takes it for the death of the kernel
                raise asyncio.CancelledError from error
            break_off(started[-1], error, log)
    return keep(path, notebook, key, time.monotonic() - start)


def execute(path: Path) -> Chapter:
    """The executed chapter: kept from before if it succeeded and nothing has changed, otherwise executed now."""
    chapter = kept(path)
    if chapter is None or chapter.failures:
        chapter = asyncio.run(_execute(path))
    return chapter


async def _execute_all(
    paths: Iterable[Path], workers: int, done: Callable[[Chapter], None]
) -> list[Chapter]:
    turns = asyncio.Semaphore(workers)

    async def one(path: Path) -> Chapter:
        chapter = kept(path)
        if chapter is None or chapter.failures:
            async with turns:
                chapter = await _execute(path)
        done(chapter)
        return chapter

    async with (
        asyncio.TaskGroup() as group
    ):  # waits for the end of all kernels, also when it is canceled
        tasks = [group.create_task(one(path)) for path in paths]
    return [task.result() for task in tasks]


def execute_all(
    paths: Iterable[Path], workers: int, done: Callable[[Chapter], None]
) -> list[Chapter]:
    """Execute the chapters in that many kernels at a time, and call `done` with each as it ends."""
    return _in_a_thread(_execute_all(paths, 1 if is_full() else workers, done))


def _in_a_thread(main: Coroutine[Any, Any, list[Chapter]]) -> list[Chapter]:
    """Run in another thread; what interrupts this one ends the kernels and is raised again.

    In the main thread, every client of nbclient would take the signals and end no kernel but its own.
    """
    tasks: list[asyncio.Task[Any] | None] = []

    async def noted() -> list[Chapter]:
        tasks.append(asyncio.current_task())
        return await main

    with asyncio.Runner() as runner, ThreadPoolExecutor(1) as thread:
        loop = runner.get_loop()
        running = thread.submit(runner.run, noted())
        try:
            while not running.done():
                wait([running], timeout=1)  # Windows takes Ctrl-C only between two
        except BaseException:
            # nbclient asks canceled kernels whether they live
            loop.set_exception_handler(lambda loop, context: None)
            for task in filter(None, tasks):
                loop.call_soon_threadsafe(task.cancel)
            wait([running])
            raise
        return running.result()
