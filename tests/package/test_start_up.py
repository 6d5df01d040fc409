"""What is not imported: help and errors come before torch, the unit before timm, the network class before both.

Held by the modules that a fresh process has loaded, which no busy machine changes; `test_benchmarks.py` measures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import benchmark_start_up
import pytest
import torch
from benchmark_start_up import Seconds
from PIL import Image
from waiting import HANGS

from emalab.cli import COMMANDS

SLOW = ("torch", "numpy", "PIL", "timm", "torchvision", "lightning_fabric", "scipy", "matplotlib", "yaml")
NETWORKS = ("torch", "timm", "torchvision", "lightning_fabric")
BESIDE_TORCH = ("PIL", "timm", "torchvision", "lightning_fabric", "scipy", "matplotlib", "torch._dynamo")

HELP = (
    *([], ["--help"], ["data", "--help"], ["train", "--help"], ["train", "camvid-lite2", "--help"]),
    *([*command.split(), "--help"] for command in COMMANDS),
    *(["--version"], ["recipes"], ["study", "--list"]),
)
ERRORS = (
    ["trian"],
    ["train", "camvid-lite"],
    ["train", "shapes-tiny", "--optim.rate", "1"],
    ["train", "--from-record", "gone.json"],
    ["study", "nope"],
    ["evaluate", "gone.pt"],
    ["evaluate", "emanet-lite2-voc-animals", "--data", "cmvid"],
    ["submit", "gone.pt", "--out", "results"],
    ["predict"],
    ["predict", "gone.jpg"],
    ["predict", ".", "--checkpoint", "gone.pt"],
    ["export", "gone", "net.safetensors"],
    ["convert", "official", "gone.pth", "net.safetensors"],
    ["convert", "mmseg", "gone.pth", "net.safetensors"],
    ["cost", "voc-r100"],
    ["data", "check", "cmvid"],
    ["data", "prepare", "cmvid"],
)
ERRORS_IN_DATA = (
    ["predict", "notes.txt"],
    ["predict", "notes.txt", "--data", "empty/"],
    ["inspect", "notes.txt"],
    ["train", "empty/"],
    ["train", "gone/"],
    ["train", "alone"],
    ["train", "torn/"],
    ["train", "shapes-tiny", "--data.name", "empty/"],
    ["train", "camvid-lite2"],
    ["train", "camvid-lite2", "--data-root", "gone"],
    ["train", "shapes-tiny", "--init-from", "gone.pt"],
    ["data", "check", "gone/"],
    ["data", "check", "empty/"],
    ["data", "check", "alone/"],
    ["data", "check", "torn/"],
    ["data", "check", "torn/classes.yaml"],
    ["data", "check", "voc"],
    ["data", "prepare", "voc", "--from", "gone"],
    ["evaluate", "emanet-lite2-voc-animals", "--data", "gone/"],
    ["evaluate", "emanet-lite2-voc-animals", "--data", "voc"],
    ["submit", "emanet-lite2-voc-animals", "--data", "voc", "--out", "results"],
)
"""What is found in the folder of `damaged_folders`: without a network, so without torch."""

PROGRAM = """
import contextlib, io, json, sys
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as error:
        if isinstance(words, str):
            exec(words)
        else:
            from emalab.cli import main
            with contextlib.suppress(SystemExit):
                main(words)
    print(json.dumps([words, sorted(sys.modules), error.getvalue()]))
