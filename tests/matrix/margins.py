"""How much of its tolerance each comparison of floating-point numbers uses, over seeds and instruction sets.

``python tests/matrix/margins.py`` runs the tests named below under three instruction sets with five seeds each, and
writes margins.md: for every test the largest share of a tolerance that a comparison used. 1 would be a failure, and
what comes near it passes by luck. A processor that lacks an instruction set leaves that set out. With further seeds
run the tests that used more than a fifth of a tolerance with the first one, unless they read recorded arrays.

As a pytest plugin (``-p margins``) it measures ``torch.testing.assert_close``, ``numpy.testing.assert_allclose``,
``pytest.approx``, the fixture ``compare``, and assertions of the form ``number < number``, whose share is the smaller
number by the larger, or the quotient of the distances from 1 where both are parts of a whole. ``not torch.allclose(…)``
asks for a difference, so its share is the other way round. Comparisons that allow nothing are exact and not listed.
"""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORD = "EMALAB_MARGINS"
Scalar: Any = type(pytest.approx(1.0))  # a private class, whose module differs between versions of pytest
TESTED = "tests"
SHOWN = 0.2
"""Share of a tolerance up to which it is wide enough."""
SEEDS = (0, 1000, 2000, 3000, 4000)
TESTS = [
    f"tests/package/test_{name}.py"
    for name in (
        *("backbones", "bases", "em", "evaluation", "fastops", "inference", "inspection", "metrics", "modules"),
        *("onnx_export", "optim", "output_stride", "parity", "prediction", "scale_and_norm", "segmenter"),
        *("statistics", "dry_runs"),
    )
]
TESTS += ["tests/package/test_training_step.py", "tests/package/test_cost.py"]
TESTS += [f"tests/package/data/test_{name}.py" for name in ("dataset", "shapes", "transforms")]

BOUNDED = {
    "test_seeing_more_and_a_stronger_signal_help": "follows from a formula",
    "test_pooled_evidence_is_weak_locally_and_decisive_globally": "means of a formula over fixed scenes",
    "test_padding_is_zero_for_the_network": "the rounding of a color to a whole number",
}
"""Tests whose limit is exact, with the reason."""

NUMBER = r"(?:tensor\(|np\.float\d+\()?(\d+(?:\.\d*)?(?:e[+-]?\d+)?)(?:, dtype=[\w.]+)?\)?"
INEQUALITY = re.compile(rf"{NUMBER} ([<>])=? {NUMBER}$", re.MULTILINE)

shares: dict[str, float] = {}
_running = ""


def note(share: float) -> None:
    """The largest share of this test so far."""
    shares[_running] = max(shares.get(_running, 0.0), share)


def share_of(actual: Any, expected: Any, rtol: float, atol: float) -> float:
    """max |actual − expected| / (atol + rtol·|expected|); 0 for numbers that are not floating-point."""
    actual, expected = (torch.as_tensor(value).detach().cpu() for value in (actual, expected))
    if not (rtol or atol) or not (actual.is_floating_point() and expected.is_floating_point()):
        return 0.0
    expected = expected.double()
    used = ((actual.double() - expected).abs() / (atol + rtol * expected.abs())).nan_to_num(0.0)
    return float(used.max()) if used.numel() else 0.0


def tolerances(*tensors: Any) -> tuple[float, float]:
    """The defaults of `torch.testing.assert_close`, of the coarser of two dtypes."""
    return torch.testing._comparison.default_tolerances(*(torch.as_tensor(tensor) for tensor in tensors))


def measured_close(original: Callable[..., None]) -> Callable[..., None]:
    """`torch.testing.assert_close`, with its use noted."""

    def assert_close(actual: Any, expected: Any, *, rtol: Any = None, atol: Any = None, **options: Any) -> None:
        original(actual, expected, rtol=rtol, atol=atol, **options)
        if isinstance(actual, tuple | list):
            for one, other in zip(actual, expected, strict=True):
                assert_close(one, other, rtol=rtol, atol=atol, **options)
        elif isinstance(actual, torch.Tensor | float | np.ndarray):
            if rtol is None:
                rtol, atol = tolerances(actual, expected)
            note(share_of(actual, expected, rtol, atol))

    return assert_close


def measured_numpy(original: Callable[..., None]) -> Callable[..., None]:
    """`numpy.testing.assert_allclose`, with its use noted."""

    def assert_allclose(actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0.0, **options: Any) -> None:
        original(actual, desired, rtol=rtol, atol=atol, **options)
        note(share_of(np.asarray(actual), np.asarray(desired), rtol, atol))

    return assert_allclose


def measured_difference(original: Callable[..., bool]) -> Callable[..., bool]:
    """`torch.allclose`: how near it came to the other answer. Tests ask for a difference, `gradcheck` for none."""

    def allclose(one: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, **options: Any) -> bool:
        if share := share_of(one, other, rtol, atol):
            note(min(share, 1 / share))
        return original(one, other, rtol=rtol, atol=atol, **options)

    return allclose


def measured_approx(original: Callable[..., bool]) -> Callable[..., bool]:
    """Equality with `pytest.approx`, with its use noted."""

    def equal(self: Any, actual: Any) -> bool:
        if isinstance(actual, float | np.floating) and np.isfinite(actual) and self.tolerance:
            note(abs(float(actual) - float(self.expected)) / float(self.tolerance))
        return original(self, actual)

    return equal


