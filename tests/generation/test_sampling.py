"""Sampling: transformers' filters, draws that follow the distribution, rows that do not feel their neighbours."""

import random

import pytest
import torch

from hanlin.errors import CheckpointError, ConfigError
from hanlin.generation.sampling import Draw, Sampling, keep, sample

FILTERS = [
    {},
    {"top_p": 0.5},
    {"top_k": 7, "top_p": 1.0},
    {"top_k": 40, "top_p": 0.8},
    {"top_p": 1.0, "min_p": 0.05},
    {"top_p": 0.95, "min_p": 0.2, "top_k": 100, "temperature": 1.7},
    {"top_p": 0.999, "temperature": 3.0},
    {"top_p": 1.0, "temperature": 0.2},
    {"top_p": 1e-6},
    {"top_k": 1},
    {"top_k": 10**9, "top_p": 0.9},
    {"repetition_penalty": 1.7, "top_p": 0.7},
    {"repetition_penalty": 0.6, "top_k": 20, "temperature": 0.9},
]


class Watch:
    """`keep`, and what it gave."""

    def __init__(self) -> None:
        self.kept: set[int] = set()

    def __call__(self, *arguments):
        ids = keep(*arguments)
        self.kept = set(ids.tolist())
        return ids


def survivors(logits_V: torch.Tensor, sampling: Sampling) -> set[int]:
    weights_V = torch.exp((logits_V - logits_V.max()) / sampling.temperature)
    return set(keep(weights_V.numpy(), float(weights_V.sum()), sampling).tolist())


@pytest.mark.parametrize("settings", FILTERS, ids=str)
@pytest.mark.parametrize(("size", "scale"), [(50, 2.0), (3000, 0.3), (3000, 4.0)])
def test_filters_are_those_of_transformers(settings, size, scale, monkeypatch):
    warpers = pytest.importorskip("transformers.generation.logits_process")
    generator = torch.Generator().manual_seed(size)
    sampling = Sampling(**settings)
    seen = torch.randint(size, (30,), generator=generator)
    for _ in range(5):
        logits_V = scale * torch.randn(size, generator=generator)
        expected = logits_V[None].double()
        if sampling.repetition_penalty != 1:
            expected = warpers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(seen[None], expected)
        expected = warpers.TemperatureLogitsWarper(sampling.temperature)(seen[None], expected)
        if sampling.top_k:
            expected = warpers.TopKLogitsWarper(sampling.top_k)(seen[None], expected)
        if sampling.top_p < 1:
            expected = warpers.TopPLogitsWarper(sampling.top_p)(seen[None], expected)
        if sampling.min_p:
            expected = warpers.MinPLogitsWarper(sampling.min_p)(seen[None], expected)
        # The whole of `sample`, with the last step watched: which ids a draw could give.
        watch = Watch()
        monkeypatch.setattr("hanlin.generation.sampling.keep", watch)
        token = sample(logits_V[None].clone(), [Draw(sampling, random.Random(0), seen.tolist())])[0]
        assert watch.kept == set(expected[0].isfinite().nonzero()[:, 0].tolist())
        assert token in watch.kept


@pytest.mark.parametrize("settings", FILTERS[:6], ids=str)
def test_equal_logits_are_kept_as_by_transformers(settings):
    """The edge of a filter often falls among equal logits of a bf16 head; which of them stay is arbitrary there."""
    warpers = pytest.importorskip("transformers.generation.logits_process")
    sampling = Sampling(**settings)
    logits_V = torch.randint(-3, 4, (200,), generator=torch.Generator().manual_seed(1)).float()
    expected = logits_V[None].double() / sampling.temperature
    if sampling.top_k:
        expected = warpers.TopKLogitsWarper(sampling.top_k)(None, expected)
    if sampling.top_p < 1:
        expected = warpers.TopPLogitsWarper(sampling.top_p)(None, expected)
    if sampling.min_p:
        expected = warpers.MinPLogitsWarper(sampling.min_p)(None, expected)
    kept = survivors(logits_V, sampling)
    assert sorted(logits_V[list(kept)].tolist()) == sorted(logits_V[expected[0].isfinite()].tolist())


def test_draws_follow_the_distribution():
    logits_V = torch.tensor([0.0, 2.0, 1.0, -50.0, 1.5])
    sampling = Sampling(temperature=0.8, top_p=1.0)
    generator, number = random.Random(3), 20_000
    draws = [Draw(sampling, generator) for _ in range(number)]
    counts = torch.bincount(torch.tensor(sample(logits_V.repeat(number, 1), draws)), minlength=5)
    expected = (logits_V / 0.8).softmax(-1)
    # Five standard deviations of a binomial share.
    assert ((counts / number - expected).abs() <= 5 * (expected * (1 - expected) / number).sqrt() + 1e-9).all()


def test_a_row_does_not_depend_on_its_neighbours():
    generator = torch.Generator().manual_seed(0)
    logits_BV = torch.randn(6, 400, generator=generator)
    samplings = [Sampling(**{"temperature": 1.3, **settings}) for settings in FILTERS[:5]] + [Sampling(temperature=0)]

    def draws() -> list[Draw]:
        return [Draw(sampling, random.Random(row)) for row, sampling in enumerate(samplings)]

    together = sample(logits_BV.clone(), draws())
    assert together == [sample(logits_BV[row : row + 1].clone(), [draws()[row]])[0] for row in range(6)]
    assert together[::-1] == sample(logits_BV.flip(0), draws()[::-1])
    assert together[-1] == int(logits_BV[-1].argmax())


def test_greedy_counts_repetitions_too():
    logits_BV = torch.tensor([[3.0, 2.5, -1.0]])
    sampling = Sampling(temperature=0, repetition_penalty=1.5)
    assert sample(logits_BV.clone(), [Draw(sampling, random.Random(0), {0})]) == [1]
    assert sample(-logits_BV.clone(), [Draw(sampling, random.Random(0), {2})]) == [2]


def test_logits_that_are_no_numbers_are_named():
    for temperature in (0.0, 1.0):
        with pytest.raises(CheckpointError, match="not finite"):
            sample(torch.tensor([[0.0, float("nan")]]), [Draw(Sampling(temperature=temperature), random.Random(0))])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"max_tokens": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        Sampling(**wrong)
