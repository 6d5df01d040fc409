"""How long imports, help, errors and a photograph take beside ``import torch``: the last table of ``make bench``.

Every line is a fresh process, whose CPU time and wall time are measured. Rounds run all lines one after the other, so
what slows the machine slows them all, and a ratio is the median of the ratios within a round. To label a photograph is
also compared with what no program can do without: ``import torch``, and the network on the photograph and its mirror
image. Nothing is asserted here: a busy machine would decide it. What help, errors and photographs may load is a test,
in test_start_up.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

from emalab.cli import COMMANDS
from emalab.tables import aligned

BASE = "import torch"
NETWORK = "network, two views"
PREDICT, INSPECT = "emalab predict PHOTO", "emalab inspect PHOTO"
IMPORTS = (BASE, *(f"from emalab import {name}" for name in ("EMAU", "Segmenter", "train")))
COMMAND_LINES = ("--help", *(f"{command} --help" for command in COMMANDS), "predict nope.jpg")
PHOTO = Path(next(iter(find_spec("skimage").submodule_search_locations))) / "data/chelsea.png"  # type: ignore[union-attr, arg-type]

# The forward passes that `emalab predict` makes, when all is loaded: the last of three.
PROGRAM = f"""
import json, time, torch
from emalab.prediction import _pixels
from emalab.segmenter import Segmenter
model, photo = Segmenter.from_pretrained(), _pixels({str(PHOTO)!r})[None]
views = [x.contiguous(memory_format=torch.channels_last) for x in (photo, photo.flip(-1))]
with torch.inference_mode():
    for _ in range(3):
        start = time.perf_counter(), time.process_time()
        for view in views:
            model.coarse_logits(view)
        print(json.dumps([time.perf_counter() - start[0], time.process_time() - start[1]]))
"""


class Seconds(NamedTuple):
    """What a process took."""

    wall: float
    cpu: float  # user and system, of all its threads


Clock = Callable[[Sequence[str]], Seconds]


def processes(folder: str) -> dict[str, list[str]]:
    """What is measured, with the arguments of Python that do it; photographs' results go to ``folder``."""
    commands = {f"emalab {line}": line.split() for line in COMMAND_LINES}
    commands |= {line: [line.split()[1], str(PHOTO), "--out", folder] for line in (PREDICT, INSPECT)}
    return (
        {line: ["-c", line] for line in IMPORTS}
        | {name: ["-m", "emalab", *words] for name, words in commands.items()}
        | {NETWORK: ["-c", PROGRAM]}
    )


def seconds_of(arguments: Sequence[str]) -> Seconds:
    """Seconds that a Python process takes from its start to its end; of the network, what the process itself timed."""
    start, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, check=False, text=True)
    wall, after = time.perf_counter() - start, os.times()
    if PROGRAM in arguments:
        return Seconds(*json.loads(done.stdout.splitlines()[-1]))
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Seconds(wall, used)


def measure(rounds: int, clock: Clock = seconds_of, names: Sequence[str] = ()) -> dict[str, list[Seconds]]:
    """Seconds of every process, or of those named, in every round, after one that fills the caches of files."""
    with tempfile.TemporaryDirectory() as folder:
        lines = {name: arguments for name, arguments in processes(folder).items() if not names or name in names}
        measured = [{name: clock(arguments) for name, arguments in lines.items()} for _ in range(rounds + 1)]
    return {name: [times[name] for times in measured[1:]] for name in lines}


def ratios(seconds: Mapping[str, Sequence[Seconds]], name: str, *bases: str) -> dict[str, list[float]]:
    """Of each round, ``name`` over the sum of ``bases``: in CPU time and in wall time."""
    return {
        kind: [
            getattr(times, kind) / sum(getattr(seconds[base][index], kind) for base in bases)
            for index, times in enumerate(seconds[name])
        ]
        for kind in Seconds._fields
    }


def table(seconds: Mapping[str, Sequence[Seconds]]) -> str:
    """A line for each process: the medians of its CPU and wall time, and of its ratio to ``import torch``.

    Behind a ratio of CPU times stand the least and the largest of the rounds. The last line compares a photograph with
    ``import torch`` and the network.
    """
    rows = [("", "CPU s", "wall s", f"ratio to {BASE}, CPU", "wall")]
    compared = [(name, (name, BASE)) for name in seconds]
    compared.append((f"{PREDICT} / ({BASE} + network)", (PREDICT, BASE, NETWORK)))
    for label, (name, *bases) in compared:
        found = ratios(seconds, name, *bases)
        cpu, wall = (median(getattr(times, kind) for times in seconds[name]) for kind in ("cpu", "wall"))
        spread = f"{median(found['cpu']):.2f} ({min(found['cpu']):.2f}, {max(found['cpu']):.2f})"
        rows.append((label, f"{cpu:.2f}", f"{wall:.2f}", spread, f"{median(found['wall']):.2f}"))
    return "\n".join(aligned(rows, right={1, 2, 3, 4}))


def write(path: Path, seconds: Mapping[str, Sequence[Seconds]]) -> None:
    """A record of all rounds, with the processor."""
    import torch

    from emalab.results import find_origin, write_record

    record = {
        "what": "CPU and wall seconds of fresh processes, one of each a round.",
        "seeds": "none: nothing is drawn",
        **find_origin(torch.device("cpu")),
        "processor": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "photograph": "chelsea of scikit-image, 451×300",
        "seconds": {
            name: {kind: [getattr(t, kind) for t in times] for kind in Seconds._fields}
            for name, times in seconds.items()
        },
        "predict_to_torch_and_network": ratios(seconds, PREDICT, BASE, NETWORK),
    }
    write_record(path, record)


def main() -> None:
    """Measure, print the table, and write a record if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write all rounds to this JSON file")
    parser.add_argument("--photograph", action="store_true", help="only what a photograph is compared with")
    arguments = parser.parse_args()
    names = (BASE, "from emalab import Segmenter", "from emalab import train", PREDICT, INSPECT, NETWORK)
    seconds = measure(arguments.rounds, names=names if arguments.photograph else ())
    print(table(seconds))
    if arguments.out:
        write(arguments.out, seconds)


if __name__ == "__main__":
    main()
