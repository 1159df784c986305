"""The order of large, mixed data: every example once an epoch, shares exact, any step from its number alone."""

from itertools import chain, pairwise

import pytest

from hanlin.data.mixture import MixtureOrder, permuted
from hanlin.errors import ConfigError


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000])
def test_a_permutation_sends_every_place_to_another(size: int):
    keys = (3, 1 << 40, 12345, 99, 7, 2)
    places = [permuted(place, size, keys) for place in range(size)]
    assert sorted(places) == list(range(size))
    if size > 60:
        assert places != list(range(size))
        assert places != [permuted(place, size, (*keys[1:], 5)) for place in range(size)]


def test_a_permutation_looks_random():
    """Mean distance of neighbours, and of a place from where it was, are near a third of the size."""
    size = 5000
    places = [permuted(place, size, (11, 22, 33, 44, 55, 66)) for place in range(size)]
    jumps = [abs(one - other) for one, other in pairwise(places)]
    moved = [abs(one - index) for index, one in enumerate(places)]
    assert sum(jumps) / len(jumps) == pytest.approx(size / 3, rel=0.05)
    assert sum(moved) / len(moved) == pytest.approx(size / 3, rel=0.05)


def test_one_source_is_seen_once_an_epoch():
    order = MixtureOrder([12], batch=4, num_steps=6, seed=1)
    steps = [order.step(number) for number in range(6)]
    assert all(len(step) == 4 for step in steps)
    first, second = list(chain.from_iterable(steps[:3])), list(chain.from_iterable(steps[3:]))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert MixtureOrder([12], batch=4, num_steps=6, seed=2).step(0) != steps[0]
    assert MixtureOrder([12], batch=4, num_steps=6, seed=1, shuffle=False).step(1) == [4, 5, 6, 7]
    with pytest.raises(IndexError):
        order.step(6)


def test_weights_hold_and_change_near_the_end():
    sizes = [100, 50, 10]
    order = MixtureOrder(
        sizes, batch=10, num_steps=100, seed=0, weights=[6, 3, 1], final_weights=[0, 1, 4], final_share=0.2
    )

    def shares(steps: range) -> list[int]:
        seen = [index for step in steps for index in order.step(step)]
        return [sum(low <= index < low + size for index in seen) for low, size in ((0, 100), (100, 50), (150, 10))]

    assert shares(range(80)) == pytest.approx([480, 240, 80], abs=1)
    assert shares(range(80, 100)) == pytest.approx([0, 40, 160], abs=1)
    assert all(abs(len(order.step(step)) - 10) <= 3 for step in range(100))
    small = [index for step in range(100) for index in order.step(step) if index >= 150]
    assert all(sorted(small[start : start + 10]) == list(range(150, 160)) for start in range(0, 240, 10))


def test_without_weights_sources_weigh_what_they_hold():
    order = MixtureOrder([30, 10], batch=8, num_steps=5, seed=3)
    seen = [index for step in range(5) for index in order.step(step)]
    assert sorted(seen) == list(range(40))


def test_a_batch_too_small_to_mix_is_refused():
    with pytest.raises(ConfigError, match="batch_pairs = 2 is too small to mix 2 sources"):
        MixtureOrder([5, 5], batch=2, num_steps=1, seed=0)
