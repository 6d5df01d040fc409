"""The kernel's counters: what is taken from a table of Nsight Compute, and what the book's record says."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from experiments import bench_cards
from experiments import h200_kernel_profile as profile_kernel
from experiments.h200_kernel_profile import COUNTERS, DEVICE, STALLS, UNITS, distill, read

from emalab.bench import Size
from emalab.results import write_record

RESULTS = Path(__file__).parents[2] / "book" / "results"
PHASES = ["accumulate", "finish"] * 3 + ["rebuild"]
WAITS = {"long_scoreboard": "4.00", "barrier": "2.50", "wait": "1.50", "misc": "0.00", "selected": "2.00"}


def table(launches: int = 16, unit: str = "ns") -> str:
    """As `ncu` prints it: what it has to say, a head, units, and a line for each launch."""
    text = io.StringIO()
    names = [*(theirs for theirs, _ in COUNTERS.values()), *(f"{STALLS[0]}{name}{STALLS[1]}" for name in WAITS)]
    rows = csv.DictWriter(text, ["ID", DEVICE, *names], quoting=csv.QUOTE_ALL)
    rows.writeheader()
    rows.writerow({COUNTERS[name][0]: value for name, value in {**UNITS, "microseconds": unit}.items()})
    for i in range(launches):
        counters = {theirs: f"{1000 + i:,}" for theirs, _ in COUNTERS.values()}
        waits = {f"{STALLS[0]}{name}{STALLS[1]}": value for name, value in WAITS.items()}
        rows.writerow({"ID": i, DEVICE: "G", **counters, **waits})
    return f"==PROF== Connected\nPlan(…)\n{text.getvalue()}"


class TestReading:
    def test_the_second_call_counts(self, tmp_path: Path) -> None:
        (tmp_path / "7.csv").write_text(table())
        launches = read(tmp_path / "7.csv", "G")
        assert [row["phase"] for row in launches] == [*PHASES, "all"]
        assert [row["registers"] for row in launches] == [*range(1007, 1014), 1015]
        assert launches[0]["microseconds"] == 1.007
        assert launches[0]["waits"] == {"long_scoreboard": 0.4, "barrier": 0.25, "wait": 0.15, "misc": 0.0}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("==ERROR== no permission", r"7\.csv holds no CSV table of Nsight Compute"),
            (table(launches=9), r"7\.csv has 9 launches, not 2 × \(7 \+ 1\)"),
            (table(unit="us"), r"gpu__time_duration\.sum is in us, not ns"),
            (table().replace('"G"', '"H"'), r"7\.csv is of H, and the record of timings of G"),
        ],
        ids=["no table", "cut short", "another unit", "another GPU"],
    )
    def test_what_is_no_such_table(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "7.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "7.csv", "G")

    def test_record(self, tmp_path: Path) -> None:
        (tmp_path / "7.csv").write_text(table())
        origin = {"commit": "abc", "device": "G", "python": "3", "versions": {"torch": "2"}, "date": "2026-01-01"}
        write_record(tmp_path / "bench.json", origin)
        distill((tmp_path / "7.csv",), tmp_path / "bench.json", tmp_path / "profile.json")
        record = json.loads((tmp_path / "profile.json").read_text())
        assert origin.items() <= record.items()
        (row,) = record["rows"]
        assert (row["n"], len(row["several"]), row["one"]["phase"]) == (7, 7, "all")


class TestRecords:
    """book/results/h200-bench.json, and the profile of the same source."""

    @pytest.fixture
    def bench(self) -> dict[str, Any]:
        return json.loads((RESULTS / "h200-bench.json").read_text())

    @pytest.fixture
    def profile(self) -> dict[str, Any]:
        return json.loads((RESULTS / "h200-kernel-profile.json").read_text())

    def test_floors_are_those_of_the_ceilings(self, bench: dict[str, Any]) -> None:
        for row in bench["rows"]:
            size = Size(**row["size"])
            moved, operations = size.cost(row["method"])
            memory = moved / bench["ceilings"]["bandwidth"]
            arithmetic = operations / bench["ceilings"]["arithmetic"][size.dtype]
            assert row["floor"] == pytest.approx(max(memory, arithmetic))
            assert row["bound"] == ("bandwidth" if memory > arithmetic else "arithmetic")

    def test_results_are_right_or_say_why_there_are_none(self, bench: dict[str, Any]) -> None:
        tolerance = {"bfloat16": 5e-2, "float16": 5e-3, "float32": 1e-5}
        for row in bench["rows"]:
            if row["failure"]:
                assert row["seconds"] is None
            else:
                assert row["floor"] < row["replayed"]
                assert row["error"] < tolerance[row["size"]["dtype"]]

    def test_no_size_is_there_twice(self, bench: dict[str, Any]) -> None:
        sizes = [(row["method"], Size(**row["size"])) for row in bench["rows"]]
        assert len(set(sizes)) == len(sizes)

    def test_profile_and_timings_belong_together(self, bench: dict[str, Any], profile: dict[str, Any]) -> None:
        """The launches, added up, take what the replayed call takes; less at few positions, where caches matter."""
        assert profile["commit"] == bench["commit"]
        timed = {(row["method"], Size(**row["size"])): row["replayed"] for row in bench["rows"]}
        paper = Size(profile_kernel.B, 1, profile_kernel.K, profile_kernel.C, profile_kernel.T, "bfloat16")
        for row in profile["rows"]:
            assert [launch["phase"] for launch in row["several"]] == PHASES
            took = timed["em-triton", replace(paper, n=row["n"])] * 1e6
            whole = row["one"]["microseconds"]
            if row["n"] > 2**12:
                whole = sum(launch["microseconds"] for launch in row["several"])
            assert whole == pytest.approx(took, rel=0.12)

    def test_features_are_read_once_in_an_iteration(self, profile: dict[str, Any]) -> None:
        """Counted by the memory itself: bases, and little else, come on top."""
        for row in profile["rows"]:
            features = 2 * profile_kernel.B * row["n"] * profile_kernel.C
            for launch in row["several"]:
                if launch["phase"] == "accumulate":
                    assert features < launch["dram_read_bytes"] < features + 2**22


class TestCards:
    """book/results/bench-cards-*.json: the same ways at the same sizes on every card."""

    @pytest.fixture(params=sorted(RESULTS.glob("bench-cards-*.json")), ids=lambda path: path.stem)
    def card(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return json.loads(request.param.read_text())

    def test_every_way_is_there_at_every_size(self, card: dict[str, Any]) -> None:
        ways = {"em-fused", "em-torch", "em-compiled", "em-public", "non-local-flash"}
        found = [(row["method"], Size(**row["size"])) for row in card["rows"]]
        assert sorted(found, key=str) == sorted(product(ways, bench_cards.SIZES), key=str)

    def test_rounds_are_complete_and_above_the_floor(self, card: dict[str, Any]) -> None:
        for row in card["rows"]:
            assert len(row["called"]) == len(row["replayed"]) == len(row["host"]) == bench_cards.Arguments.rounds
            assert row["floor"] < min(row["replayed"])
            assert row["error"] < 5e-2

    def test_the_host_ran_evenly(self, card: dict[str, Any]) -> None:
        assert all(moment["quiet"] for moment in card["host"])
