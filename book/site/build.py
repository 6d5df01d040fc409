"""Execute the chapters and render the book into ``_build/html``: what ``make book`` runs."""

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "_build"
CACHE = BUILD / ".jupyter_cache"


def digest_of(*patterns: str) -> str:
    """Digest of names and contents of the files below the root that match."""
    digest = hashlib.sha256()
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    for path in sorted(p for p in found if p.is_file()):
        if not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts):
            name = path.relative_to(ROOT).as_posix()
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def fingerprint() -> str:
    """Digest of all that a chapter's outputs depend on, apart from the chapter itself.

    The execution cache compares a notebook's own cells only: without this, an edited package, a new result or
    another torch would leave yesterday's figures in the book.
    """
    files = digest_of(
        "emalab/**/*",
        "book/results/**/*",
        "book/lab/**/*",
        "book/experiments/beyond_*.py",
        "book/site/interactive/*",
        "tests/reference/*",
    )
    digest = hashlib.sha256(files.encode())
    for package in sorted(
        f"{package.name}=={package.version}" for package in distributions()
    ):
        digest.update(package.encode())
    for variable in sorted(name for name in os.environ if name.startswith("EMALAB_")):
        digest.update(f"{variable}={os.environ[variable]}".encode())
    return digest.hexdigest()


def execute_side_by_side() -> None:
    """Execute the chapters that are not in the cache, one process per core; Sphinx would go one by one.

    A chapter that fails is left to Sphinx, which executes it again and reports the traceback.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # a core each
    cache = get_cache(str(CACHE))
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        cache.add_nb_to_project(str(path))
    load_executor("local-parallel", cache).run_and_cache(timeout=None)


def main() -> int:
    """Build the book; a failing cell or a single warning makes the exit status non-zero."""
    stamp, current = BUILD / "fingerprint", fingerprint()
    # Written after a build without a warning, of what it was made: all around the pages, and the pages.
    clean = BUILD / "clean"
    around = digest_of("_*.yml", "book/*.bib", "book/*/**/*")
    for variable in ("BOOK_REPOSITORY", "BOOK_REF"):
        around += f"/{quote(os.environ.get(variable, ''), safe='')}"
    made_of = [current + around, digest_of("book/*.ipynb", "book/*.md")]
    index = BUILD / "html" / "index.html"
    last = clean.read_text(encoding="utf-8").split() if clean.exists() else ["", ""]
    if made_of == last and index.exists():
        print(f"Nothing has changed. The book: {index}")
        return 0

    clean.unlink(missing_ok=True)
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != current:
        shutil.rmtree(CACHE, ignore_errors=True)
    shutil.rmtree(BUILD / "html", ignore_errors=True)
    BUILD.mkdir(exist_ok=True)
    stamp.write_text(current, encoding="utf-8")

    if os.environ.get("EMALAB_FULL") != "1":
        execute_side_by_side()  # full recipes take turns on the GPU instead

    # --all parses every page again: otherwise an unchanged page would keep its warnings to itself. It has none if the
    # last build had none, and nothing but pages was edited since.
    jupyter_book = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
    ]
    arguments = ["build", str(ROOT), "-W", "--keep-going"]
    arguments += [] if made_of[0] == last[0] else ["--all"]
    status = subprocess.run(jupyter_book + arguments, cwd=ROOT).returncode
    if status == 0 and not index.exists():
        status = 1
    if status == 0:
        clean.write_text(" ".join(made_of), encoding="utf-8")
    print(
        f"\nThe book: {index}"
        if status == 0
        else "\nThe book did not build: see the first warning or traceback above."
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
