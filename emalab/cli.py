"""The command line: ``emalab COMMAND``. It finds the command, parses its arguments, and turns errors into messages.

What a command does, and what that imports, is in `emalab.commands`: here nothing may take long.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from typing import NoReturn

import tyro

from emalab.commands.messages import one_line
from emalab.tables import aligned
from emalab.version import __version__

__all__ = ["COMMANDS", "main"]

# "data check" is the function `check` of `emalab.commands.data`, "train" the function `run` of `emalab.commands.train`.
COMMANDS = {
    "train": "train a recipe, on one device or under torchrun",
    "study": "compare many runs: what is missing, side by side on all GPUs, and a summary",
    "evaluate": "score a checkpoint, class by class",
    "submit": "write predictions as the benchmark's server takes them",
    "predict": "label the pixels of photographs, folders and videos",
    "export": "release a finished run as one small file, or as ONNX",
    "convert official": "release a checkpoint of the authors' code",
    "convert mmseg": "release an EMANet of mmsegmentation",
    "convert state-dict": "release a network that you saved yourself",
    "inspect": "show where a pixel looks, or what each base stands for, as pictures",
    "cost": "count multiply-adds, parameters and activations of a recipe's network",
    "bench": "time EM attention and non-local attention here, beside what the hardware allows",
    "data prepare": "get a benchmark from its official release",
    "data check": "find what is wrong with a data set on the disk",
    "recipes": "list the recipes, with published scores",
}
_HELP = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits 0 when it did what was asked, 1 with a message when it could not, 2 for a wrong command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a file or pipe in Windows' code page has no λ: a "?" rather than an end
            stream.reconfigure(errors="replace", line_buffering=True)  # a log shows each line at once
    if words[:1] == ["--version"]:
        print(__version__)
        return
    command = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if command is None:
        _explain(words)
    formatted = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"warning: {one_line(message)}\n"
    try:
        _run(command, words[len(command.split()) :])
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as interrupt:  # a run that was stopped says how to go on
        print(f"emalab: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        raise SystemExit(128 + getattr(interrupt, "number", 2)) from None
    except (ValueError, KeyError, OSError, FloatingPointError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"emalab: error: {one_line(message)}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        warnings.formatwarning = formatted


def _run(command: str, arguments: Sequence[str]) -> None:
    module, _, function = command.partition(" ")
    run = getattr(import_module(f"emalab.commands.{module}"), function.replace("-", "_") or "run")
    if command == "train":  # which flags there are depends on the recipe
        run(arguments)
    else:
        tyro.cli(run, prog=f"emalab {command}", args=arguments)


def _explain(words: Sequence[str]) -> NoReturn:
    """Say what can be asked for: on request, where nothing is asked for, and with an error where there is no such."""
    group = words[0] if words and any(name.startswith(f"{words[0]} ") for name in COMMANDS) else None
    rest = words[1:] if group else words
    usage = _usage_of_group(group) if group else _usage()
    if not rest or rest[0] in _HELP:
        print(usage)
        raise SystemExit(0 if rest else 2)
    wrong = " ".join(words[: 2 if group else 1])
    near = get_close_matches(wrong, COMMANDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    print(f"emalab: error: no command {wrong!r}{hint}\n\n{usage}", file=sys.stderr)
    raise SystemExit(2)


def _usage() -> str:
    return (
        f"usage: emalab COMMAND ...\n\n{_table(COMMANDS)}\n\n"
        "`emalab COMMAND --help` explains each; `emalab data --help` lists the data sets.\n"
        "$EMALAB_DATA names the folder with the unpacked releases; without it, it is data/ here."
    )


def _usage_of_group(group: str) -> str:
    names = [name for name in COMMANDS if name.startswith(f"{group} ")]
    usage = f"usage: emalab {group} COMMAND ...\n\n{_table(names)}\n\n`emalab {group} COMMAND --help` explains each."
    if group == "data":
        usage += f"\nData sets: {', '.join(import_module('emalab.data.names').BENCHMARKS)}."
        usage += "\nA folder of your own (images/, masks/, classes.yaml) goes by its path: `emalab data check roofs/`."
    return usage


def _table(names: Iterable[str]) -> str:
    return "\n".join(aligned([(name, COMMANDS[name]) for name in names], indent="  "))
