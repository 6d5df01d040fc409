"""Augmentations of one's own: what they get, what they may return, and that a seed decides what they draw."""

from __future__ import annotations

import doctest
import functools
import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CPU, scenes, short_train, tiny_recipe, tiny_segmenter
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import v2
from trained import assert_same, final_state, train_to_first_checkpoint

from emalab.cli import main
from emalab.data import DataError, augmentation
from emalab.data.augmentation import OwnAugmentation, augment_name, find_augment
from emalab.data.loader import AugmentedDataset, IterationBatches, SampleKey, training_loader, worker_ended
from emalab.data.transforms import TrainTransform
from emalab.options import RunOptions
from emalab.recipes import DataConfig, recipe_from_dict
from emalab.results import load_records
from emalab.trainer import Trainer, train

Pair = tuple[Tensor, Tensor]

PADDING = {tv_tensors.Image: 0, tv_tensors.Mask: 255}
PERSPECTIVE = v2.Compose([v2.RandomPerspective(0.5, p=0.8, fill=PADDING), v2.GaussianBlur(3)])


def perspective(image: Tensor, mask: Tensor, generator: Generator) -> Pair:
    return PERSPECTIVE(tv_tensors.Image(image), tv_tensors.Mask(mask))


def darker(image: Tensor, mask: Tensor, generator: Generator) -> Pair:
    """Every source of random numbers: torch's own and global one, numpy's and Python's."""
    drawn = torch.rand((), generator=generator) + torch.rand(()) + np.random.random() + random.random()  # noqa: NPY002
    return (image * (float(drawn) / 4)).byte(), mask


def loaded(function: Any, seed: int = 0, **options: Any) -> list[Pair]:
    data = scenes(6)
    transform = nn.Sequential(TrainTransform((32, 32)), OwnAugmentation(function, data.spec))
    return list(training_loader(data, transform, batch_size=3, num_iterations=4, seed=seed, **options))


def equal(one: list[Pair], other: list[Pair]) -> bool:
    return all(
        torch.equal(a, b) for mine, theirs in zip(one, other, strict=True) for a, b in zip(mine, theirs, strict=True)
    )


class TestDraws:
    @pytest.mark.parametrize("function", [darker, perspective])
    def test_a_seed_decides_them(self, function: Any) -> None:
        first = loaded(function)
        torch.rand(3), np.random.random(), random.random()  # noqa: NPY002
        assert equal(loaded(function), first)
        assert not equal(loaded(function, seed=1), first)

    def test_workers_change_nothing(self) -> None:
        assert equal(loaded(darker, num_workers=2), loaded(darker))

    def test_processes_that_are_not_forked(self) -> None:
        """As on macOS and Windows: each imports the function by its name."""
        data = scenes(6)
        dataset = AugmentedDataset(data, OwnAugmentation(darker, data.spec))
        batches = IterationBatches(6, 2, 2)
        here, there = (
            list(DataLoader(dataset, batch_sampler=batches, **options))
            for options in ({}, {"num_workers": 1, "multiprocessing_context": "spawn"})
        )
        assert equal(here, there)

    def test_the_next_sample_and_the_program_draw_what_they_would_have(self) -> None:
        random.seed(3), np.random.seed(3)  # noqa: NPY002
        expected = random.random(), np.random.random()  # noqa: NPY002
        random.seed(3), np.random.seed(3)  # noqa: NPY002
        loaded(darker)
        assert (random.random(), np.random.random()) == expected  # noqa: NPY002

    def test_other_transforms_draw_what_they_would_have(self) -> None:
        """An augmentation that changes nothing changes nothing."""
        data = scenes(6)
        plain = list(training_loader(data, TrainTransform((32, 32), photometric=0.5), batch_size=3, num_iterations=2))
        transform = nn.Sequential(
            TrainTransform((32, 32), photometric=0.5), OwnAugmentation(lambda image, mask, _: (image, mask), data.spec)
        )
        assert equal(list(training_loader(data, transform, batch_size=3, num_iterations=2)), plain)

    def test_its_numbers_are_not_those_of_the_other_transforms(self) -> None:
        drawn = []

        def draw(image: Tensor, mask: Tensor, generator: Generator) -> Pair:
            drawn.append(torch.rand((), generator=generator).item())
            return image, mask

        data = AugmentedDataset(scenes(6), OwnAugmentation(draw, scenes().spec))
        data[SampleKey(0, 17)]
        assert drawn[0] != torch.rand((), generator=Generator().manual_seed(17)).item()


