"""Intervals against published values, and their coverage on drawn samples."""

import math

import numpy as np
import pytest

from hanlin.evaluation.statistics import Estimate, mean, mean_difference, rate, rate_difference, t_quantile, wilson


def pairs(both: int, only_after: int, only_before: int, neither: int) -> tuple[list[bool], list[bool]]:
    after = [True] * (both + only_after) + [False] * (only_before + neither)
    before = [True] * both + [False] * only_after + [True] * only_before + [False] * neither
    return before, after


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_values_of_newcombe_1998_table_one(
    successes: int, count: int, low: float, high: float
) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_stays_within_zero_and_one_and_is_symmetric() -> None:
    for count in (1, 2, 7, 80):
        for successes in range(count + 1):
            low, high = wilson(successes, count)
            assert 0 <= low <= successes / count <= high <= 1
            assert low < high
            assert wilson(count - successes, count) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [((36, 12, 2, 0), 0.0569, 0.3404), ((20, 12, 2, 16), 0.0562, 0.3292), ((54, 0, 0, 0), -0.0664, 0.0664)],
)
def test_paired_rate_difference_is_newcombes_method_ten(
    cells: tuple[int, int, int, int], low: float, high: float
) -> None:
    before, after = pairs(*cells)
    found = rate_difference(before, after)
    assert found.value == pytest.approx((cells[1] - cells[2]) / sum(cells))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_swapping_the_sides_turns_the_difference_round() -> None:
    before, after = pairs(10, 25, 4, 6)
    there, back = rate_difference(before, after), rate_difference(after, before)
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))


def test_agreement_of_all_items_is_no_certainty() -> None:
    found = rate_difference([False] * 80, [False] * 80)
    assert found.value == 0
    assert found.low < 0 < found.high


def test_mean_and_paired_mean_difference_are_students() -> None:
    found, half = mean([1.0, 2.0, 3.0, 4.0, 5.0]), 2.776445 * math.sqrt(2.5 / 5)
    assert (found.value, found.count) == (3.0, 5)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), abs=2e-3)
    shift = mean_difference([1.0, 5.0, 9.0], [2.0, 6.0, 10.0])
    assert (shift.value, shift.low, shift.high) == (1.0, 1.0, 1.0)
    assert shift.excludes_zero


def test_one_item_says_nothing_about_a_mean() -> None:
    assert mean([4.0]) == Estimate(4.0, -math.inf, math.inf, 1)


@pytest.mark.parametrize(
    ("freedom", "exact"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (6, 2.4469), (30, 2.0423), (10**6, 1.95997)]
)
def test_t_quantile(freedom: int, exact: float) -> None:
    assert t_quantile(freedom) == pytest.approx(exact, rel=0.002 if freedom < 6 else 1e-4)


def test_intervals_cover_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    draws, covered_rate, covered_difference, covered_mean = 1000, 0, 0, 0
    for _ in range(draws):
        old = rng.random(60) < 0.3
        new = np.where(rng.random(60) < 0.5, old, rng.random(60) < 0.9)  # correlated, rate 0.5 * 0.3 + 0.5 * 0.9 = 0.6
        single, paired = rate(old.tolist()), rate_difference(old.tolist(), new.tolist())
        shift = mean(rng.exponential(1.0, size=60).tolist())
        covered_rate += single.low <= 0.3 <= single.high
        covered_difference += paired.low <= 0.3 <= paired.high
        covered_mean += shift.low <= 1.0 <= shift.high
    assert 0.93 <= covered_rate / draws <= 0.98
    assert 0.93 <= covered_difference / draws <= 0.98
    assert 0.91 <= covered_mean / draws <= 0.97  # exponential: skewed on purpose


def test_nothing_to_estimate_is_an_error() -> None:
    for wrong in (lambda: rate([]), lambda: mean([]), lambda: wilson(3, 2), lambda: rate_difference([True], [])):
        with pytest.raises(ValueError, match=r"need"):
            wrong()
