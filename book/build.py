"""Execute the chapters and render the book into ``_build/html``: what ``make book`` runs."""

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"


def fingerprint() -> str:
    """Digest of all that a chapter's outputs depend on, apart from the chapter itself.

    The execution cache compares a notebook's own cells only: without this, an edited package, a new result or
    another torch would leave yesterday's figures in the book.
    """
    digest = hashlib.sha256()
    patterns = (
        "emalab/**/*",
        "book/results/**/*",
        "book/miniature.py",
        "tests/reference/*",
        "tests/closed_form.py",
    )
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    for path in sorted(
        p for p in found if p.is_file() and "__pycache__" not in p.parts
    ):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    for package in sorted(
        f"{package.name}=={package.version}" for package in distributions()
    ):
        digest.update(package.encode())
    for variable in sorted(name for name in os.environ if name.startswith("EMALAB_")):
        digest.update(f"{variable}={os.environ[variable]}".encode())
    return digest.hexdigest()


def main() -> int:
    """Build the book; a failing cell or a single warning makes the exit status non-zero."""
    stamp, current = BUILD / "fingerprint", fingerprint()
    if not stamp.exists() or stamp.read_text() != current:
        shutil.rmtree(BUILD / ".jupyter_cache", ignore_errors=True)
    shutil.rmtree(BUILD / "html", ignore_errors=True)
    BUILD.mkdir(exist_ok=True)
    stamp.write_text(current)

    # --all parses every page again: in an incremental build an unchanged page keeps its warnings to itself.
    jupyter_book = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
    ]
    arguments = ["build", str(ROOT), "--all", "-W", "--keep-going"]
    status = subprocess.run(jupyter_book + arguments, cwd=ROOT).returncode
    index = BUILD / "html" / "index.html"
    if status == 0 and not index.exists():
        status = 1
    print(
        f"\nThe book: {index}"
        if status == 0
        else "\nThe book did not build: see the first warning or traceback above."
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