def returns(result: Callable[[Tensor, Tensor], Any]) -> Any:
    def wrong(image: Tensor, mask: Tensor, generator: Generator) -> Any:
        return result(image, mask)

    return wrong


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda image, mask: None, r"returned a NoneType; return the image and the labels, as a pair"),
        (lambda image, mask: image, r"returned a Tensor; return"),
        (lambda image, mask: (image, mask, 1), r"returned 3 values; return"),
        (lambda image, mask: (image.numpy(), mask), r"returned a ndarray for the image; return a tensor"),
        (lambda image, mask: (image, mask.tolist()), r"returned 64 values for the labels; return a tensor"),
        (lambda image, mask: (image / 255, mask), r"image float32 of 3 × 64 × 64; they must stay uint8 of 3 × 64 × 64"),
        (lambda image, mask: (image[:, 1:], mask), r"image uint8 of 3 × 63 × 64; they must stay uint8 of 3 × 64 × 64"),
        (lambda image, mask: (image, mask[None]), r"labels uint8 of 1 × 64 × 64; they must stay uint8 of 64 × 64"),
        (lambda image, mask: (image, mask.long()), r"labels int64 of 64 × 64; they must stay uint8 of 64 × 64"),
        (
            lambda image, mask: (image.to_sparse(), mask),
            r"image as a tensor of the layout torch\.sparse_coo; return it",
        ),
        (lambda image, mask: (image, mask.fill_(7)), r"the label 7; labels are 0 to 4, and 255 for ignored pixels"),
        (lambda image, mask: sys.exit(3), r"failed with SystemExit: 3 \(test_augmentation\.py, line \d+\)"),
        (lambda image, mask: 1 // 0, r"failed with ZeroDivisionError: .* \(test_augmentation\.py, line \d+\)"),
    ],
)
def test_mistakes_are_one_line_that_names_the_function(result: Any, message: str) -> None:
    line = error_of(returns(result))
    assert line.startswith(f"the augmentation {__name__}:returns.<locals>.wrong ")
    assert re.search(message, line), line
    assert re.search(r"; the sample was val-0000\d$", line)


def test_workers_report_the_same_line() -> None:
    wrong = returns(lambda image, mask: (image, mask.long()))
    assert error_of(wrong, num_workers=1) == error_of(wrong)


def error_of(function: Any, num_workers: int = 0) -> str:
    """The one line of the error for a sample."""
    data = scenes(2)
    own = OwnAugmentation(function, data.spec)
    with pytest.raises(DataError) as found:
        next(iter(training_loader(data, own, batch_size=1, num_iterations=1, num_workers=num_workers)))
    (line,) = str(found.value).splitlines()
    return line


def test_a_wrong_signature() -> None:
    data = scenes(1)
    with pytest.raises(
        DataError, match=r"failed with TypeError: .* takes 2 positional arguments but 3 were given; the"
    ):
        OwnAugmentation(lambda image, mask: (image, mask), data.spec)(data[0])


def test_the_sample_itself_stays() -> None:
    data = scenes(1)
    sample = data[0]
    before = sample.image.clone()
    OwnAugmentation(returns(lambda image, mask: (image.zero_(), mask)), data.spec)(sample)
    assert torch.equal(sample.image, before)


