"""The command line as a whole: help, wrong commands, and what comes between a command and the terminal."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from command_line import Capture, fails, message

from emalab.cli import main
from emalab.commands import recipes as recipes_command
from emalab.data import dataset_names
from emalab.recipes import recipe_names

COMMANDS = (
    *("study", "evaluate", "submit", "export", "convert official", "convert mmseg", "convert state-dict", "inspect"),
    *("cost", "bench", "predict", "data prepare", "data check", "recipes"),
)


class TestHelp:
    def test_lists_the_commands(self, capsys: Capture) -> None:
        fails("--help", code=0)
        text = capsys.readouterr().out
        for command in ("train", *COMMANDS):
            assert f"\n  {command} " in text

    def test_of_a_group_lists_its_commands(self, capsys: Capture) -> None:
        fails("data", "--help", code=0)
        text = capsys.readouterr().out
        assert "\n  data prepare " in text
        assert "convert" not in text
        assert all(name in text for name in dataset_names())
        fails("convert", code=2)
        assert "\n  convert mmseg " in capsys.readouterr().out

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_a_command(self, command: str, capsys: Capture) -> None:
        fails(*command.split(), "--help", code=0)
        assert f"usage: emalab {command}" in capsys.readouterr().out

    def test_of_training_lists_recipes(self, capsys: Capture) -> None:
        fails("train", "--help", code=0)
        assert "shapes-tiny" in capsys.readouterr().out

    def test_of_a_recipe_shows_every_field_with_its_value(self, capsys: Capture) -> None:
        fails("train", "camvid-lite2", "--help", code=0)
        text = capsys.readouterr().out
        for flag in ("--out", "--resume", "--seed", "--data.crop-size", "--optim.lr", "--model.ema.num-bases"):
            assert flag in text
        assert "352 480" in text

    def test_cost(self, capsys: Capture) -> None:
        main(["cost", "voc-r101"])
        rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
        assert list(rows) == ["513×513", "backbone", "reduction", "context", "classifier", "total"]
        assert rows["reduction"][:4] == ["39.872", "G", "9.438", "M"]
        main(["cost", "shapes-tiny", "--size", "32", "48"])
        assert "32×48" in capsys.readouterr().out
        fails("cost", "voc-r100")
        assert "did you mean voc-r101" in message(capsys)

    def test_recipes(self, capsys: Capture) -> None:
        main(["recipes"])
        text = capsys.readouterr().out
        lines = [line.split() for line in text.splitlines()]
        assert {name for name, *_ in filter(None, lines)} >= set(recipe_names())
        assert max(map(len, text.splitlines())) <= 100
        for name, *scores in (("voc-r101", "80.05", "81.32"), ("voc-r50-ablation", "78.52"), ("voc-r152",)):
            at = next(number for number, line in enumerate(lines) if line[:1] == [name])
            end = next(number for number, line in enumerate(lines[at + 1 :], at + 1) if line[0] in recipe_names())
            found = [word for line in lines[at:end] for word in line if re.fullmatch(r"\d\d\.\d+", word)]
            assert found == scores

    def test_version(self, capsys: Capture) -> None:
        main(["--version"])
        assert capsys.readouterr().out[0].isdigit()


class TestWrongCommand:
    def test_none(self, capsys: Capture) -> None:
        fails(code=2)
        assert "usage: emalab COMMAND" in capsys.readouterr().out

    def test_unknown(self, capsys: Capture) -> None:
        fails("trian", "shapes-tiny", code=2)
        assert "emalab: error: no command 'trian'; did you mean 'train'?\n\nusage" in capsys.readouterr().err
        fails("data", "chek", "voc", code=2)
        assert "no command 'data chek'; did you mean 'data check'?\n\nusage" in capsys.readouterr().err
        fails("--hlep", code=2)
        assert "emalab: error: no command '--hlep'\n\nusage" in capsys.readouterr().err

    def test_no_recipe(self, capsys: Capture) -> None:
        fails("train", code=2)
        assert "usage: emalab train RECIPE" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "arguments", [["--optim.rate", "1"], ["--optim.lr", "fast"], ["--precision", "8"]], ids=str
    )
    def test_flag(self, arguments: list[str], capsys: Capture) -> None:
        fails("train", "shapes-tiny", *arguments, code=2)
        assert arguments[0] in capsys.readouterr().err


def test_control_characters_do_not_reach_the_terminal(capsys: Capture) -> None:
    fails("evaluate", "\x1b[31mred\n.pt")
    assert "no checkpoint at \\x1b[31mred .pt" in message(capsys)


def test_a_reader_that_leaves_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``emalab recipes | head -1``"""

    def closed() -> None:
        raise BrokenPipeError

    monkeypatch.setattr(recipes_command, "run", closed)
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        main(["recipes"])


def test_an_interruption_needs_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes_command, "run", interrupted)
    fails("recipes", code=130)
    assert capsys.readouterr().err == "emalab: interrupted\n"
