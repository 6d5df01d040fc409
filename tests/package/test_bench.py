"""Timing attention: what is counted, what is measured, and what the command prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from emalab import bench
from emalab.bench import Ceilings, Row, Size, benchmark, format_table, measure_ceilings, time_of
from emalab.cli import main

CPU = torch.device("cpu")
SMALL = Size(2, 50, 4, 8, 3, "float32")
CEILINGS = Ceilings(1e9, {"float32": 1e10})


class TestCost:
    def test_of_em_attention(self) -> None:
        """Three readings and one writing of the features; seven products of n × k × c."""
        assert SMALL.cost("em-torch") == (4 * 2 * 50 * 8 * 4, 7 * 2 * 2 * 50 * 4 * 8)

    def test_of_non_local_attention(self) -> None:
        """Query, key, value and result, with half the channels; two products of n × n × c / 2."""
        assert SMALL.cost("non-local-sdpa") == (4 * 2 * 50 * 4 * 4, 2 * 2 * 2 * 50 * 50 * 4)

    @pytest.mark.parametrize("change", [{"b": 0}, {"n": 0}, {"k": -1}, {"c": 1}, {"iterations": 0}], ids=str)
    def test_sizes_are_checked(self, change: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(change))} of at least"):
            Size(**{"b": 1, "n": 1, "k": 1, "c": 2, "iterations": 1, "dtype": "float32", **change})


class TestBenchmark:
    def test_rows(self) -> None:
        methods = ("em-torch", "non-local-explicit", "non-local-sdpa")
        rows = list(benchmark([SMALL], methods, CPU, 0.001, CEILINGS))
        assert [row.method for row in rows] == list(methods)
        for row in rows:
            assert row.failure is None
            assert row.seconds > 0
            assert 0 < row.error < 1e-5
            moved, operations = SMALL.cost(row.method)
            assert row.floor == max(moved / 1e9, operations / 1e10)
            assert row.bound == ("bandwidth" if moved / 1e9 > operations / 1e10 else "arithmetic")

    def test_what_cannot_run_says_why(self) -> None:
        (row,) = benchmark([Size(1, 5, 300, 8, 1, "float32")], ["em-triton"], CPU, 0.001, CEILINGS)
        assert row.seconds is None
        assert "at most 256 bases, not 300" in row.failure
        table = format_table([row], CEILINGS)
        assert row.failure in table

    def test_unknown_method(self) -> None:
        with pytest.raises(ValueError, match="no method 'em-magic'; there are em-torch"):
            list(benchmark([SMALL], ["em-magic"], CPU))

    def test_wrong_results_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = bench._em
        monkeypatch.setattr(bench, "_em", lambda x, *rest: right(x, *rest) * (1 if x.dtype == torch.float64 else 1.5))
        (row,) = benchmark([SMALL], ["em-torch"], CPU, 0.001, CEILINGS)
        assert row.error == pytest.approx(0.5, rel=1e-3)

    def test_the_check_of_non_local_attention_is_no_larger_than_the_features(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else it would run out of memory where only the method under test should."""
        checked, right = [], bench._explicit
        monkeypatch.setattr(bench, "_explicit", lambda query, *rest: checked.append(query) or right(query, *rest))
        (row,) = benchmark([Size(2, 600, 4, 8, 3, "float32")], ["non-local-sdpa"], CPU, 0.001, CEILINGS)
        assert [query.shape for query in checked] == [(1, 1, 256, 4)]
        assert 0 < row.error < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_calls_are_replayed() -> None:
    size = Size(1, 400, 16, 64, 2, "bfloat16")
    ceilings = Ceilings(1e12, {"bfloat16": 1e14})
    methods = ("em-torch", "em-compiled", "non-local-explicit", "non-local-sdpa")
    for row in benchmark([size], methods, torch.device("cuda"), 0.01, ceilings):
        assert row.failure is None
        assert row.memory > 0
        assert row.seconds > 0
        assert row.replayed > 0  # a graph was recorded; which of the two is faster is the machine's business


class TestMeasuring:
    def test_time_is_the_median_of_the_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By a clock that each call moves on, the first, which is not counted, by most."""
        clock, steps = [0.0], iter([100.0, 3.0, 1.0, 2.0])
        monkeypatch.setattr("emalab.bench.time.perf_counter", lambda: clock[0])

        def call() -> None:
            clock[0] += next(steps)

        assert time_of(call, CPU, 5.0) == 2.0

    def test_calls_are_repeated_until_their_time_is_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, calls = [0.0], []
        monkeypatch.setattr("emalab.bench.time.perf_counter", lambda: clock[0])

        def call() -> None:
            calls.append(1)
            clock[0] += 0.5

        assert time_of(call, CPU, 5.0) == 0.5
        assert len(calls) == 11  # ten of them timed

    def test_ceilings(self) -> None:
        found = measure_ceilings(CPU, ["float32"])
        assert found.bandwidth > 0
        assert found.arithmetic["float32"] > 0


class TestTable:
    def test_columns_are_aligned(self) -> None:
        rows = [
            Row("em-torch", SMALL, 0.001, "bandwidth", 0.002, 1e-6, 12_000_000),
            Row("non-local-explicit", Size(16, 16641, 64, 512, 3, "float32"), 0.1, "arithmetic", 12.0, 1e-6),
        ]
        title, head, *lines = format_table(rows, CEILINGS).splitlines()
        assert title == "copy 1 GB/s, float32 product 0.01 TFLOP/s"
        assert lines[0].split()[6:] == ["em-torch", "2.0000", "–", "1.0000", "50%", "bandwidth", "1e-06", "12.0"]
        assert len({line.index(row.bound) for line, row in zip(lines, rows, strict=True)} | {head.index("bound")}) == 1

    def test_what_is_reached_is_that_of_the_device(self) -> None:
        row = Row("em-torch", SMALL, 0.001, "bandwidth", 0.004, 1e-6, 0, replayed=0.002)
        cells = format_table([row], CEILINGS).splitlines()[-1].split()
        assert cells[7:11] == ["4.0000", "2.0000", "1.0000", "50%"]


class TestCommand:
    def test_prints_and_writes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "costs.json"
        main(["bench", "--positions", "20", "30", "--channels", "8", "--seconds", "0.001", "--out", str(out)])
        printed = capsys.readouterr().out
        record = json.loads(out.read_text())
        assert {row["size"]["n"] for row in record["rows"]} == {20, 30}
        assert {"device", "versions", "commit", "ceilings"} <= record.keys()
        assert all(row["method"] in printed for row in record["rows"])

    def test_bad_size(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["bench", "--positions", "0"])
        assert "n of at least 1, got 0" in capsys.readouterr().err
