"""Mean and deviation of channels: computed once, kept in recipe, checkpoint and record, and used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CPU, short_train, tiny_recipe
from tiny_data import SIZE, save_bands, save_mask

from emalab.channel_statistics import channel_statistics, with_statistics
from emalab.checkpoints import load_training_state, read_recipe
from emalab.data import load_dataset
from emalab.evaluation import evaluate
from emalab.recipes import Recipe, recipe_from_dict
from emalab.segmenter import Segmenter
from emalab.segmenter_config import SMALLEST_STD
from emalab.trainer import Trainer, train

LEVELS = (30, 120, 200, 60, 0)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Two splits of two images of five channels, each around a level of its own; the last one is flat."""
    root, random = tmp_path / "bands", np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(2):
            noise = random.integers(-20, 21, (*SIZE, 5)) * np.array([1, 1, 1, 1, 0])
            save_bands(root / f"images/{split}/{index}.npy", (np.array(LEVELS) + noise).astype(np.uint8))
            save_mask(root / f"masks/{split}/{index}.png", noise[..., 0] > 0)
    (root / "classes.yaml").write_text("classes: [low, high]\n")
    return f"{root}/"


def recipe(folder: str, **model: object) -> Recipe:
    base = tiny_recipe(data={"name": folder, "crop_size": (16, 16)})
    return replace(base, model=replace(base.model, **{"num_classes": 2, "in_channels": 5, **model}))


def test_are_those_of_all_pixels(folder: str) -> None:
    data = load_dataset(folder, "train")
    pixels = np.concatenate([np.asarray(data[index].image).reshape(5, -1) for index in range(2)], axis=1) / 255
    mean, std = channel_statistics(data)
    np.testing.assert_allclose(mean, pixels.mean(axis=1), atol=5e-5)
    np.testing.assert_allclose(std[:4], pixels.std(axis=1)[:4], atol=5e-5)
    assert std[4] == SMALLEST_STD


def test_training_writes_them_into_checkpoint_and_record(folder: str, tmp_path: Path) -> None:
    result = train(recipe(folder), tmp_path / "run", CPU)
    mean, std = channel_statistics(load_dataset(folder, "train"))
    assert result.model.normalize.values == (mean, std)
    assert read_recipe(tmp_path / "run/last.pt").model.channel_mean == mean
    assert recipe_from_dict(result.record["recipe"]).model.channel_std == std
    again = Segmenter.from_pretrained(tmp_path / "run/last.pt")
    assert again.normalize.values == (mean, std)
    scores = evaluate(again, load_dataset(folder, "val"))
    assert scores.miou == result.scores["single scale"].miou


def test_padding_of_crops_is_zero_for_the_network(folder: str, tmp_path: Path) -> None:
    trainer = Trainer(replace(recipe(folder), data=replace(recipe(folder).data, crop_size=(64, 64))), tmp_path, CPU)
    images, masks = next(iter(trainer._loader()))
    padding = trainer.model.normalize(images)[0][:, masks[0] == 255]
    assert padding.numel()
    assert padding.abs().max() <= 0.5 / 255 / SMALLEST_STD + 1e-6  # rounded to a whole gray level


def test_what_the_recipe_says_is_kept(folder: str, tmp_path: Path) -> None:
    mean, std = (0.5,) * 5, (0.25,) * 5
    result = train(recipe(folder, channel_mean=mean, channel_std=std), tmp_path / "run", CPU)
    assert result.model.normalize.values == (mean, std)


def test_a_resumed_run_keeps_its_own(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(recipe(folder), tmp_path / "whole", CPU)
    half = replace(recipe(folder), optim=replace(recipe(folder).optim, iterations=8))
    trainer = Trainer(half, tmp_path / "half", CPU)
    trainer.model.train()
    for images, masks in trainer._loader():
        trainer.step(images, masks)
        if trainer.iteration == 4:
            break
    trainer.save(trainer.last)
    monkeypatch.setattr("emalab.channel_statistics.channel_statistics", lambda *_, **__: pytest.fail("read again"))
    resumed = train(half, tmp_path / "half", replace(CPU, resume=True))
    assert resumed.model.normalize.values == whole.model.normalize.values
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


def test_a_network_for_as_many_channels_hands_its_own_on(folder: str, tmp_path: Path) -> None:
    first = train(recipe(folder, channel_mean=(0.3,) * 5, channel_std=(0.2,) * 5), tmp_path / "first", CPU)
    path = str(tmp_path / "first/last.pt")
    second = Trainer(replace(recipe(folder), init_from=path), tmp_path / "second", CPU)
    assert second.model.normalize.values == first.model.normalize.values
    rgb = train(tiny_recipe(), tmp_path / "rgb", CPU)
    third = with_statistics(
        replace(recipe(folder), init_from=str(tmp_path / "rgb/last.pt")),
        load_dataset(folder, "train"),
        tmp_path / "none.pt",
        tmp_path,
    )
    assert third.model.channel_mean == channel_statistics(load_dataset(folder, "train"))[0]
    assert rgb.record["recipe"]["model"]["channel_mean"] == ()


def test_rgb_images_are_not_read_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emalab.channel_statistics.channel_statistics", lambda *_, **__: pytest.fail("read"))
    result = short_train(tiny_recipe(), tmp_path)
    assert read_recipe(tmp_path / "last.pt").model == tiny_recipe().model
    assert load_training_state(tmp_path / "last.pt")[1]["spec"]["channels"] == 3
    assert result.model.normalize.values == ((0.5,) * 3, (0.5,) * 3)


def test_lines_say_what_was_computed(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_recipe(), tmp_path / "rgb", CPU)
    start = replace(recipe(folder), init_from=str(tmp_path / "rgb/last.pt"))
    train(start, tmp_path / "run", replace(CPU, progress=True))
    printed = capsys.readouterr().out
    mean, _ = channel_statistics(load_dataset(folder, "train"))
    assert f"channels of train: mean {', '.join(f'{value:.3g}' for value in mean)}; deviation 0.0" in printed
    assert f"backbone.layers.0.weight of {tmp_path}/rgb/last.pt adapted from 3 channels to 5" in printed


@pytest.mark.parametrize("count", [3, 4])
def test_another_number_than_the_datas_is_refused(count: int, folder: str, tmp_path: Path) -> None:
    message = f"the network takes images with {count} channels, those of .* have 5; set model.in_channels to 5, or take"
    with pytest.raises(ValueError, match=message):
        train(recipe(folder, in_channels=count), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_a_graph_is_recorded_for_these_channels(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = Trainer(recipe(folder), tmp_path, CPU)._execution
    sizes: list[torch.Size] = []
    monkeypatch.setattr(execution, "_to_record", True)
    monkeypatch.setattr(execution, "_record", lambda images, masks: sizes.append(images.shape))
    execution.prepare()
    assert sizes == [(4, 5, 16, 16)]
