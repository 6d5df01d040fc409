"""Execute the chapters and render the book into ``_build/html``: what ``make book`` runs.

All pages are rendered, whatever fails; a failed cell or a warning makes the exit status 1.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import chapters
from chapters import BUILD, ROOT, Chapter

WORKERS = min(
    os.cpu_count() or 1, 8
)  # kernels at a time; each computes with one thread
INDEX = BUILD / "html" / "index.html"
# Written after a build without a warning, of what it was made: all around the pages, and the pages.
CLEAN = BUILD / "clean"


class Progress:
    """Prints a line for each chapter as it ends, with an estimate of the time left for the others.

    A chapter weighs the seconds that it took the last time. One that never ran weighs as many seconds a cell as the
    others took.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        seconds = {path: chapters.seconds_before(path) for path in paths}
        cells = {path: len(chapters.read(path).cells) for path in paths}
        known = [path for path in paths if seconds[path] is not None]
        total = sum(seconds[path] or 0.0 for path in known)
        a_cell = total / sum(cells[path] for path in known) if known else 1.0
        self.weights = {path: seconds[path] or cells[path] * a_cell for path in paths}
        self.left = set(paths)
        self.executed = 0.0  # weight of the chapters that were executed
        self.start = time.monotonic()

    def __call__(self, chapter: Chapter) -> None:
        self.left.remove(chapter.path)
        if not chapter.reused:
            self.executed += self.weights[chapter.path]
        done, count = len(self.weights) - len(self.left), len(self.weights)
        took = "unchanged" if chapter.reused else f"{chapter.seconds:.0f} s"
        parts = [f"[{done:2}/{count}] {chapter.path.stem:<20} {took:>9}"]
        parts += ["FAILED"] if chapter.failures else []
        parts += [self.time_left()] if self.left and self.executed else []
        print("  ".join(parts), flush=True)

    def time_left(self) -> str:
        left = sum(self.weights[path] for path in self.left)
        seconds = (time.monotonic() - self.start) * left / self.executed
        return (
            f"about {seconds:.0f} s left"
            if seconds < 90
            else f"about {seconds / 60:.0f} min left"
        )


def execute(paths: Sequence[Path]) -> list[Chapter]:
    """Execute the chapters that need it, the longest first."""
    progress = Progress(paths)
    longest_first = sorted(paths, key=lambda path: -progress.weights[path])
    return chapters.execute_all(longest_first, WORKERS, progress)


def render(*, everything: bool) -> int:
    """Render the pages with their outputs; the exit status, 1 after a warning.

    Unless everything is parsed again, a page that has not changed since the last build keeps its warnings to itself.
    """
    shutil.rmtree(INDEX.parent, ignore_errors=True)
    program = "from jupyter_book.cli.main import main; main()"
    arguments = ["build", str(ROOT), "-W", "--keep-going", "-q"]
    arguments += ["--all"] if everything else []
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    return done.returncode if INDEX.exists() else 1


def report(executed: Sequence[Chapter]) -> None:
    """Print one line for each failed cell."""
    failed = [
        (chapter, failure) for chapter in executed for failure in chapter.failures
    ]
    if failed:
        print("\nFailed cells, with their tracebacks on the pages:")
    for chapter, failure in failed:
        name = chapter.path.relative_to(ROOT)
        print(f"  {name}, cell {failure.cell} ({failure.id}): {failure.line[:200]}")


def made_of() -> list[str]:
    """Digests of all around the pages, and of the pages."""
    around = chapters.surroundings() + chapters.digest_of(
        "_*.yml", "book/*.bib", "book/*/**/*"
    )
    for variable in ("BOOK_REPOSITORY", "BOOK_REF"):
        around += f"/{quote(os.environ.get(variable, ''), safe='')}"
    return [around, chapters.digest_of("book/*.ipynb", "book/*.md")]


def main() -> int:
    """Build the book; the exit status is 1 if a cell failed or a page gave a warning."""
    argparse.ArgumentParser(description=__doc__).parse_args()  # takes none
    last = CLEAN.read_text(encoding="utf-8").split() if CLEAN.exists() else ["", ""]
    current = made_of()
    if current == last and INDEX.exists():
        print(f"Nothing has changed. The book: {INDEX}")
        return 0
    CLEAN.unlink(missing_ok=True)
    os.environ.setdefault(
        "PYDEVD_DISABLE_FILE_VALIDATION", "1"
    )  # else debuggers warn of kernels that nobody debugs
    executed = execute(sorted((ROOT / "book").glob("*.ipynb")))
    print("Rendering the pages.", flush=True)
    # No page had a warning if the last build had none; only what was edited since is parsed again.
    warned = render(everything=current[0] != last[0])
    report(executed)
    if warned:
        print("\nRendering gave warnings: see above.")
    if INDEX.exists():
        print(f"\nThe book: {INDEX}")
    failed = any(chapter.failures for chapter in executed)
    if not warned and not failed:
        CLEAN.write_text(" ".join(current), encoding="utf-8")
    return 1 if warned or failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(
            "\nInterrupted. The next build goes on from the chapters that were finished."
        )
