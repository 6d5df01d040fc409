"""The same tests on other processors, seeds and versions: `nox --list` names the sessions, `nox` runs them all (hours).

Sessions of one kind of processor, number of threads or seed run in the environment that nox runs in, as `make matrix`
does in `.venv`. The others make an environment each below `.nox`, and use it again the next time. What follows `--`
replaces the tests and chapters: `nox -s torch -- tests/package/test_em.py`. Every session writes its row of
tests/matrix/README.md.
"""

import os
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"  # a Python that is not installed is skipped
nox.options.reuse_venv = "yes"
nox.options.sessions = ["instructions", "threads", "seeds", "python", "torch", "lowest"]

MATRIX = Path(__file__).resolve().parent / "tests" / "matrix"
EVERYTHING = ["book", "tests"]
CHAPTERS_THAT_TRAIN = [
    f"book/{name}.ipynb"
    for name in (
        "bases",
        "ema_unit",
        "evaluation",
        "first_training_run",
        "gradient_study",
        "gradients",
        "how_many",
        "own_experiments",
        "reproductions",
        "training",
    )
]

# From the oldest to the newest: the name torch gives to the set, and what limits torch, oneDNN and MKL to it.
INSTRUCTIONS = {
    "sse": ("DEFAULT", {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}),
    "avx2": (
        "AVX2",
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    ),
    "avx512": (
        "AVX512",
        {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
    ),
}


def limited_to(session: nox.Session, name: str) -> dict[str, str]:
    """Variables for this instruction set; skips where the processor lacks it."""
    capability, variables = INSTRUCTIONS[name]
    if name == "sse":
        return variables
    present = newest_instructions(session)
    order = [torch_name for torch_name, _ in INSTRUCTIONS.values()]
    if present not in order or order.index(present) < order.index(capability):
        session.skip(f"this processor has no {capability}; its newest set is {present}")
    return variables


def newest_instructions(session: nox.Session) -> str:
    """What torch calls the newest instruction set of this processor."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    unlimited = {name: None for _, variables in INSTRUCTIONS.values() for name in variables}
    return str(session.run(sys.executable, "-c", code, silent=True, external=True, env=unlimited)).split()[-1]


def run_tests(session: nox.Session, targets: list[str], python: str, **variables: str) -> None:
    """Run pytest over the targets, or over what follows `--`, and write the row of this session."""
    run_pytest(session, targets, python, "-p", "row", EMALAB_MATRIX_CELL=session.name, **variables)


def run_pytest(session: nox.Session, targets: list[str], python: str, *options: str, **variables: str) -> None:
    """Run pytest over the targets, or over what follows `--`; every chapter among them is executed."""
    targets = session.posargs or targets
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(MATRIX), **variables}
    options += ("-q", "-n", os.environ.get("WORKERS", "2"), "--dist=loadfile", "--no-loadscope-reorder")
    if any(target.startswith("book") for target in targets):
        options += ("--nbmake", "--nbmake-timeout=1200", "--execute-all")
    session.run(python, "-m", "pytest", *options, *targets, env=environment, external=python != "python")


@nox.session(venv_backend="none")
@nox.parametrize("name", list(INSTRUCTIONS), ids=list(INSTRUCTIONS))
def instructions(session: nox.Session, name: str) -> None:
    """Everything, with the processor limited to an instruction set."""
    run_tests(session, EVERYTHING, sys.executable, **limited_to(session, name))


@nox.session(venv_backend="none")
@nox.parametrize("number", [2], ids=["2"])
def threads(session: nox.Session, number: int) -> None:
    """Everything, with sums that threads share; all other sessions compute with one."""
    run_tests(session, EVERYTHING, sys.executable, OMP_NUM_THREADS=str(number))


@nox.session(venv_backend="none")
@nox.parametrize("shift", [1000, 2000], ids=["1000", "2000"])
def seeds(session: nox.Session, shift: int) -> None:
    """The chapters that train, with every seed shifted."""
    run_tests(session, CHAPTERS_THAT_TRAIN, sys.executable, EMALAB_SEED_SHIFT=str(shift))


@nox.session(venv_backend="none")
def other(session: nox.Session) -> None:
    """The chapters that train, with an older instruction set and shifted seeds: what .ci/run adds to `make test`."""
    name = "avx2" if newest_instructions(session) == "AVX512" else "sse"
    run_pytest(session, CHAPTERS_THAT_TRAIN, sys.executable, EMALAB_SEED_SHIFT="1000", **INSTRUCTIONS[name][1])


def install(session: nox.Session, *options: str) -> None:
    """Install the package with all that its tests and chapters need, as `make` does."""
    backend = os.environ.get("TORCH_BACKEND")
    options += ("--torch-backend", backend) if backend else ()
    session.install("-e", ".[dev]", *options)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def python(session: nox.Session) -> None:
    """Everything, with the newest versions that a Python has."""
    install(session, "--upgrade")
    run_tests(session, EVERYTHING, "python")


@nox.session(python="3.12")
@nox.parametrize("version", ["2.6"], ids=["2.6"])
def torch(session: nox.Session, version: str) -> None:
    """Everything, with an older torch."""
    install(session, f"torch=={version}.*")
    run_tests(session, EVERYTHING, "python")


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """Everything, with the lowest versions that pyproject.toml declares."""
    install(session, "--resolution", "lowest-direct")
    run_tests(session, EVERYTHING, "python")
