"""Intervals and differences over seeds, against closed forms, scipy's tests and simulated studies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from emalab.studies.statistics import (
    Interval,
    least_squares,
    paired_difference,
    student_interval,
    two_way_differences,
)


def coverage_margin(studies: int, level: float) -> float:
    """Four standard deviations of the share of so many intervals that cover, each with probability ``level``."""
    return 4 * (level * (1 - level) / studies) ** 0.5


def test_interval_of_two_values_by_hand() -> None:
    """With one degree of freedom t is the Cauchy distribution, whose quantile is tan(π(p − 1/2)): 1 at 75 %."""
    assert student_interval([1.0, 3.0], level=0.5) == pytest.approx((2.0, 1.0, 3.0, 2))
    expected = np.tan(np.pi * 0.475)
    assert student_interval([1.0, 3.0]).half_width == pytest.approx(expected)


def test_interval_of_one_value_and_of_none() -> None:
    one, none = student_interval([0.5]), student_interval([])
    assert (one.mean, one.num_values, none.num_values) == (0.5, 1, 0)
    assert np.isnan([one.low, one.high, none.mean]).all()
    assert not one.excludes_zero


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_that_is_no_probability(level: float) -> None:
    with pytest.raises(ValueError, match="it must be between 0 and 1"):
        student_interval([1.0, 2.0], level)


def test_zero_is_inside_or_outside() -> None:
    inside = {(-1.0, 2.0): False, (0.0, 2.0): False, (0.5, 2.0): True, (-3.0, -1.0): True}
    for (low, high), excluded in inside.items():
        assert Interval((low + high) / 2, low, high, 3).excludes_zero is excluded


def test_differences_are_paired() -> None:
    """Seeds differ by far more than cells do, and seed 2 has no partner."""
    found = paired_difference({0: 0.5, 1: 0.7, 2: 0.1}, {0: 0.4, 1: 0.6, 3: 0.9})
    assert found == pytest.approx((0.1, 0.1, 0.1, 2))


@pytest.mark.parametrize(("count", "level"), [(3, 0.95), (5, 0.95), (3, 0.8)])
def test_students_interval_covers_as_often_as_it_promises(count: int, level: float) -> None:
    """A normal quantile in place of Student's would cover 81 % at three values and 95 %."""
    studies, values = 2000, np.random.default_rng(count).normal(3.0, 2.0, size=(2000, count))
    covered = sum(low < 3.0 < high for _, low, high, _ in (student_interval(list(row), level) for row in values))
    assert covered / studies == pytest.approx(level, abs=coverage_margin(studies, level))


def test_students_interval() -> None:
    values = [1.0, 2.5, 2.0, 4.0]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval()
    found = student_interval(values)
    assert (found.mean, found.num_values) == (2.375, 4)
    np.testing.assert_allclose((found.low, found.high), (expected.low, expected.high))
    assert np.isnan(student_interval([3.0]).low)