def pytest_assertion_pass(item: pytest.Item, lineno: int, orig: str, expl: str) -> None:
    """An inequality of the tests between positive numbers, of which one at least is no integer."""
    found = INEQUALITY.match(expl)
    if found and not (found[1].isdigit() and found[3].isdigit()) and _asserted_by() == TESTED:
        note(share_of_inequality(*sorted((float(found[1]), float(found[3])))))


def share_of_inequality(smaller: float, larger: float) -> float:
    """The smaller number by the larger; for parts of a whole, their distances from the whole if that is less."""
    shares = [smaller / larger] if larger else [0.0]
    if smaller < larger <= 1:
        shares.append((1 - larger) / (1 - smaller))
    return min(shares)


def _asserted_by() -> str:
    """The top folder of the code that asserts; pytest reports assertions of its plugins, too."""
    frame = sys._getframe(2)
    while {"_pytest", "pluggy"} & set(Path(frame.f_code.co_filename).parts) and frame.f_back:
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    return path.relative_to(ROOT).parts[0] if path.is_relative_to(ROOT) else ""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global _running
    _running = item.nodeid
    yield
    for name, value in item.user_properties:
        if name == "difference" and value[2]:
            note(value[1] / value[2])


def pytest_configure(config: pytest.Config) -> None:
    torch.testing.assert_close = measured_close(torch.testing.assert_close)
    np.testing.assert_allclose = measured_numpy(np.testing.assert_allclose)
    torch.allclose = measured_difference(torch.allclose)
    Scalar.__eq__ = measured_approx(Scalar.__eq__)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        return  # what did not run would look like a comparison that used nothing
    failed = sorted(report.nodeid for report in _reports(session) if report.failed)
    found = {"shares": {name: share for name, share in shares.items() if share}, "failed": failed}
    Path(os.environ[RECORD]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _reports(session: pytest.Session) -> list[Any]:
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    return [*reporter.getreports("failed"), *reporter.getreports("error")]


def measure(name: str, seed: int, out: Path, tests: list[str]) -> None:
    """Run the tests with an instruction set and shifted seeds, and leave the shares in a file."""
    variables = instructions()[name][1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), **variables}
    environment |= {RECORD: str(out), "EMALAB_SEED_SHIFT": str(seed)}
    environment["PYTHONPYCACHEPREFIX"] = str(out.parent / "bytecode")  # of tests that report passed assertions
    options = ["-q", "-p", "margins", "-p", "no:cacheprovider", "-o", "enable_assertion_pass_hook=true"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    subprocess.run(command, cwd=ROOT, env=environment, check=False)


def instructions() -> dict[str, tuple[str, dict[str, str]]]:
    """The sets that noxfile.py names."""
    sys.path.insert(0, str(ROOT))
    from noxfile import INSTRUCTIONS

    return INSTRUCTIONS


def page(found: dict[str, dict[str, Any]], shown: float = SHOWN) -> str:
    """The table: tests that used more than the share ``shown``, the largest first."""
    sets, shifts = (list(dict.fromkeys(setting.split()[part] for setting in found)) for part in (0, 1))
    first = {setting: run for setting, run in found.items() if setting.endswith(f"+{SEEDS[0]}")}
    compared = sorted({name for run in first.values() for name in run["shares"]})
    shares: dict[str, list[float]] = defaultdict(list)
    for setting, run in found.items():
        for name in compared if setting in first else depend_on_seeds(first):
            shares[name].append(run["shares"].get(name, 0.0))
    failed = sorted({f"- {setting}: `{name}`" for setting, run in found.items() for name in run["failed"]})
    seeds = "Further seeds have not been measured."
    if len(found) > len(first):
        seeds = "Only the listed tests ran with further seeds, except those that read recorded arrays (parity)."
    rows = sorted(((max(of), min(of), name) for name, of in shares.items() if max(of) > shown), reverse=True)
    lines = [
        "# Margins of the tolerances",
        "",
        f"`python tests/matrix/margins.py` ran the tests {len(found)} times, each with another instruction set, as",
        f"torch names it, and shift of the seeds: {', '.join(sets)}, each with {', '.join(shifts)}.",
        "",
        f"{len(shares)} tests compare floating-point numbers within a tolerance, and {len(shares) - len(rows)} of them",
        f"never use more than {shown:.0%} of it. The others are listed by the largest share that they used.",
        "Where the smallest share equals the largest, the numbers are the same in all these runs.",
        seeds,
        "",
        "| largest | smallest | test |",
        "| ---: | ---: | --- |",
        *(f"| {most:.0%} | {least:.0%} | `{name}` |" for most, least, name in rows),
        "",
        "Limits that are exact, so that any share is wide enough:",
        "",
        *(f"- `{name}`: {why}" for name, why in BOUNDED.items()),
        "",
        *(["Failed:", "", *failed] if failed else ["No run failed."]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every setting that this processor has, and write the table."""
    folder = ROOT / "_build" / "margins"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for seed in SEEDS:
        tests = TESTS if seed == SEEDS[0] else depend_on_seeds(found)
        for name, (capability, _) in instructions().items():
            out = folder / f"{name}-{seed}.json"
            if not out.exists():
                measure(name, seed, out, tests)
            found[f"{capability} +{seed}"] = json.loads(out.read_text(encoding="utf-8"))
            (HERE / "margins.md").write_text(page(found), encoding="utf-8")


def depend_on_seeds(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Tests that used more than a fifth of a tolerance with the first seed, without those of recorded arrays."""
    names = {name for run in found.values() for name, share in run["shares"].items() if share > SHOWN}
    return sorted(name for name in names if "parity" not in name.lower())


if __name__ == "__main__":
    main()
