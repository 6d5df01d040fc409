"""The scripts behind the chapter "Beyond segmentation", on small synthetic input, and the records they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import reduce
from experiments import beyond_classification as classification
from experiments import beyond_resolution as resolution
from experiments import beyond_video as video
from lab import subsets
from lab.frames import carried, climb
from lab.ranking import average_precision
from tiny_data import make_voc
from torch import Tensor

from emalab.backbones import build_backbone
from emalab.data import load_dataset
from emalab.em import em_attention, log_likelihood, normalize_bases

RESULTS = Path(__file__).parents[2] / "book/results"


def record(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"beyond-{name}.json").read_text())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestAveragePrecision:
    scores = random(40).double().numpy()
    labels = (random(40, seed=1) > 0.5).double().numpy()

    def test_is_the_mean_precision_at_the_positives(self) -> None:
        (ours,) = average_precision(self.scores, self.labels, np.ones((1, 40)))
        precisions = [self.labels[self.scores >= score].mean() for score in self.scores[self.labels == 1]]
        assert ours == pytest.approx(np.mean(precisions))

    def test_images_of_weight_zero_do_not_count(self) -> None:
        weights = np.zeros((1, 40))
        weights[:, ::2] = 1
        (ours,) = average_precision(self.scores, self.labels, weights)
        (of_half,) = average_precision(self.scores[::2], self.labels[::2], np.ones((1, 20)))
        assert ours == pytest.approx(of_half)

    def test_by_hand(self) -> None:
        """Ranks 1 and 3 are positive: (1/1 + 2/3) / 2. The second image three times: (1/1 + 2/5) / 2."""
        scores, labels = np.array([3.0, 2.0, 1.0]), np.array([1.0, 0.0, 1.0])
        found = average_precision(scores, labels, np.array([[1, 1, 1], [1, 3, 1], [0, 1, 0]]))
        np.testing.assert_allclose(found, [5 / 6, 0.7, np.nan])


class TestHeads:
    pools = classification.heads(channels=8, number=4)

    @pytest.mark.parametrize("name", pools)
    def test_logits_and_gradients(self, name: str) -> None:
        torch.manual_seed(0)
        head = classification.Head(self.pools[name](), 8, 3)
        logits = head(random(5, 16, 8))
        assert logits.shape == (5, 3)
        logits.square().sum().backward()
        assert {n for n, p in head.named_parameters() if p.requires_grad and p.grad is None} == set()

    def test_mean_of_em_tokens_weighted_by_their_shares_is_the_average(self) -> None:
        torch.manual_seed(0)
        pool, x = classification.EMPool(8, 4, learned=False).eval(), random(2, 16, 8)
        shares = em_attention(x, pool.bases).responsibilities.mean(dim=1)
        torch.testing.assert_close((shares[:, None] @ pool(x)), reduce(x, "b n c -> b 1 c", "mean"))

    def test_stored_bases_move_in_training_alone(self) -> None:
        pool = classification.EMPool(8, 4, learned=False).eval()
        before = pool.bases.clone()
        pool(random(2, 16, 8))
        assert torch.equal(pool.bases, before)
        pool.train()(random(2, 16, 8))
        assert not torch.equal(pool.bases, before)

    def test_cost_counts_the_linear_head(self) -> None:
        number = len(classification.CLASSES)
        expected = {"multiply_adds": 8 * number, "parameters": 8 * number + number}
        assert classification.cost(self.pools["average"], 8) == expected

    def test_frozen_convolution_is_no_parameter(self) -> None:
        frozen, trained = (
            classification.cost(self.pools[name], 8) for name in ("convolutions, first frozen", "convolutions")
        )
        assert trained["parameters"] - frozen["parameters"] == 8 * 8 + 8
        assert trained["multiply_adds"] == frozen["multiply_adds"]


class TestClassification:
    def made_up(self, number: int, seed: int) -> classification.Images:
        """Two classes, each visible at one position in sixteen."""
        labels = (random(number, 2, seed=seed) > 0).float()
        tokens = 0.1 * random(number, 16, 4, seed=seed + 1)
        tokens[:, 3, :2] += 4 * labels
        return classification.Images(tokens, labels)

    def test_heads_learn_and_are_compared(self) -> None:
        every = classification.heads(channels=4, number=2)
        pools = {name: every[name] for name in ("average", "every position", "EM")}
        train, val = self.made_up(320, 0), self.made_up(100, 10)
        rows = classification.compare(train, val, pools, seeds=(0, 1), epochs=4, rates=(1e-4, 0.1), resamples=50)
        assert list(rows) == list(pools)
        for name, row in rows.items():
            assert row["rate"] == 0.1, name
            assert np.shape(row["average_precision"]) == (2, 2)
            assert np.mean(row["average_precision"]) > 0.9, name
        assert rows["average"]["over_images"] == [0, 0]
        low, high = rows["EM"]["over_images"]
        assert low <= high

    def test_same_seed_same_head(self) -> None:
        pool, data = classification.heads(4, 2)["EM"], self.made_up(128, 0)
        first, second = (classification.train_head(pool, data, 0.1, seed=3, epochs=1) for _ in range(2))
        np.testing.assert_array_equal(classification.scores_of(first, data), classification.scores_of(second, data))

    def test_features_and_labels_come_from_image_and_mask(self, tmp_path: Path) -> None:
        data = load_dataset("voc-animals", "trainaug", make_voc(tmp_path))
        found = classification.extract(build_backbone("tiny", 4).eval(), data, side=32)
        assert found.tokens.shape == (3, 64, 64)
        assert found.tokens.dtype == torch.half
        of_sbd = dict(zip(classification.CLASSES, found.labels[2].tolist(), strict=True))
        assert of_sbd == {name: float(name in ("cat", "person")) for name in classification.CLASSES}

    def test_features_are_kept(self, tmp_path: Path) -> None:
        made = self.made_up(4, 0)
        file = tmp_path / "cache" / "features.safetensors"
        classification.cached(file, lambda: made)
        again = classification.cached(file, lambda: pytest.fail("made again"))
        assert torch.equal(again.tokens, made.tokens)

    def test_projection_is_fitted_to_the_training_images(self) -> None:
        train = classification.Images(5 + 3 * random(50, 16, 6), torch.zeros(50, 2))
        others = classification.Images(train.tokens[:7].half(), torch.zeros(7, 2))
        projected, of_others = classification.project(train, [others], channels=4)
        flat = projected.tokens.flatten(0, 1)
        torch.testing.assert_close(flat.mean(dim=0), torch.zeros(4), atol=1e-3, rtol=0)
        assert flat.var(dim=0).mean().item() == pytest.approx(1, abs=0.01)
        torch.testing.assert_close(of_others.tokens, projected.tokens[:7], atol=1e-2, rtol=0)

    def test_record(self) -> None:
        found = record("classification")
        heads = classification.heads(classification.CHANNELS, found["bases"])
        assert list(found["heads"]) == list(heads)
        for name, row in found["heads"].items():
            assert np.shape(row["average_precision"]) == (len(found["seeds"]), len(found["classes"]))
            assert row["rates"][str(row["rate"])] == max(row["rates"].values())
            cost = classification.cost(heads[name], classification.CHANNELS)
            assert cost == {key: row[key] for key in cost}


class TestVideo:
    frames = tuple(random(30, 4, seed=seed) for seed in range(12))
    stored = normalize_bases(random(3, 4, seed=99))

    def test_clips(self) -> None:
        found = video.clips(["0016E5_07961", "Seq05VD_f00000", "0016E5_07959", "Seq05VD_f00030"])
        assert found == [video.Clip("0016E5", 2, (2, 0)), video.Clip("Seq05VD", 30, (1, 3))]

    @pytest.mark.parametrize(
        ("names", "message"),
        [(["dog"], "'dog' names no frame"), (["a_1", "a_2", "a_4"], r"frames of a are \[1, 2\] apart")],
    )
    def test_what_is_no_clip(self, names: list[str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            video.clips(names)

    def test_bases_are_carried_over(self) -> None:
        found = carried(self.frames, self.stored, budget=2, steps=3)
        for index in (0, 2):
            torch.testing.assert_close(found[index], climb(self.frames[index], self.stored, 2))
        torch.testing.assert_close(found[7], climb(self.frames[7], found[4], 2))

    def test_a_still_clip_goes_on_climbing(self) -> None:
        """Three iterations on each of four equal frames are twelve on one."""
        found = carried([self.frames[0]] * 4, self.stored, budget=3)
        torch.testing.assert_close(found[-1], climb(self.frames[0], self.stored, 12))

    def test_every_start_is_measured(self) -> None:
        found = video.measure(self.frames, self.stored, (1, 2), torch.Generator().manual_seed(0))
        assert list(found) == ["stored", "random", "any other frame", "1 before", "2 before"]
        expected = [log_likelihood(x[None], climb(x, self.stored, 3)).item() / len(x) for x in self.frames[2:12]]
        assert found["stored"]["3"] == [pytest.approx(np.mean(expected), abs=1e-5)]
        for rows in found.values():
            climbed = [rows[str(budget)][0] for budget in video.BUDGETS]
            assert climbed == sorted(climbed)
            assert 0 <= rows["settled"][0] <= 1 <= rows["distinct"][0] <= 3

    def test_record(self) -> None:
        found = record("video")
        for rows in found["clips"].values():
            for clip in rows:
                apart = video.STEPS_APART[round(clip["seconds"] * video.FRAMES_PER_SECOND)]
                blocks = (clip["frames"] - max(apart)) // video.BLOCK
                assert {len(values) for start in clip["starts"].values() for values in start.values()} == {blocks}
                assert {f"{steps} before" for steps in apart} < clip["starts"].keys()


class TestResolution:
    x = random(400, 6)
    stored = normalize_bases(random(5, 6, seed=99))

    def test_all_positions_are_em(self) -> None:
        rebuilt, bases = subsets.sampled_em(self.x, self.stored, torch.arange(400))
        exact = em_attention(self.x[None], self.stored)
        torch.testing.assert_close(bases, exact.bases[0])
        assert rebuilt.shape == self.x.shape

    @pytest.mark.parametrize("count", [4, 25, 100, 399, 400])
    def test_grid_is_even_and_about_as_large(self, count: int) -> None:
        positions = subsets.grid(20, 20, count)
        assert len(positions.unique()) == len(positions)
        assert 0 <= positions.min() <= positions.max() < 400
        assert count / 1.5 < len(positions) < count * 1.5
        assert abs((positions // 20).double().mean() - 9.5) < 1

    def test_more_positions_come_nearer(self) -> None:
        x = self.x + 4 * normalize_bases(random(5, 6, seed=7))[torch.arange(400) % 5]
        rows = subsets.errors(
            x, (20, 20), self.stored, lambda rebuilt: rebuilt[:, 0] > 0, torch.Generator().manual_seed(0), draws=20
        )
        few, many = (
            np.mean([row["bases"] for row in rows if (row["way"], row["count"]) == ("random", count)])
            for count in (64, 256)
        )
        assert many < few < rows[-1]["bases"]
        assert rows[-1]["way"] == "none"

    def test_record(self) -> None:
        found = record("resolution")
        assert [row["photograph"] for row in found["photographs"]] == list(resolution.PHOTOGRAPHS)
        for photograph in found["photographs"]:
            height, width = photograph["size"]
            assert {row["count"] for row in photograph["rows"] if row["way"] == "random"} == {
                count for count in subsets.COUNTS if count < height * width
            }
        assert [row["positions"] for row in found["timings"]] == [side**2 for side in resolution.SIDES]