"""


def in_a_fresh_process(
    inputs: Sequence[str | list[str]], slow: tuple[str, ...], folder: Path
) -> Iterator[tuple[str, list[str], str]]:
    """Each import or command line of ``inputs``, with the slow modules that are loaded after it, and its stderr."""
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(inputs)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=HANGS, cwd=folder)
    assert done.stdout.count("\n") == len(inputs), done.stderr
    for line in done.stdout.splitlines():
        words, modules, error = json.loads(line)
        yield words if isinstance(words, str) else " ".join(words), [name for name in slow if name in modules], error


def test_help_imports_nothing_slow(tmp_path: Path) -> None:
    for words, found, error in in_a_fresh_process(HELP, SLOW, tmp_path):
        assert (found, error) == ([], ""), words


def test_errors_import_nothing_slow(tmp_path: Path) -> None:
    for words, found, error in in_a_fresh_process(ERRORS, SLOW, tmp_path):
        assert found == [], words
        assert error, words


def damaged_folders(root: Path) -> Path:
    (root / "notes.txt").write_text("not a picture")
    for name, images in (("empty", ()), ("alone", ("a",)), ("torn", ("a", "b"))):
        (root / name / "masks").mkdir(parents=True)
        for image in images:
            (root / name / "images").mkdir(exist_ok=True)
            (root / name / "images" / f"{image}.png").touch()
    (root / "torn" / "classes.yaml").write_text("classes: [wall, roof")
    return root


def test_errors_in_data_do_not_import_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMALAB_DATA", raising=False)
    for words, found, error in in_a_fresh_process(ERRORS_IN_DATA, NETWORKS, damaged_folders(tmp_path)):
        assert found == [], words
        assert error.startswith("emalab: error: "), words
        assert error.count("\n") == 1, words
    assert not (tmp_path / "torn" / "splits").exists()  # nothing is written where something is wrong


def test_the_unit_and_the_network_import_torch_alone(tmp_path: Path) -> None:
    names = ("EMAU", "NonLocal2d", "em_attention", "Segmenter", "build_segmenter")
    for line, found, _ in in_a_fresh_process([f"from emalab import {name}" for name in names], BESIDE_TORCH, tmp_path):
        assert found == [], line


# Which has to announce its operations to older versions of torch.
IMPORTED_BY_EINOPS = {"sympy", "torch._dynamo"} if torch.__version__ < "2.8" else set[str]()


def test_photographs_are_labeled_with_torch_alone(tmp_path: Path) -> None:
    """Nor does anything import what compiles: it takes as long as torch."""
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    slow = tuple({*BESIDE_TORCH, "sympy", "tensorboard"} - {"PIL"} - IMPORTED_BY_EINOPS)
    (_, found, error), *_ = in_a_fresh_process([["predict", "red.png"]], slow, tmp_path)
    assert (found, error) == ([], "")
    assert (tmp_path / "red.mask.png").is_file()


def test_recipes_import_nothing_slow(tmp_path: Path) -> None:
    names = ("get_recipe", "Recipe", "SegmenterConfig")
    for line, found, _ in in_a_fresh_process([f"from emalab import {name}" for name in names], SLOW, tmp_path):
        assert found == [], line


def test_the_benchmark_pairs_by_round() -> None:
    """A machine that is ten times slower in one round changes no ratio."""
    calls = 0

    def clock(arguments: Sequence[str]) -> Seconds:
        nonlocal calls
        slowdown = 10.0 if calls // len(benchmark_start_up.processes("")) == 2 else 1.0
        calls += 1
        torch = arguments == ["-c", "import torch"]
        return Seconds(slowdown * (4.0 if torch else 1.0), slowdown * (2.0 if torch else 1.5))

    seconds = benchmark_start_up.measure(3, clock)
    assert [times.wall for times in seconds["from emalab import EMAU"]] == [1.0, 10.0, 1.0]  # the first is not counted
    *_, photograph, _, compared = benchmark_start_up.table(seconds).splitlines()
    assert photograph.split() == ["emalab", "inspect", "PHOTO", "1.50", "1.00", "0.75", "(0.75,", "0.75)", "0.25"]
    assert compared.split()[-5:] == ["1.00", "0.43", "(0.43,", "0.43)", "0.20"]  # 1.5 / (2 + 1.5), 1 / (4 + 1)


def test_the_benchmark_times_processes() -> None:
    seconds = benchmark_start_up.seconds_of(["-c", "sum(range(10**6))"])
    assert 0 < seconds.cpu < HANGS
    assert 0 < seconds.wall < HANGS
