"""Checkpoints: what goes in comes out, nothing half-written is left, nothing is executed."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import random_images, tiny_recipe, tiny_segmenter
from torch import Tensor, nn

from emalab import checkpoints, shipped
from emalab.checkpoints import (
    CheckpointError,
    PrecisionWarning,
    all_finite,
    export_segmenter,
    load_training_state,
    read_metadata,
    read_recipe,
    save_training_state,
    tensors_checksum,
)
from emalab.data.folder_labels import MAX_CLASSES
from emalab.files import write_atomically
from emalab.recipes import recipe_from_dict, recipe_to_dict
from emalab.segmenter import Segmenter

RECIPE = tiny_recipe(name="mine")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class Counting(nn.Module):
    """A context module with tensors of other kinds than weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(2**24 + 1))
        self.register_buffer("seen", torch.tensor([True, False]))
        self.register_buffer("phases", torch.tensor([1 + 2j]))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture
def model() -> Segmenter:
    return tiny_segmenter()


@pytest.fixture
def state_file(model: Segmenter, tmp_path: Path) -> Path:
    save_training_state(tmp_path / "last.pt", RECIPE, {"model": model.state_dict(), "iteration": 3})
    return tmp_path / "last.pt"


@pytest.fixture
def release(model: Segmenter, tmp_path: Path) -> Path:
    export_segmenter(model, tmp_path / "mine.safetensors", RECIPE, {"scores": {"mIoU": 0.5}, "license": "MIT"})
    return tmp_path / "mine.safetensors"


class TestTrainingState:
    def test_round_trip(self, model: Segmenter, state_file: Path) -> None:
        recipe, state = load_training_state(state_file)
        assert recipe == RECIPE
        assert state["iteration"] == 3
        assert state["model"].keys() == model.state_dict().keys()
        assert all(torch.equal(value, state["model"][key]) for key, value in model.state_dict().items())

    def test_is_a_network_too(self, model: Segmenter, state_file: Path) -> None:
        images = random_images(1, 3, 32, 32)
        loaded = Segmenter.from_pretrained(state_file)
        assert not loaded.training
        assert torch.equal(loaded(images), model(images))
        assert read_recipe(state_file) == RECIPE

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_never_holds_values_that_are_no_numbers(self, value: float, dtype: torch.dtype, state_file: Path) -> None:
        """However deep they lie; the file stays what it was."""
        before, spoiled = state_file.read_bytes(), torch.ones(7, dtype=dtype)
        spoiled[3] = value
        state = {"optimizer": {"state": [{"step": torch.tensor(1), "exp_avg": spoiled}], "lr": value}}
        with pytest.raises(
            CheckpointError, match=r"last\.pt was not written: 1 of the 7 values of optimizer\.state\.0"
        ):
            save_training_state(state_file, RECIPE, state)
        assert state_file.read_bytes() == before
        assert all_finite([torch.ones(2, dtype=dtype) * torch.finfo(dtype).max, torch.ones(0), torch.tensor(3)])

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone\.pt"):
            load_training_state(tmp_path / "gone.pt")


def test_a_checksum_tells_contents_apart() -> None:
    """Of the same bytes in another shape, type or place, too."""
    zeros = torch.zeros(2, 6)
    contents: list[Any] = [
        {"a": zeros},
        {"b": zeros},
        {"a": zeros.view(3, 4)},
        {"a": zeros.int()},
        {"a": zeros, "n": 1},
        {"a": zeros, "n": 2},
        {"a": zeros, "n": "1"},
        {"a": [zeros]},
        {"a": [[zeros]]},
        {"a": [zeros, []]},
    ]
    assert len({tensors_checksum(content) for content in contents}) == len(contents)
    assert tensors_checksum({"a": zeros.clone()}) == tensors_checksum(contents[0])


