"""The order of training: every pair once an epoch, decided by the seed, found again from one integer."""

import random
from collections import Counter

import pytest

from hanlin.data.loader import PairOrder


def steps(order: PairOrder) -> list[list[int]]:
    return [order.step(number) for number in range(order.num_steps)]


def order(num_pairs: int = 10, *, epochs: float = 3, seed: int = 1, shuffle: bool = True) -> PairOrder:
    return PairOrder(num_pairs, batch_pairs=4, epochs=epochs, seed=seed, shuffle=shuffle)


@pytest.mark.parametrize("case", range(40))
def test_every_pair_once_an_epoch(case: int):
    source = random.Random(case)
    num_pairs, batch_pairs, epochs = source.randint(1, 40), source.randint(1, 50), source.randint(1, 4)
    seed = source.randrange(2**32)
    whole = steps(PairOrder(num_pairs, batch_pairs=batch_pairs, epochs=epochs, seed=seed))
    assert all(len(step) == batch_pairs for step in whole[:-1])
    assert 1 <= len(whole[-1]) <= batch_pairs
    flat = [index for step in whole for index in step]
    for epoch in range(epochs):
        assert sorted(flat[epoch * num_pairs : (epoch + 1) * num_pairs]) == list(range(num_pairs))
    assert len(flat) == epochs * num_pairs


def test_the_seed_decides_and_epochs_differ():
    assert steps(order()) == steps(order())
    assert steps(order()) != steps(order(seed=2))
    flat = [index for step in steps(order(30)) for index in step]
    assert flat[:30] != flat[30:60] != flat[60:]


def test_one_integer_is_enough_to_go_on():
    """Steps asked for in any order, from a new object, are the same: nothing is remembered between them."""
    expected = steps(order(23, epochs=5))
    for number in reversed(range(len(expected))):
        assert order(23, epochs=5).step(number) == expected[number]


def test_a_longer_run_begins_like_a_shorter_one():
    assert steps(order(epochs=6))[:7] == steps(order(epochs=3))[:7]


def test_without_shuffling_the_order_is_the_files():
    assert steps(order(5, shuffle=False, epochs=2)) == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4]]


def test_part_of_an_epoch():
    part = steps(order(10, epochs=0.5))
    assert [len(step) for step in part] == [4, 1]
    assert max(Counter(index for step in part for index in step).values()) == 1


@pytest.mark.parametrize("number", [-1, 8, 1000])
def test_steps_outside_are_refused(number: int):
    assert order().num_steps == 8
    with pytest.raises(IndexError):
        order().step(number)
