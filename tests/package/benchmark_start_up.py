"""How long imports, help and errors take beside ``import torch``: the last table of ``make bench``.

Every line is a fresh process. Rounds run all lines one after the other, so what slows the machine slows them all, and
a ratio is the median of the ratios within a round. Nothing is asserted here: a busy machine would decide it. That help
and errors load nothing slow is a test of what is loaded, in test_start_up.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from emalab.cli import COMMANDS

BASE = "import torch"
IMPORTS = (BASE, *(f"from emalab import {name}" for name in ("EMAU", "Segmenter", "train")))
COMMAND_LINES = ("--help", *(f"{command} --help" for command in COMMANDS), "predict nope.jpg")

Clock = Callable[[Sequence[str]], float]


def processes() -> dict[str, list[str]]:
    """What is measured, with the arguments of Python that do it."""
    return {line: ["-c", line] for line in IMPORTS} | {
        f"emalab {line}": ["-m", "emalab", *line.split()] for line in COMMAND_LINES
    }


def seconds_of(arguments: Sequence[str]) -> float:
    """Seconds that a Python process takes from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    return time.perf_counter() - start


def measure(rounds: int, clock: Clock = seconds_of) -> dict[str, list[float]]:
    """Seconds of every process in every round, after a round that fills the caches of files."""
    measured = [{name: clock(arguments) for name, arguments in processes().items()} for _ in range(rounds + 1)]
    return {name: [times[name] for times in measured[1:]] for name in processes()}


def table(seconds: Mapping[str, Sequence[float]]) -> str:
    """A line for each process: the median of its seconds, and of its ratio to ``import torch`` with the range."""
    lines = [f"{'':<34} seconds  ratio to {BASE} (least, largest of the rounds)"]
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds[BASE], strict=True)]
        lines.append(f"{name:<34} {median(values):7.2f}  {median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})")
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    print(table(measure(parser.parse_args().rounds)))


if __name__ == "__main__":
    main()