def test_weights_of_as_many_classes_as_are_possible(tmp_path: Path) -> None:
    """Such a recipe was written, and refused as too long when it was read again."""
    recipe = tiny_recipe()
    loss = replace(recipe.optim.loss, class_weights=(1 / 3,) * MAX_CLASSES)
    long = replace(recipe, model=replace(recipe.model, num_classes=MAX_CLASSES), optim=replace(recipe.optim, loss=loss))
    save_training_state(tmp_path / "last.pt", long, {"iteration": 1})
    assert load_training_state(tmp_path / "last.pt")[0] == long


class TestRelease:
    def test_round_trip_in_half_precision(self, model: Segmenter, release: Path, state_file: Path) -> None:
        loaded, images = Segmenter.from_pretrained(release), random_images(1, 3, 32, 32)
        assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.int64}
        for key, value in model.state_dict().items():
            kept = value if "running" in key or not value.is_floating_point() else value.half().float()
            assert torch.equal(loaded.state_dict()[key], kept), key
        torch.testing.assert_close(loaded(images), model(images), rtol=0.02, atol=0.02)
        assert release.stat().st_size < 0.6 * state_file.stat().st_size

    def test_tensors_that_are_no_weights_stay_as_they_are(self, tmp_path: Path) -> None:
        """A counter would lose digits in half precision, and complex numbers half of themselves."""
        name = f"{__name__}:Counting"
        model = tiny_segmenter(context=name)
        export_segmenter(model, tmp_path / "a.safetensors", tiny_recipe(model=model.config), {})
        loaded = Segmenter.from_pretrained(tmp_path / "a.safetensors", allow_code=[__name__])
        assert loaded.context.state_dict().keys() == {"steps", "seen", "phases"}
        for key, value in model.context.state_dict().items():
            found = loaded.context.state_dict()[key]
            assert found.dtype == value.dtype
            assert torch.equal(found, value)

    def test_metadata(self, release: Path) -> None:
        assert read_metadata(release) == {"recipe": RECIPE, "scores": {"mIoU": 0.5}, "license": "MIT"}
        assert read_recipe(release) == RECIPE

    def test_needs_no_backbone_weights(self, model: Segmenter, tmp_path: Path) -> None:
        """The file that training started from may be gone."""
        recipe = replace(RECIPE, model=replace(RECIPE.model, backbone_weights="gone.pt"))
        export_segmenter(model, tmp_path / "a.safetensors", recipe, {})
        bases = Segmenter.from_pretrained(tmp_path / "a.safetensors").context.bases
        assert torch.equal(bases, model.context.bases.half().float())

    def test_is_a_safetensors_file(self, model: Segmenter, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"a released network is a \.safetensors file; got .*mine\.pt"):
            export_segmenter(model, tmp_path / "mine.pt", RECIPE, {})

    @pytest.mark.parametrize(
        ("value", "problem"),
        [(math.nan, "the network is of no use"), (math.inf, "of no use"), (1e6, r"torch\.float16 is too narrow")],
    )
    def test_values_that_are_no_numbers_are_not_released(
        self, value: float, problem: str, model: Segmenter, tmp_path: Path
    ) -> None:
        broken = copy.deepcopy(model)
        broken.context.bases[:1, :3] = value
        with pytest.raises(CheckpointError, match=rf"{problem}.*: 3 of the \d+ values of context\.bases are NaN"):
            export_segmenter(broken, tmp_path / "a.safetensors", RECIPE, {})
        assert not list(tmp_path.iterdir())

    def test_weights_that_vanish_are_counted(self, model: Segmenter, tmp_path: Path) -> None:
        """Whole channels: batch norm may enlarge what they say, however small it is."""
        small = copy.deepcopy(model)
        weight = small.reduction[0].weight
        with torch.no_grad():
            weight[:2] *= 1e-9 / weight[:2].abs().amax()
            small.context.bases[3] *= 1e-6 / small.context.bases[3].abs().amax()
        count, others = weight[:2].numel(), small.context.bases[3].numel()
        message = (
            rf"a.safetensors: {count + others} weights are too small for torch.float16 and become 0 or "
            rf"lose most digits, as {count} of the {weight.numel()} of reduction.0.weight; keep float32: --dtype"
        )
        with pytest.warns(PrecisionWarning, match=message):
            export_segmenter(small, tmp_path / "a.safetensors", RECIPE, {})

    def test_a_few_small_weights_beside_others_do_not_matter(self, model: Segmenter, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PrecisionWarning)
            export_segmenter(model, tmp_path / "a.safetensors", RECIPE, {})
            few = copy.deepcopy(model)
            with torch.no_grad():
                few.reduction[0].weight[:, 0] = 1e-9
                few.reduction[0].weight[0] = 0
            export_segmenter(few, tmp_path / "b.safetensors", RECIPE, {})
            export_segmenter(few, tmp_path / "c.safetensors", RECIPE, {}, torch.float32)

    def test_shipped_by_name(self, release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shipped, "shipped_weights", lambda: {"mine": release})
        assert read_recipe("mine") == RECIPE
        with pytest.raises(FileNotFoundError, match="no checkpoint at yours; shipped ones are mine"):
            Segmenter.from_pretrained("yours")


