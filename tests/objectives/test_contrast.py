"""DPO and SimPO: packed pairs equal padded rows, gradients included, and the formulas hold at their corners."""

import math

import pytest
import torch
from torch.nn import functional as F

from hanlin.data.budget import split_by_budget, streams
from hanlin.data.pack import count_pairs, pack_pairs
from hanlin.objectives.contrast import DpoConfig, SimpoConfig, dpo, simpo, with_reference
from hanlin.objectives.scores import referenced_metrics, score_pairs
from hanlin.types import EncodedPair
from tiny import CONFIGS, random_pairs, tiny_model
from tiny_gradients import assert_same_gradients, gradients

DPO, SIMPO = DpoConfig(kind="dpo", beta=0.3), SimpoConfig(kind="simpo", beta=1.5, gamma_ratio=0.4)
LOSSES = {"dpo": (dpo, DPO), "simpo": (simpo, SIMPO)}


def referenced(model, number: int, *, seed: int = 0) -> list[EncodedPair]:
    """Random pairs with their reference under `model`."""
    pairs = random_pairs(number, seed=seed)
    return with_reference(model, pairs, streams(pairs, pack_pairs, max_tokens=60))


def logprobs(model, prompt, answer) -> torch.Tensor:
    ids = torch.tensor(prompt + answer)
    return F.log_softmax(model.logits(ids)[:-1], dim=-1).gather(1, ids[1:, None])[len(prompt) - 1 :, 0]


def row_loss(name: str, model, start, pairs: list[EncodedPair]) -> torch.Tensor:
    """Every answer a row of its own, the formula written out; `start` is the reference model itself."""
    total = torch.tensor(0.0)
    for pair in pairs:
        c, r = logprobs(model, pair.prompt, pair.chosen), logprobs(model, pair.prompt, pair.rejected)
        if name == "dpo":
            with torch.no_grad():
                c0, r0 = (logprobs(start, pair.prompt, answer).sum() for answer in (pair.chosen, pair.rejected))
            total = total - F.logsigmoid(0.3 * ((c.sum() - c0) - (r.sum() - r0)))
        else:
            total = total - F.logsigmoid(1.5 * (c.mean() - r.mean()) - 1.5 * 0.4)
    return total / len(pairs)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("family", CONFIGS)
def test_packed_and_shared_equals_padded_rows(family: str, name: str):
    start, model = tiny_model(family), tiny_model(family, std=0.25, seed=1)
    pairs, (loss_of, config) = referenced(start, 5), LOSSES[name]
    expected = row_loss(name, model, start, pairs)
    loss = loss_of(model, pack_pairs(pairs), count_pairs(pairs), config=config).total
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


@pytest.mark.parametrize("name", LOSSES)
def test_split_equals_whole(name: str):
    model, (loss_of, config) = tiny_model("llama", seed=1), LOSSES[name]
    pairs = referenced(tiny_model("llama"), 6)
    counts = count_pairs(pairs)

    def step(groups):
        return sum(loss_of(model, pack_pairs(group), counts, config=config).total for group in groups)

    whole = gradients(model, step([pairs]))
    bins = [[pairs[index] for index in bin] for bin in split_by_budget(pairs, max_tokens=60)]
    assert len(bins) > 1
    assert_same_gradients(gradients(model, step(bins)), whole)


def test_the_starting_model_has_no_rewards():
    model = tiny_model("gemma2")
    pairs = referenced(model, 4)
    loss = dpo(model, pack_pairs(pairs), count_pairs(pairs), config=DPO)
    assert loss.total.item() == pytest.approx(math.log(2), abs=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert loss.terms[name].item() == pytest.approx(0.0, abs=1e-5)


def test_swapping_the_answers_negates_the_margin():
    start, model = tiny_model("llama"), tiny_model("llama", seed=1)
    pairs = referenced(start, 4)
    swapped = [
        EncodedPair(pair.prompt, pair.rejected, pair.chosen, reference=(pair.reference[1], pair.reference[0]))
        for pair in pairs
    ]
    for loss_of, config in LOSSES.values():
        one, other = (
            loss_of(model, pack_pairs(some), count_pairs(some), config=config).terms["rewards/margins"]
            for some in (pairs, swapped)
        )
        torch.testing.assert_close(one, -other)


def test_equal_answers_leave_simpo_its_margin():
    pair = EncodedPair((1, 2), (3, 4), (3, 4))
    loss = simpo(tiny_model("llama"), pack_pairs([pair]), count_pairs([pair]), config=SIMPO).total
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(1.5 * 0.4))), rel=1e-5)


def test_held_out_rewards_of_dpo_are_relative_to_the_start():
    start, model = tiny_model("llama"), tiny_model("llama", seed=1)
    pairs = referenced(start, 5)
    terms = dpo(model, pack_pairs(pairs), count_pairs(pairs), config=DPO).terms
    metrics = referenced_metrics(score_pairs(model, streams(pairs, pack_pairs, max_tokens=60)), weight=DPO.beta)
    for name in ("rewards/accuracies", "rewards/margins"):
        assert metrics[f"eval_{name}"] == pytest.approx(terms[name].item(), rel=1e-4, abs=1e-5)
