"""Looking at bases: values computed by hand, and the properties that the definitions promise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import voc_animals_bases as measure_bases
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CPU, random_images, scenes, tiny_recipe, tiny_segmenter
from torch import Tensor, nn

from emalab.data import load_dataset
from emalab.em import e_step, em_attention
from emalab.inspection import (
    BasesHistory,
    contingency,
    cosines,
    distinct_bases,
    effective_rank,
    entropy,
    error_up_to_scale,
    labels_at_positions,
    look_inside,
    merge,
    mutual_information,
    outward,
    perplexity,
    purity,
    rank_errors,
    shift,
)
from emalab.modules import EMAU
from emalab.segmenter import Segmenter
from emalab.trainer import Trainer

LN2 = math.log(2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at_degrees(*angles: float) -> Tensor:
    radians = torch.tensor(angles, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


class TestEntropy:
    def test_by_hand(self) -> None:
        weights = torch.tensor([[2.0, 1.0, 1.0, 0.0], [0.0, 7.0, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0]])
        torch.testing.assert_close(entropy(weights), torch.tensor([1.5 * LN2, 0.0, 2 * LN2]))

    def test_perplexity_of_one_hot_is_1_and_of_uniform_k(self) -> None:
        torch.testing.assert_close(perplexity(torch.eye(5)), torch.ones(5))
        torch.testing.assert_close(perplexity(torch.full((2, 7), 0.3)), torch.full((2,), 7.0))

    def test_a_base_split_into_copies_counts_as_many(self) -> None:
        """Chain rule: splitting a share p into m equal parts adds p · log m."""
        before, after = entropy(torch.tensor([0.75, 0.25])), entropy(torch.tensor([0.25, 0.25, 0.25, 0.25]))
        assert (after - before).item() == pytest.approx(0.75 * math.log(3))

    @pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -0.1], [1.0, math.nan]])
    def test_no_distribution(self, weights: list[float]) -> None:
        with pytest.raises(ValueError, match="not all zero"):
            entropy(torch.tensor(weights))


class TestDistinctBases:
    def test_cosines(self) -> None:
        bases = 3 * torch.cat([at_degrees(0, 60, 180), torch.zeros(1, 2)])
        expected = torch.tensor([[1, 0.5, -1, 0], [0.5, 1, -0.5, 0], [-1, -0.5, 1, 0], [0, 0, 0, 0]])
        torch.testing.assert_close(cosines(bases), expected.double())

    def test_largest_group_comes_first(self) -> None:
        bases = at_degrees(90, 0, 1, 200, 2, 201) * torch.tensor([[1], [5], [0.1], [1], [1], [2]])
        assert distinct_bases(bases).tolist() == [2, 0, 0, 1, 0, 1]

    def test_a_chain_does_not_unite_its_ends(self) -> None:
        neighbors_agree = math.cos(math.radians(20))
        assert distinct_bases(at_degrees(0, 14, 30), neighbors_agree).tolist() == [0, 0, 1]

    @pytest.mark.parametrize(("degrees", "groups"), [(9.9, 1), (10.1, 2)])
    def test_threshold_is_a_cosine(self, degrees: float, groups: int) -> None:
        found = distinct_bases(at_degrees(0, degrees), math.cos(math.radians(10)))
        assert found.max() + 1 == groups

    def test_exact_copies_at_threshold_1(self) -> None:
        bases = at_degrees(0, 45, 90)
        assert distinct_bases(torch.cat([bases, bases]), 1.0).tolist() == [0, 1, 2, 0, 1, 2]

    def test_one_base_and_dead_bases(self) -> None:
        assert distinct_bases(torch.ones(1, 4)).tolist() == [0]
        assert distinct_bases(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])).tolist() == [0, 1, 2]

    @given(st.integers(0, 10_000), st.integers(1, 12), st.floats(-0.5, 0.99))
    @settings(max_examples=40, deadline=None)
    def test_members_agree_whatever_their_order(self, seed: int, k: int, threshold: float) -> None:
        bases = random(k, 3, seed=seed)
        groups = distinct_bases(bases, threshold)
        agree = cosines(bases) >= threshold - 1e-9
        assert agree[groups[:, None] == groups[None]].all()
        assert groups.bincount().tolist() == sorted(groups.bincount().tolist(), reverse=True)
        order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
        again = distinct_bases(bases[order], threshold)
        same, same_again = (g[:, None] == g[None] for g in (groups[order], again))
        assert torch.equal(same, same_again)

    @pytest.mark.parametrize(
        ("bases", "threshold", "message"),
        [
            (torch.ones(2, 3, 4), 0.9, r"bases \(k, c\), at least one; got \(2, 3, 4\)"),
            (torch.ones(0, 4), 0.9, "at least one"),
            (torch.tensor([[1.0, math.nan]]), 0.9, "not finite"),
            (torch.ones(2, 3), 1.5, "up to 1; got 1.5"),
        ],
    )
    def test_what_it_refuses(self, bases: Tensor, threshold: float, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            distinct_bases(bases, threshold)

    def test_merge(self) -> None:
        responsibilities = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]])
        merged = merge(responsibilities, torch.tensor([1, 0, 1, 0]))
        torch.testing.assert_close(merged, torch.tensor([[0.6, 0.4], [0.0, 1.0]]))

    def test_copies_are_weights(self) -> None:
        """m copies of a base claim together what one base with the prior weight m would."""
        x, bases, copies = random(1, 50, 6), random(1, 3, 6, seed=1), torch.tensor([1, 2, 5])
        groups = torch.arange(3).repeat_interleave(copies)
        merged = merge(e_step(x, bases[:, groups]), groups)
        weighted = (x @ bases.mT + copies.log()).softmax(dim=-1)
        torch.testing.assert_close(merged, weighted)


class TestRank:
    def test_effective_rank(self) -> None:
        assert effective_rank(4 * torch.eye(6)[:, :5]).item() == pytest.approx(5)
        assert effective_rank(torch.outer(torch.arange(1.0, 8), torch.ones(3))).item() == pytest.approx(1, abs=1e-4)
        assert effective_rank(torch.diag(torch.tensor([2.0, 1, 1]))).item() == pytest.approx(2**1.5)

    def test_rank_errors_by_hand(self) -> None:
        x = torch.zeros(4, 3).double()
        x[0, 2], x[3, 0] = 2, -1
        expected = torch.tensor([1, 5**-0.5, 0, 0]).double()
        torch.testing.assert_close(rank_errors(x), expected)

    @pytest.mark.parametrize("num_bases", [1, 3, 8])
    def test_no_reconstruction_is_below(self, num_bases: int) -> None:
        x = random(1, 60, 12)
        reconstruction = em_attention(x, random(num_bases, 12, seed=1), num_iters=10, scale=3.0).reconstruction
        assert error_up_to_scale(x[0], reconstruction[0]) >= rank_errors(x[0])[num_bases]

    def test_rank_errors_are_those_of_truncation(self) -> None:
        x = random(9, 5)
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        for rank, error in enumerate(rank_errors(x)):
            truncated = u[:, :rank] * s[:rank] @ v[:rank]
            torch.testing.assert_close((x - truncated).norm() / x.norm(), error)
            torch.testing.assert_close(error_up_to_scale(x, -2 * truncated), error)

    def test_error_up_to_scale_by_hand(self) -> None:
        x = torch.tensor([1.0, 1.0])
        for approximation, expected in (([7.0, 7.0], 0), ([3.0, 0.0], 0.5**0.5), ([1.0, -1.0], 1), ([0.0, 0.0], 1)):
            assert error_up_to_scale(x, torch.tensor(approximation)).item() == pytest.approx(expected, abs=1e-6)


class TestWhatBasesFollow:
    def test_contingency(self) -> None:
        assigned, labels = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([1, 1, 0, 255, 0, 1])
        assert contingency(assigned, labels, 4, 2).tolist() == [[0, 2], [1, 0], [1, 1], [0, 0]]
        assert contingency(assigned, labels.new_full((6,), 255), 4, 2).sum() == 0

    @pytest.mark.parametrize(
        ("assigned", "labels", "message"),
        [
            ([0, 1], [0], r"\(2,\) positions are assigned, and \(1,\) labeled"),
            ([0, 3], [0, 0], r"a group outside of 0 … 2: 0 … 3"),
            ([0, 1], [0, 7], r"a class outside of 0 … 1: 0 … 7"),
        ],
    )
    def test_contingency_refuses(self, assigned: list[int], labels: list[int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            contingency(torch.tensor(assigned), torch.tensor(labels), 3, 2)

    @pytest.mark.parametrize(
        ("table", "information"),
        [
            ([[3, 0, 0], [0, 3, 0], [0, 0, 3]], math.log(3)),
            ([[1, 2], [2, 4], [3, 6]], 0),
            ([[2, 0], [1, 1]], LN2 + (2 * LN2 - 0.75 * math.log(3)) - 1.5 * LN2),
        ],
    )
    def test_mutual_information(self, table: list[list[int]], information: float) -> None:
        counts = torch.tensor(table).double()
        assert mutual_information(counts) == pytest.approx(information, abs=1e-12)
        assert mutual_information(counts.T) == pytest.approx(information, abs=1e-12)

    def test_too_high_by_chance_as_documented(self) -> None:
        """Independent rows and columns, estimated from n counts."""
        generator, n = torch.Generator().manual_seed(0), 500
        found = [
            mutual_information(contingency(*torch.randint(5, (2, n), generator=generator), 5, 5)) for _ in range(200)
        ]
        assert sum(found) / len(found) == pytest.approx(4 * 4 / (2 * n), rel=0.1)

    def test_purity(self) -> None:
        assert purity(torch.tensor([[3, 1], [0, 4]])) == pytest.approx(7 / 8)

    def test_shift_keeps_the_shapes(self) -> None:
        labels = torch.arange(12).reshape(3, 4)
        moved = {tuple(shift(labels, torch.Generator().manual_seed(seed)).flatten().tolist()) for seed in range(200)}
        assert moved == {tuple(labels.roll((i, j), (0, 1)).flatten().tolist()) for i in range(3) for j in range(4)}

    def test_labels_at_positions(self) -> None:
        labels = torch.arange(64, dtype=torch.uint8).reshape(8, 8)
        found = labels_at_positions(labels, (2, 4))
        assert found.dtype == torch.uint8
        assert found.tolist() == [[17, 19, 21, 23], [49, 51, 53, 55]]
        assert torch.equal(labels_at_positions(labels, (8, 8)), labels)

    def test_outward(self) -> None:
        """A block in the lower left corner: its right side looks right, its upper side up, its corner both ways."""
        mask = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]).bool()
        right, down = outward(mask).unbind(dim=-1)
        assert (2 * right).tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]]
        assert (2 * down).tolist() == [[-1, -1, 0, 0], [-1, -1, 0, 0], [0, 0, 0, 0]]
        assert not outward(torch.ones(3, 5).bool()).any()


class TestLookInside:
    def test_finds_what_the_unit_does(self) -> None:
        model, images = tiny_segmenter(), random_images(2, 3, 32, 24)
        before = model.context.bases.clone()
        inside = look_inside(model, images)
        assert inside.size == (8, 6)
        expected = em_attention(inside.x, before, num_iters=3)
        for ours, theirs in zip(inside.attended, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        with torch.inference_mode():
            assert torch.equal(inside.logits, model.coarse_logits(images))
            assert torch.equal(inside.attended.bases, model.context.attend(model.features(images)).bases)
        assert torch.equal(model.context.bases, before)
        assert not model.context._forward_pre_hooks

    def test_refuses(self) -> None:
        images = random_images(1, 3, 32, 32)
        with pytest.raises(ValueError, match="found in an EMAU; this network's context is Identity"):
            look_inside(tiny_segmenter(context="none"), images)
        with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
            look_inside(tiny_segmenter().train(), images)
        with pytest.raises(ValueError, match="normalized already, and their values lie in 0…1"):
            look_inside(tiny_segmenter(), images / 255)


class TestBasesHistory:
    def test_of_a_run(self, tmp_path: Path) -> None:
        """One entry per training step; those of the evaluations in between do not count."""
        trainer = Trainer(tiny_recipe(), tmp_path / "run", CPU, None, scenes())
        start = trainer.model.context.bases.clone()
        with BasesHistory(trainer.model.context) as history:
            trainer.fit()
        bases = history.bases
        assert bases.shape == (9, *start.shape)
        assert torch.equal(bases[0], start)
        assert torch.equal(bases[-1], trainer.model.context.bases)
        moved = (bases[1:] - bases[:-1]).flatten(1).norm(dim=1)
        assert (moved > 0).all()

    def test_every_so_many_passes(self) -> None:
        torch.manual_seed(0)
        unit, inputs = EMAU(8, num_bases=4).train(), random(2, 8, 3, 3).float()
        first = 0.9 * unit.bases + 0.1 * unit.attend(inputs).bases.mean(dim=0)
        with BasesHistory(unit) as all_of_them, BasesHistory(unit, every=3) as some:
            for _ in range(7):
                unit(inputs)
        assert torch.equal(some.bases, all_of_them.bases[[0, 3, 6]])
        torch.testing.assert_close(all_of_them.bases[1], first)

    def test_leaves_no_hook_behind(self) -> None:
        unit = EMAU(8, num_bases=4)

        def fail() -> None:
            with BasesHistory(unit):
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert not unit._forward_hooks

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match="context is Identity"):
            BasesHistory(nn.Identity())
        with pytest.raises(ValueError, match="every is 0; it must be at least 1"):
            BasesHistory(EMAU(8), every=0)


class TestRecord:
    """book/results/voc-animals-bases.json, which book/experiments/voc_animals_bases.py writes."""

    @pytest.fixture
    def record(self) -> dict[str, Any]:
        return json.loads((Path(__file__).parents[2] / "book/results/voc-animals-bases.json").read_text())

    def test_belongs_to_the_shipped_network(self, record: dict[str, Any]) -> None:
        bases = Segmenter.from_pretrained(record["checkpoint"]).context.bases
        assert distinct_bases(bases, record["threshold"]).tolist() == record["groups"]
        assert {len(values) for values in record["figures"].values()} == {297}

    def test_tables_count_the_same_positions(self, record: dict[str, Any]) -> None:
        tables = {name: torch.tensor(table) for name, table in record["tables"].items()}
        classes = tables["labels"].sum(dim=0)
        for name in ("shifted", "labels_of_bases", "confusion"):
            assert torch.equal(tables[name].sum(dim=0), classes)

    @pytest.mark.real_data
    def test_can_be_measured_again(self, record: dict[str, Any], real_data_root: Callable[[str], Path]) -> None:
        data = load_dataset("voc-animals", "val", real_data_root("voc2012-animals-320px"))
        model, generator = Segmenter.from_pretrained(), torch.Generator().manual_seed(record["seed"])
        groups = torch.tensor(record["groups"])
        for index in range(4):
            figures = measure_bases.look(model, data[index], groups, generator).figures
            for name, value in figures.items():
                assert value == pytest.approx(record["figures"][name][index], rel=1e-2), name