def test_what_cannot_be_sent_to_other_processes() -> None:
    data = scenes(1)
    transform = OwnAugmentation(lambda image, mask, _: (image, mask), data.spec)
    loader = DataLoader(AugmentedDataset(data, transform), num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(ValueError, match=r"<lambda> cannot be sent to the worker processes .*; define it in a module"):
        next(iter(loader))


class TestNames:
    def test_there_and_back(self) -> None:
        name = augment_name(darker)
        assert name == f"{__name__}:darker"
        assert find_augment(name) is darker

    @pytest.mark.parametrize(
        "function", [lambda image, mask, _: (image, mask), functools.partial(darker), PERSPECTIVE, returns(max)]
    )
    def test_every_name_fits_into_a_recipe(self, function: Any) -> None:
        name = augment_name(function)
        assert recipe_from_dict({"data": {"augment": name}}).data.augment == name

    @pytest.mark.parametrize("name", ["darker", "a b:c", "a:", "os:system('x')", ":f"])
    def test_what_is_no_name(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"data\.augment must be a function of your own as module:function; got "):
            DataConfig(augment=name)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("no_such_module:f", r"data\.augment 'no_such_module:f' cannot be imported: No module named .*PYTHONPATH"),
            ("emalab.data.augmentation:nothing", r"has no function nothing; .*train\(\.\.\., augment="),
            ("emalab.data.augmentation:__doc__", r"has no function __doc__"),
            (f"{__name__}:returns.<locals>.wrong", r"has no function returns\.<locals>\.wrong"),
        ],
    )
    def test_what_is_not_there(self, name: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            Trainer(tiny_recipe(data={"augment": name}), tmp_path / "run", CPU)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            ("x = [\n1 / 0]", r"ZeroDivisionError: division by zero \(broken\.py, line 2\)"),
            ("def f(:", r"SyntaxError: .* \(broken\.py, line 1\)"),
            ("raise RuntimeError('two\\nlines')", r"RuntimeError: two lines \(broken\.py, line 1\)"),
        ],
    )
    def test_code_that_fails(self, code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An augmentation and a context module; both were a traceback."""
        (tmp_path / "broken.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        message = f"'broken:f' cannot be imported: its code failed with {reason}$"
        with pytest.raises(ValueError, match=f"^data\\.augment {message}"):
            find_augment("broken:f")
        with pytest.raises(ValueError, match=f"^context {message}"):
            tiny_segmenter(context="broken:f")


def end_of_worker(image: Tensor, mask: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """As the kernel does it to a process where memory is short."""
    assert get_worker_info()  # not this process
    os.kill(os.getpid(), signal.SIGKILL)
    return image, mask


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed in another way there")
class TestWorkerThatIsKilled:
    def test_while_the_loader_waits(self) -> None:
        data = scenes(2)
        own = OwnAugmentation(end_of_worker, data.spec)
        loader = training_loader(data, own, batch_size=1, num_iterations=1, num_workers=1)
        with pytest.raises(
            ChildProcessError, match=r"images ended before its time \(.*pid.*take fewer .*--num-workers"
        ):
            next(iter(loader))

    def test_in_a_run(self, tmp_path: Path) -> None:
        options = RunOptions(accelerator="cpu", progress=False, num_workers=1)
        with pytest.raises(ChildProcessError, match="images ended before its time"):
            train(tiny_recipe(), tmp_path, options, train_data=scenes(), eval_data=scenes(), augment=end_of_worker)

    def test_while_the_main_process_does_something_else(self) -> None:
        assert worker_ended(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
        assert not worker_ended(RuntimeError("Caught RuntimeError in DataLoader worker process 0."))


class TestTraining:
    def test_by_name_is_by_function(self, tmp_path: Path) -> None:
        result = train(tiny_recipe(), tmp_path / "given", CPU, eval_data=scenes(), augment=darker)
        assert result.record["recipe"]["data"]["augment"] == f"{__name__}:darker"
        short_train(tiny_recipe(data={"augment": f"{__name__}:darker"}), tmp_path / "named")
        assert_same(tmp_path / "given", tmp_path / "named")
        short_train(tiny_recipe(), tmp_path / "without")
        one, other = (final_state(tmp_path / name)["classifier.2.bias"] for name in ("given", "without"))
        assert not torch.equal(one, other)

    def test_resumes_bit_for_bit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe = tiny_recipe(data={"augment": f"{__name__}:darker", "rotation": 20.0})
        short_train(recipe, tmp_path / "whole")
        train_to_first_checkpoint(recipe, tmp_path / "stopped", monkeypatch)
        with pytest.raises(ValueError, match=r"data\.augment: .*:darker' there, None here"):
            short_train(tiny_recipe(data={"rotation": 20.0}), tmp_path / "stopped", resume=True)
        short_train(recipe, tmp_path / "stopped", resume=True, num_workers=1)
        assert_same(tmp_path / "stopped", tmp_path / "whole")


OWN = """
open("imported", "w").close()

def mirror(image, mask, generator):
    return image.flip(-1), mask.flip(-1)

def blend(image, mask, generator):
    return image, mask.float()
"""
SHORT = ["--optim.iterations", "1", "--accelerator", "cpu", "--no-progress", "--data.eval-split", "val/held-out"]


class TestCommands:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "own.py").write_text(OWN)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, "own", None)  # removed afterwards
        del sys.modules["own"]
        return tmp_path

    def refused(self, capsys: pytest.CaptureFixture[str], *words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    def test_train(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["train", "shapes-tiny", "--data.augment", "own:mirror", *SHORT, "--out", "run"])
        assert load_records(folder / "run", "record.json")[0]["recipe"]["data"]["augment"] == "own:mirror"
        capsys.readouterr()
        line = self.refused(
            capsys,
            "train",
            "shapes-tiny",
            "--data.augment",
            "own:blend",
            *SHORT,
            "--out",
            "other",
            "--num-workers",
            "1",
        )
        assert line.startswith(
            "emalab: error: the augmentation own:blend returned labels float32 of 64 × 64; they must"
        )

    def test_files_import_nothing_by_themselves(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A recipe's file and a record; a checkpoint is scored without what it was trained with."""
        main(["train", "shapes-tiny", "--data.augment", "own:mirror", *SHORT, "--out", "run"])
        del sys.modules["own"]
        (folder / "imported").unlink()
        (folder / "own.yaml").write_text(json.dumps({"base": "shapes-tiny", "data": {"augment": "own:mirror"}}))
        capsys.readouterr()
        for words in (["own.yaml"], ["--from-record", "run/record.json"]):
            line = self.refused(capsys, "train", *words, *SHORT, "--out", "again")
            assert "the augmentation needs code, own:mirror, which a file may not import by itself" in line
            assert "--allow-code own" in line
        main(["evaluate", "run/last.pt"])
        assert not (folder / "imported").exists()
        main(["train", "own.yaml", "--data.augment", "None", *SHORT, "--out", "without"])
        assert not (folder / "imported").exists()
        main(["train", "own.yaml", *SHORT, "--out", "allowed", "--allow-code", "own"])
        assert (folder / "imported").exists()


def test_the_example_runs() -> None:
    (example,) = [
        test
        for test in doctest.DocTestFinder().find(OwnAugmentation, "example", module=augmentation)
        if test.examples and test.name == "example"
    ]
    assert doctest.DocTestRunner().run(example).failed == 0