class TestTwoWay:
    def test_two_cells_are_a_paired_comparison(self) -> None:
        scores = {"base": {0: 1.0, 1: 2.5, 2: 2.0}, "other": {0: 1.5, 1: 4.0, 2: 2.25}}
        found = two_way_differences(scores, "base")
        assert list(found) == ["other"]
        np.testing.assert_allclose(found["other"], student_interval([0.5, 1.5, 0.25]))

    def test_without_seeds_every_run_counts(self) -> None:
        """Two cells of four and three runs: Student's test of two samples."""
        base, other = {0: 1.0, 1: 2.5, 2: 2.0, 7: 3.0}, {0: 1.5, 1: 4.0, 2: 2.25}
        found = two_way_differences({"base": base, "other": other}, "base", seed_effects=False)["other"]
        samples = list(other.values()), list(base.values())
        expected = stats.ttest_ind(*samples).confidence_interval()
        assert found.mean == pytest.approx(np.mean(samples[0]) - np.mean(samples[1]))
        np.testing.assert_allclose((found.low, found.high), (expected.low, expected.high))

    def test_a_missing_run_does_not_tilt_the_comparison(self) -> None:
        """The base lacks the seed on which everything scores high."""
        seeds, cells = {0: 0.0, 1: 1.0, 2: 10.0}, {"base": 50.0, "a": 52.0, "b": 47.0}
        scores = {cell: {seed: level + effect for seed, effect in seeds.items()} for cell, level in cells.items()}
        del scores["base"][2]
        found = two_way_differences(scores, "base")
        assert found["a"][:3] == pytest.approx((2, 2, 2))
        assert found["b"][:3] == pytest.approx((-3, -3, -3))

    @pytest.mark.parametrize("level", [0.8, 0.95])
    def test_intervals_cover_as_often_as_they_promise(self, level: float) -> None:
        """Of 400 simulated studies whose cells differ in nothing but noise, so many cover the true difference, 0."""
        generator = np.random.default_rng(0)
        covered = 0
        for _ in range(400):
            noise = generator.normal(size=(6, 3)) + generator.normal(size=3)
            scores = {str(cell): dict(enumerate(map(float, row))) for cell, row in enumerate(noise)}
            interval = two_way_differences(scores, "0", level)["1"]
            covered += interval.low < 0 < interval.high
        assert covered / 400 == pytest.approx(level, abs=coverage_margin(400, level))

    def test_balanced_layout_by_hand(self) -> None:
        """Residuals of a full table are s − mean of its row − mean of its column + mean of all."""
        table = np.array([[1.0, 2.5, 2.0], [1.5, 4.0, 2.25], [0.0, 1.0, 3.5], [2.0, 2.0, 2.0]])
        found = two_way_differences({str(i): dict(enumerate(row)) for i, row in enumerate(table)}, "0")
        rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
        half = stats.t.ppf(0.975, 6) * np.sqrt(2 / 3 * (rest**2).sum() / 6)
        for index in (1, 2, 3):
            assert found[str(index)].mean == pytest.approx(table[index].mean() - table[0].mean())
            assert found[str(index)].half_width == pytest.approx(half)

    def test_cells_that_share_no_seed_are_not_compared(self) -> None:
        """A difference of seeds could as well be one of cells; a third cell that has both seeds connects them."""
        scores = {"base": {0: 1.0}, "other": {1: 3.0}}
        assert np.isnan(two_way_differences(scores, "base")["other"].mean)
        found = two_way_differences({**scores, "third": {0: 2.0, 1: 2.5}}, "base")
        assert found["other"].mean == pytest.approx(1.5)

    def test_without_the_base_there_is_nothing_to_compare(self) -> None:
        assert two_way_differences({"base": {}, "other": {1: 3.0}}, "base") == {}

    def test_one_seed_has_no_interval(self) -> None:
        found = two_way_differences({"base": {0: 1.0}, "other": {0: 3.0}, "none": {}}, "base")
        assert list(found) == ["other"]
        assert found["other"].mean == pytest.approx(2)
        assert np.isnan(found["other"].low)


class TestLeastSquares:
    def test_is_the_regression_of_scipy(self) -> None:
        generator = np.random.default_rng(0)
        x = generator.normal(size=12)
        y = 3 + 2 * x + generator.normal(size=12)
        intercept, slope = least_squares(np.stack([np.ones(12), x], 1), y)
        theirs = stats.linregress(x, y)
        quantile = stats.t.ppf(0.975, 10)
        assert (intercept.mean, slope.mean) == pytest.approx((theirs.intercept, theirs.slope))
        assert intercept.half_width == pytest.approx(quantile * theirs.intercept_stderr)
        assert slope.half_width == pytest.approx(quantile * theirs.stderr)
        assert slope.num_values == 12

    def test_without_degrees_of_freedom_there_is_no_interval(self) -> None:
        (mean,) = least_squares(np.ones((1, 1)), np.array([5.0]))
        assert mean.mean == 5.0
        assert np.isnan([mean.low, mean.high]).all()

    def test_runs_that_do_not_tell_effects_apart_are_refused(self) -> None:
        with pytest.raises(ValueError, match="3 runs do not determine 2 coefficients"):
            least_squares(np.ones((3, 2)), np.zeros(3))