class Evil:
    """Unpickled without care, it would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


class TestBadFiles:
    @pytest.mark.parametrize("bare", [True, False], ids=["pickle", "torch.save"])
    def test_code_is_refused_and_not_run(self, bare: bool, tmp_path: Path) -> None:
        path, trace = tmp_path / "evil.pt", tmp_path / "trace"
        content = {"format": checkpoints.FORMAT, "model": Evil(trace)}
        path.write_bytes(pickle.dumps(content, protocol=2)) if bare else torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"evil\.pt .*could run code.* refused"):
            Segmenter.from_pretrained(path)
        assert not trace.exists()
        torch.load(path, weights_only=False) if not bare else pickle.loads(path.read_bytes())
        assert trace.exists()  # the bait was real

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
    @pytest.mark.parametrize("kind", ["state_file", "release"])
    def test_truncated(self, kind: str, share: float, request: pytest.FixtureRequest) -> None:
        path: Path = request.getfixturevalue(kind)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(CheckpointError, match=f"{path.name} is damaged or no"):
            Segmenter.from_pretrained(path)

    def test_something_else(self, tmp_path: Path) -> None:
        for name in ("photo.pt", "photo.safetensors"):
            (tmp_path / name).write_bytes(b"\xff\xd8\xff\xe0 this is a JPEG" * 50)
            with pytest.raises(CheckpointError, match=f"{name} is damaged or no"):
                Segmenter.from_pretrained(tmp_path / name)

    @pytest.mark.parametrize("kind", ["pt", "safetensors"])
    def test_another_architecture(self, kind: str, tmp_path: Path) -> None:
        """A recipe beside weights that are not its own."""
        other, path = tiny_segmenter(context="non_local"), tmp_path / f"other.{kind}"
        if kind == "pt":
            save_training_state(path, RECIPE, {"model": other.state_dict()})
        else:
            export_segmenter(other, path, RECIPE, {})
        with pytest.raises(
            CheckpointError, match=rf"weights in .*other\.{kind} do not fit the network of their recipe"
        ):
            Segmenter.from_pretrained(path)

    def test_of_another_library(self, tmp_path: Path) -> None:
        save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
        torch.save({"a": torch.zeros(2)}, tmp_path / "foreign.pt")
        with pytest.raises(CheckpointError, match=r"foreign\.safetensors has no recipe that says how its network is"):
            Segmenter.from_pretrained(tmp_path / "foreign.safetensors")
        with pytest.raises(CheckpointError, match=r"foreign\.pt was not written by emalab"):
            Segmenter.from_pretrained(tmp_path / "foreign.pt")

    @pytest.mark.parametrize("kind", ["pt", "safetensors"])
    @pytest.mark.parametrize("recipe", ["", "no JSON", json.dumps({**recipe_to_dict(RECIPE), "from_the_future": 1})])
    def test_unreadable_recipe(self, kind: str, recipe: str, tmp_path: Path) -> None:
        path, header = tmp_path / f"odd.{kind}", {"format": "emalab-1", "recipe": recipe}
        torch.save(header, path) if kind == "pt" else save_file({"a": torch.zeros(2)}, path, header)
        with pytest.raises(CheckpointError, match=rf"the recipe in .*odd\.{kind} cannot be read"):
            Segmenter.from_pretrained(path)

    @pytest.mark.parametrize("kind", ["state_file", "release"])
    def test_flipped_bits(self, kind: str, model: Segmenter, request: pytest.FixtureRequest) -> None:
        """Whatever bit flips: the file is refused, or the flip lies where it changes nothing, as in padding."""
        path: Path = request.getfixturevalue(kind)
        whole, recipe = path.read_bytes(), read_recipe(path)
        expected = Segmenter.from_pretrained(path).state_dict()
        for byte in np.random.default_rng(0).integers(0, len(whole), 60):
            content = bytearray(whole)
            content[byte] ^= 1 << int(byte) % 8
            path.write_bytes(content)
            problem = ""
            try:
                loaded = Segmenter.from_pretrained(path)
            except CheckpointError as error:
                problem = str(error)
            if problem:
                assert path.name in problem
                assert "\n" not in problem
            else:
                assert loaded.config == recipe.model
                assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())

    def test_flipped_weight(self, state_file: Path) -> None:
        """The file is whole to torch, as if somebody had changed a value and written it again."""
        content = torch.load(state_file, weights_only=True)
        content["model"]["context.bases"][0, 0] += 1e-3
        torch.save(content, state_file)
        with pytest.raises(CheckpointError, match=r"last\.pt is damaged: its content does not have the checksum"):
            load_training_state(state_file)

    def test_files_from_before_checksums(self, model: Segmenter, tmp_path: Path) -> None:
        content = {"format": "emalab-1", "recipe": json.dumps(recipe_to_dict(RECIPE)), "model": model.state_dict()}
        torch.save(content, tmp_path / "old.pt")
        assert torch.equal(Segmenter.from_pretrained(tmp_path / "old.pt").context.bases, model.context.bases)

    @pytest.mark.parametrize("kind", ["pt", "safetensors"])
    def test_code_that_a_recipe_names_is_not_imported(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "bait.py").write_text(
            "import torch\nimport pathlib\npathlib.Path(__file__).with_name('trace').touch()\n"
            "class Gate(torch.nn.Identity):\n    pass\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        recipe = replace(RECIPE, model=replace(RECIPE.model, context="bait:Gate"))
        plain, path = tiny_segmenter(context="none"), tmp_path / f"own.{kind}"
        if kind == "pt":
            save_training_state(path, recipe, {"model": plain.state_dict()})
        else:
            export_segmenter(plain, path, recipe, {})
        with pytest.raises(CheckpointError, match=r"own.* needs code, bait:Gate, .*--allow-code bait"):
            Segmenter.from_pretrained(path)
        assert not (tmp_path / "trace").exists()
        Segmenter.from_pretrained(path, allow_code=("bait",))
        assert (tmp_path / "trace").exists()
        sys.modules.pop("bait")

    @pytest.mark.parametrize(
        "changes",
        [
            {"channels": 60_000, "head_channels": 60_000},
            {"backbone": "resnet50", "output_stride": 16, "backbone_blocks": (900, 900, 900, 900)},
        ],
        ids=["wide", "deep"],
    )
    def test_a_network_larger_than_its_file_is_not_built(self, changes: dict[str, Any], state_file: Path) -> None:
        content = torch.load(state_file, weights_only=True) | {"format": "emalab-1"}
        recipe = replace(RECIPE, model=replace(RECIPE.model, **changes))
        torch.save(content | {"recipe": json.dumps(recipe_to_dict(recipe))}, state_file)
        with pytest.raises(CheckpointError, match=r"weights in .*last\.pt do not fit the network of their recipe"):
            Segmenter.from_pretrained(state_file)

    def test_a_small_file_with_much_in_it(self, state_file: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(state_file) as archive, zipfile.ZipFile(tmp_path / "a.pt", "w") as packed:
            for info in archive.infolist():
                packed.writestr(info.filename, archive.read(info), zipfile.ZIP_DEFLATED)
        with pytest.raises(CheckpointError, match=r"a\.pt was refused: its entries are compressed"):
            Segmenter.from_pretrained(tmp_path / "a.pt")
        torch.save({"format": "emalab-1", "model": torch.zeros(1).expand(10**9)}, tmp_path / "b.pt")
        with pytest.raises(CheckpointError, match=r"b\.pt was refused: its tensor model is larger than the file"):
            Segmenter.from_pretrained(tmp_path / "b.pt")

    @settings(deadline=None, max_examples=200)
    @given(data=st.data())
    def test_recipes_of_wrong_types(self, data: st.DataObject) -> None:
        """Any value of JSON in any field: a recipe, or one line that names the field."""
        recipe: dict[str, Any] = json.loads(json.dumps(recipe_to_dict(RECIPE)))
        owner = recipe
        while isinstance(owner[key := data.draw(st.sampled_from(sorted(owner)))], dict) and data.draw(st.booleans()):
            owner = owner[key]
        owner[key] = data.draw(JSON)
        problem = ""
        try:
            recipe_from_dict(recipe)
        except ValueError as error:
            problem = str(error)
        assert problem.isprintable()

    def test_a_recipe_of_brackets(self, tmp_path: Path) -> None:
        for text in ("[" * 100_000, '{"a":' * 100_000, "x" * 2**21, '{"name": "\\u001b[2J"}', "[]", "3"):
            torch.save({"format": "emalab-1", "recipe": text}, tmp_path / "a.pt")
            with pytest.raises(CheckpointError, match=r"the recipe in .*a\.pt cannot be read") as refused:
                Segmenter.from_pretrained(tmp_path / "a.pt")
            assert len(str(refused.value)) < 500
            assert str(refused.value).isprintable()

    def test_weights_that_are_no_numbers(self, model: Segmenter, state_file: Path) -> None:
        content = torch.load(state_file, weights_only=True) | {"format": "emalab-1"}
        content["model"]["context.bases"][0, :2] = math.inf
        torch.save(content, state_file)
        with pytest.raises(CheckpointError, match=r"last\.pt is of no use: 2 of the \d+ values of context\.bases"):
            Segmenter.from_pretrained(state_file)

    def test_without_a_network(self, tmp_path: Path) -> None:
        save_training_state(tmp_path / "empty.pt", RECIPE, {})
        with pytest.raises(CheckpointError, match=r"empty\.pt holds no network"):
            Segmenter.from_pretrained(tmp_path / "empty.pt")


class TestAtomicWriting:
    def test_the_content_is_on_the_disk_before_the_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A loss of power between the two would otherwise leave an empty file in place of the last checkpoint."""
        events: list[str] = []
        fsync, rename = os.fsync, Path.replace
        monkeypatch.setattr(os, "fsync", lambda number: (events.append("fsync"), fsync(number))[1])
        monkeypatch.setattr(Path, "replace", lambda one, other: (events.append("rename"), rename(one, other))[1])
        write_atomically(tmp_path / "a.txt", lambda temporary: temporary.write_text("whole", encoding="utf-8"))
        assert events == ["fsync", "rename"]
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "whole"

    def test_a_failure_leaves_the_old_file_and_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")

        def fail(temporary: Path) -> None:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, fail)
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208

    def test_readers_never_see_a_part(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "file"

        def write(temporary: Path) -> None:
            temporary.write_text("part")
            assert not path.exists()
            temporary.write_text("whole")

        write_atomically(path, write)
        assert path.read_text() == "whole"

    @pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
    def umask(self, request: pytest.FixtureRequest) -> Iterator[int]:
        before = os.umask(request.param)
        yield request.param
        os.umask(before)

    def test_permissions_are_the_users_choice(self, model: Segmenter, umask: int, tmp_path: Path) -> None:
        save_training_state(tmp_path / "a.pt", RECIPE, {})
        export_segmenter(model, tmp_path / "a.safetensors", RECIPE, {})
        for path in tmp_path.iterdir():
            assert path.stat().st_mode & 0o777 == 0o666 & ~umask
