"""Programs that make records: each has help and a tiny mode that writes a whole record in seconds."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import tyro

ROOT = Path(__file__).resolve().parents[2]
FOLDER, RESULTS = ROOT / "book" / "experiments", ROOT / "book" / "results"
PROGRAMS = [path.stem for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]
# Its first half needs Nsight Compute on a GPU, its second half is tested on made tables; studies have their own tests.
OTHERWISE = {"h200_kernel_profile", "shipped_network", "voc_animals_heads"}


@pytest.fixture(params=[name for name in PROGRAMS if name not in OTHERWISE])
def program(request: pytest.FixtureRequest) -> ModuleType:
    return import_module(f"experiments.{request.param}")


def test_help_says_what_it_does(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tyro.cli(program.Arguments, description=program.__doc__, args=["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert program.__doc__ is not None
    assert program.__doc__.split()[0] in text
    assert "--tiny" in text


def test_tiny_mode_makes_a_record(program: ModuleType, tmp_path: Path) -> None:
    if program.__name__.endswith("kernel_targets"):
        pytest.importorskip("triton", minversion="3.6", reason="Triton compiles the kernel")
    out = tmp_path / "record"
    if program.__name__.endswith("landing_figure"):
        out = out.with_suffix(".jpg")
    program.main(program.Arguments(tiny=True, out=out))
    if out.suffix != ".jpg":
        record = json.loads(out.read_text(encoding="utf-8"))
        assert {"what", "commit", "device", "versions", "date"} <= record.keys()
    assert out.stat().st_size > 0


INDEX = (RESULTS / "README.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in INDEX.splitlines() if line.startswith("| `")]
PATTERNS = [row[0].strip("`") for row in ROWS]
RECORDS = [
    path.relative_to(RESULTS).as_posix()
    for path in RESULTS.rglob("*.json")
    if not path.name.startswith("summary-")  # which `emalab study` leaves, and git ignores
]


class TestIndex:
    """book/results/README.md, which names the program of every record."""

    def test_every_record_is_in_it(self) -> None:
        assert RECORDS
        assert not [name for name in RECORDS if not any(fnmatch(name, pattern) for pattern in PATTERNS)]

    def test_every_row_has_a_record(self) -> None:
        assert not [pattern for pattern in PATTERNS if not any(fnmatch(name, pattern) for name in RECORDS)]

    def test_programs_and_tests_that_it_names_exist(self) -> None:
        named = set(re.findall(r"[\w/]+\.py", INDEX))
        assert {path.relative_to(ROOT).as_posix() for path in FOLDER.glob("h200_*.py")} <= named
        assert not [name for name in named if not (ROOT / name).is_file()]

    def test_programs_are_named_like_their_records(self) -> None:
        for row in ROWS:
            for stem in re.findall(r"^`book/experiments/(\w+)\.py`$", row[1]):
                assert stem.replace("_", "-") in row[0]
