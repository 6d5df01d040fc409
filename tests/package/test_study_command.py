"""`emalab study`, and `emalab train --from-record` with a file that is no record."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tiny_studies import names

from emalab.cli import main

SMALL = """
question: Do moving bases help?
test: paired by seed
base: shapes-tiny
cells:
  moving average: {changes: {}, evaluations: {T=1: {model.ema.num_iters: 1}}}
  frozen: {model.ema.maintenance: frozen}
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file with a study of six runs, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    return "small.yaml"


class TestCommand:
    """`emalab study`, from the root of a clone."""

    def test_without_a_study(self, capsys: pytest.CaptureFixture[str], small: str) -> None:
        with pytest.raises(SystemExit) as stopped:
            main(["study"])
        assert stopped.value.code == 2
        assert "usage: emalab study" in capsys.readouterr().out
        with pytest.raises(SystemExit) as stopped:
            main(["study", small, "--list"])
        assert stopped.value.code == 0
        assert "  small  2 cells  6 runs" in capsys.readouterr().out

    def test_ends_when_told_to_where_interrupts_are_ignored(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: str
    ) -> None:
        """As behind nohup and &."""

        def run(*_: object) -> None:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("the signal was not received")

        monkeypatch.setattr("emalab.commands.study.run_study", run)
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with pytest.raises(SystemExit) as end:
                main(["study", small, "--accelerator", "cpu", "--out", str(tmp_path)])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        assert end.value.code == 130

    def test_plan_then_summary(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], small: str) -> None:
        out = ["--out", "runs", "--accelerator", "cpu"]
        main(["study", small, *out, "--dry-run", "--seconds-per-run", "30", "--devices", "1"])
        text = capsys.readouterr().out
        assert "frozen          seed 0 missing, 1 missing, 2 missing" in text
        assert "question: Do moving bases help?" in text
        assert "planned seeds: 3 for each cell\n" in text
        assert "6 runs, 0 done, 6 missing: 3.0 minutes on 1 at a time" in text
        main(["study", small, *out, "--summary"])
        assert "0 of 6 runs have a record" in capsys.readouterr().out
        assert names(tmp_path) == [small]

    def test_plan_names_the_cells_of_other_seeds(self, capsys: pytest.CaptureFixture[str], small: str) -> None:
        more = "  K=4: {changes: {model.ema.num_bases: 4}, seeds: 5}\n"
        Path(small).write_text(Path(small).read_text() + more)
        main(["study", small, "--accelerator", "cpu", "--dry-run"])
        assert "planned seeds: 3 for each cell, except K=4 5\n" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["small.yaml:smal"], "no study 'smal' in small.yaml; did you mean small"),
            (["small.yaml", "--shard", "2"], "--shard is I/N"),
            (["small.yaml", "--shard", "2/2"], "shard 2 of 2"),
            (["small.yaml", "--devices", "0"], "--devices 0: there are "),
            (["small.yaml", "--only", "frosen", "--dry-run"], "did you mean 'frozen'"),
            (["small.yaml", "--summary", "--evaluation", "T=2"], "no evaluation 'T=2'; there are: T=1"),
        ],
    )
    @pytest.mark.usefixtures("small")
    def test_mistakes(self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            main(["study", *words, *(["--accelerator", "cpu"])])
        assert stopped.value.code == 1
        assert message in capsys.readouterr().err

    def test_from_a_file_that_is_no_record(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name, text, message in (
            ("gone.json", None, "no record at "),
            ("cut.json", '{"recipe"', "is not a result record"),
            ("other.json", "{}", "is not the record of a run: it has no recipe"),
            ("new.json", '{"recipe": {"magic": 1}}', "recipe has no field 'magic'"),
        ):
            if text is not None:
                (tmp_path / name).write_text(text)
            with pytest.raises(SystemExit):
                main(["train", "--from-record", str(tmp_path / name)])
            assert message in capsys.readouterr().err
