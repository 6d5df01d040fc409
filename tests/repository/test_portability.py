"""What other machines lack: Windows' encodings, names and locks; Apple's float64; processes that are not forked."""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from types import ModuleType
from typing import Any

import pytest
import torch
from experiments.studies import STUDIES
from tiny import scenes, tiny_recipe
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tracked import tracked_files

from emalab import evaluation, get_recipe, metrics
from emalab.cli import main
from emalab.data import get_spec, load_dataset
from emalab.data.loader import training_loader
from emalab.data.transforms import TrainTransform
from emalab.metrics import scores_from_confusion
from emalab.studies.folder import StudyFolder
from emalab.trainer import RunOptions, Trainer

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "emalab").rglob("*.py"))
SCRIPTS = sorted((ROOT / "book").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))

UNIX_ONLY = {"crypt", "curses", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
SIGNALS = {"SIGINT", "SIGTERM", "Signals"}  # of those that Windows has, the ones in use
# Modules whose `open` has nothing to do with text, and what we call a member of an archive.
OPENS_BYTES = {"Image", "av", "member", "os", "tarfile", "zipfile"}


def code_of(path: Path) -> list[str]:
    """The source of a module, or of a notebook's cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return [text]
    return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


def without_encoding(source: str) -> Iterator[str]:
    """Calls that read or write text in whatever encoding the machine prefers."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or any(keyword.arg == "encoding" for keyword in call.keywords):
            continue
        match call.func:
            case ast.Attribute(value=ast.Name(id=module), attr="open") if module in OPENS_BYTES:
                continue
            case ast.Attribute(attr="read_text" | "write_text"):
                yield ast.unparse(call)
            case ast.Attribute(attr="open") | ast.Name(id="open"):
                modes = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
                if not any("b'" in ast.unparse(mode) for mode in modes):
                    yield ast.unparse(call)


@pytest.mark.parametrize("path", [*PACKAGE, *SCRIPTS, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_name_their_encoding(path: Path) -> None:
    """Windows would read λ in its own code page."""
    assert not [call for source in code_of(path) for call in without_encoding(source)]


def test_calls_without_encoding_are_found() -> None:
    source = "open(p); p.open('w'); p.read_text(); p.write_text(t); p.open('rb'); open(p, mode='wb'); Image.open(p)"
    assert list(without_encoding(source)) == ["open(p)", "p.open('w')", "p.read_text()", "p.write_text(t)"]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_nothing_that_only_unix_has(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or alias.name for node in imports for alias in node.names}
    assert not {name.split(".")[0] for name in names} & UNIX_ONLY
    attributes = [node for node in ast.walk(module) if isinstance(node, ast.Attribute)]
    signals = {node.attr for node in attributes if ast.unparse(node.value) == "signal" and node.attr.startswith("SIG")}
    assert not signals - SIGNALS - {"SIG_IGN", "SIG_DFL"}


def is_legal_on_windows(name: str) -> bool:
    parts = name.split("/")
    reserved = PureWindowsPath(name).is_reserved() if sys.version_info < (3, 13) else False
    return not reserved and not set(name) & set('<>:"|?*\\') and not any(part.endswith((".", " ")) for part in parts)


def test_files_can_be_checked_out_anywhere() -> None:
    names = tracked_files(ROOT)
    assert not [name for name in names if not is_legal_on_windows(name) or len(name) > 150]
    assert len({name.lower() for name in names}) == len(names)


def test_runs_of_studies_have_legal_names() -> None:
    """They are names of files and folders."""
    runs = [run.name for study in STUDIES.values() for run in study.runs()]
    assert runs
    assert not [name for name in runs if not is_legal_on_windows(name)]
    assert len({name.lower() for name in runs}) == len(set(runs))
    assert not is_legal_on_windows("a:b")


def test_claims_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what Windows has in place of `fcntl`: a lock on the first byte, which the second who asks does not get."""
    held: list[int] = []

    def locking(file: int, mode: int, count: int) -> None:
        if held:
            raise PermissionError(13, "Permission denied")
        held.append(file)

    msvcrt = ModuleType("msvcrt")
    msvcrt.locking, msvcrt.LK_NBLCK = locking, 2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    (run, *_) = STUDIES["shapes-tiny"].runs()
    module = importlib.import_module("emalab.studies.folder")
    monkeypatch.setattr(module.sys, "platform", "win32")
    with StudyFolder(tmp_path).claim(run) as mine, StudyFolder(tmp_path).claim(run) as too:
        assert mine
        assert not too


@pytest.mark.parametrize("command", [["recipes"], ["study", "--list"], ["train", "--help"]], ids=" ".join)
def test_output_that_a_code_page_cannot_hold(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows a pipe has no λ."""
    with (tmp_path / "out").open("w", encoding="cp1252") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with suppress(SystemExit):
            main(command)
    assert "?" in (tmp_path / "out").read_text(encoding="cp1252")


def test_loaders_can_be_sent_to_processes_that_are_not_forked() -> None:
    """Windows and macOS start them anew."""
    recipe = get_recipe("shapes-tiny")
    data = load_dataset(recipe.data.name, recipe.data.train_split)
    transform = TrainTransform(recipe.data.crop_size, recipe.data.scale_range)
    loader = training_loader(data, transform, batch_size=2, num_iterations=1, num_workers=1)
    dataset, start = pickle.loads(pickle.dumps((loader.dataset, loader.worker_init_fn)))
    assert callable(start)
    key = next(iter(loader.batch_sampler))[0]
    for sent, ours in zip(dataset[key], loader.dataset[key], strict=True):
        assert torch.equal(sent, ours)


class NoFloat64(TorchDispatchMode):
    """Fails as Apple's GPUs do."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            raise TypeError(f"{operation} makes float64, which MPS has not")
        return result


class OnApple(Tensor):
    """Counts on a device without float64."""

    def double(self) -> Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self) -> Tensor:
        return self.as_subclass(Tensor)


def test_training_and_evaluation_need_no_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the counts: the scores are computed from them on the CPU."""
    counts: list[Tensor] = []
    monkeypatch.setattr(metrics, "scores_from_confusion", lambda confusion, *_: counts.append(confusion))
    options = RunOptions(progress=False, accelerator="cpu")
    trainer = Trainer(tiny_recipe(), tmp_path / "run", options, scenes(), scenes())
    batches = iter(trainer._loader())
    images, masks = next(batches)
    with NoFloat64():
        trainer._train_mode()
        trainer.step(images, masks)
        evaluation.evaluate(trainer.model, trainer.eval_data, (0.5, 1.0), flip=True)
    assert counts[0].sum() > 0
    scores = scores_from_confusion(counts[0].as_subclass(OnApple), get_spec("shapes-pooled"))
    assert scores == scores_from_confusion(counts[0], get_spec("shapes-pooled"))
    with pytest.raises(TypeError, match="float64"), NoFloat64():
        torch.ones(2).double()
