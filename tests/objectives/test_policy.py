"""RLHF's arithmetic: REINFORCE's gradient, the leave-one-out baseline, clipping, and packed groups as separate rows."""

import random

import pytest
import torch
from torch.nn import functional as F

from hanlin.data.budget import streams
from hanlin.data.groups import Group, count_groups, pack_group_ends, pack_groups
from hanlin.models.frozen import frozen_copy
from hanlin.models.lora import LoraConfig, adapted, add_lora, without_adapters
from hanlin.models.transformer import Transformer
from hanlin.objectives.likelihood import batch_logprobs, span_sums
from hanlin.objectives.policy import RlhfConfig, advantages, reinforce, reinforce_from_logprobs
from hanlin.types import Counts
from tiny import CONFIGS, VOCAB, tiny_model

PLAIN = RlhfConfig(kind="rlhf", rewards=("chinese",))
CLIPPED = RlhfConfig(kind="rlhf", rewards=("chinese",), clip=0.2, updates=2)


def random_groups(number: int, *, answers: int = 3, seed: int = 0) -> list[Group]:
    """Groups with prompts and answers of 1 to 12 tokens."""
    source = random.Random(seed)

    def ids() -> tuple[int, ...]:
        return tuple(source.randrange(VOCAB) for _ in range(source.randint(1, 12)))

    return [
        Group(
            ids(),
            tuple(ids() for _ in range(answers)),
            advantages([source.gauss(0, 1) for _ in range(answers)]),
            tuple(source.uniform(-30, -1) for _ in range(answers)),
            id=f"group-{index}",
        )
        for index in range(number)
    ]


def as_sampled(model: Transformer, groups: list[Group]) -> list[Group]:
    """The groups with log-probabilities under the model: as if it had just given the answers."""
    made = []
    for group in groups:
        with torch.no_grad():
            sums = [answer_logprob(model, group.prompt, answer).item() for answer in group.answers]
        made.append(Group(group.prompt, group.answers, group.advantages, tuple(sums), id=group.id))
    return made


def answer_logprob(model: Transformer, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor(prompt + answer)
    return F.log_softmax(model.logits(ids)[:-1], dim=-1).gather(1, ids[1:, None])[len(prompt) - 1 :, 0].sum()


def gradients(model: Transformer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.to_dense().clone() for name, parameter in model.named_parameters()}


def assert_same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, expected in theirs.items():
        assert (mine[name] - expected).norm() <= 2e-5 * expected.norm().clamp(min=1e-6), name


@pytest.mark.parametrize("config", [PLAIN, CLIPPED], ids=["plain", "clipped"])
@pytest.mark.parametrize("family", CONFIGS)
def test_packed_groups_equal_separate_rows(family: str, config: RlhfConfig):
    model = tiny_model(family, std=0.25)
    # The answers are from a slightly other model, so that ratios are on both sides of the clip.
    groups = as_sampled(tiny_model(family, std=0.2502), random_groups(4))
    counts = count_groups(groups)
    expected = torch.tensor(0.0)
    for group in groups:
        for answer, gain, old in zip(group.answers, group.advantages, group.logprobs, strict=True):
            logp = answer_logprob(model, group.prompt, answer)
            if config.clip is None:
                expected = expected - gain * logp
            else:
                ratio = (logp - old).exp()
                expected = expected - torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
    expected = expected / 12
    loss = reinforce(model, pack_groups(groups), counts, config=config).total
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    mine, theirs = gradients(model, loss), gradients(model, expected)
    assert_same(mine, theirs)
    apart = reinforce(model, pack_groups(groups, share=False), counts, config=config).total
    assert_same(gradients(model, apart), theirs)


@pytest.mark.parametrize("config", [PLAIN, CLIPPED], ids=["plain", "clipped"])
def test_split_equals_whole(config: RlhfConfig):
    model = tiny_model("llama")
    groups = as_sampled(model, random_groups(5))
    counts = count_groups(groups)
    whole = gradients(model, reinforce(model, pack_groups(groups), counts, config=config).total)
    batches = [batch for _, batch in streams(groups, pack_groups, max_tokens=40)]
    assert len(batches) > 1
    parts = sum((reinforce(model, batch, counts, config=config).total for batch in batches), torch.tensor(0.0))
    assert_same(gradients(model, parts), whole)


def test_clipped_is_unclipped_where_the_ratio_is_1():
    model = tiny_model("gemma2")
    groups = as_sampled(model, random_groups(4))
    batch, counts = pack_groups(groups), count_groups(groups)
    plain = reinforce(model, batch, counts, config=PLAIN)
    clipped = reinforce(model, batch, counts, config=CLIPPED)
    assert clipped.terms["clip_ratio/region_mean"] == 0
    assert_same(gradients(model, clipped.total), gradients(model, plain.total))


def test_clipping_takes_the_gradient_away():
    """An answer that is already much likelier teaches nothing more, one that should become less likely does."""
    group = Group((1,), ((2,), (3,)), (1.0, -1.0), (-3.0, -3.0))
    logp_N = torch.tensor([-1.0, -1.0], requires_grad=True)
    loss = reinforce_from_logprobs(logp_N, pack_groups([group]), count_groups([group]), config=CLIPPED)
    loss.total.backward()
    assert logp_N.grad is not None
    assert logp_N.grad[0] == 0
    assert logp_N.grad[1] == pytest.approx(torch.tensor(2.0).exp().item() / 2)
    assert loss.terms["clip_ratio/region_mean"] == 0.5


def test_the_gradient_is_reinforce_s_on_two_tokens():
    """A policy over answers 0 and 1, p = softmax(z): the expected reward r·p has the gradient p (r - r·p). Summed over
    every group of two answers with its probability, the loss's gradient is minus that, whatever the baseline.
    """
    z = torch.tensor([0.3, -0.5], dtype=torch.float64, requires_grad=True)
    reward = (1.0, 0.25)
    p = z.softmax(0).detach()
    expected = p * (torch.tensor(reward, dtype=torch.float64) - (p * torch.tensor(reward, dtype=torch.float64)).sum())
    total = torch.zeros((), dtype=torch.float64)
    for first in (0, 1):
        for second in (0, 1):
            better = advantages([reward[first], reward[second]])
            group = Group((5,), ((first,), (second,)), better, (0.0, 0.0))
            logp_N = z.log_softmax(0)[torch.tensor([first, second])].float()
            loss = reinforce_from_logprobs(logp_N, pack_groups([group]), Counts(0, 2, 2), config=PLAIN).total
            total = total + p[first] * p[second] * loss
    total.backward()
    assert z.grad is not None
    torch.testing.assert_close(-z.grad, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rewards", [(1.0, 0.0), (0.1, 0.7, -3.0, 12.5), (0.3, 0.3, 0.3)])
def test_leave_one_out_advantages(rewards: tuple[float, ...]):
    better = advantages(rewards)
    assert sum(better) == pytest.approx(0, abs=1e-12)
    for place, value in enumerate(better):
        others = [reward for other, reward in enumerate(rewards) if other != place]
        assert value == pytest.approx(rewards[place] - sum(others) / len(others))


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen2"])
def test_a_frozen_copy_says_the_same_bit_for_bit(family: str, compute: torch.dtype):
    model = tiny_model(family)
    model.compute_dtype = compute
    copy = frozen_copy(model)
    batch = pack_groups(random_groups(3))
    with torch.no_grad():
        before = batch_logprobs(copy, batch)
        assert torch.equal(before, batch_logprobs(model, batch))
        for parameter in model.parameters():
            parameter.add_(0.1)
        assert torch.equal(before, batch_logprobs(copy, batch))
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    if compute == torch.bfloat16:
        assert sum(one.nbytes for one in copy.parameters()) < 0.8 * sum(one.nbytes for one in model.parameters())


def test_without_adapters_is_the_base_bit_for_bit():
    model = tiny_model("llama")
    batch = pack_groups(random_groups(2))
    with torch.no_grad():
        base = batch_logprobs(model, batch)
        add_lora(model, LoraConfig(rank=2), seed=0)
        for linear in adapted(model).values():
            linear.up.normal_()
        tuned = batch_logprobs(model, batch)
        with without_adapters(model):
            assert torch.equal(batch_logprobs(model, batch), base)
        assert torch.equal(batch_logprobs(model, batch), tuned)
    assert not torch.equal(tuned, base)


def test_ends_are_the_answers_last_tokens():
    groups = random_groups(3)
    batch = pack_group_ends(groups)
    last = [answer[-1] for group in groups for answer in group.answers]
    assert batch.tokens_T[batch.predictor_N].tolist() == batch.target_N.tolist() == last
    assert batch.num_spans == len(last)


def test_spans_hold_the_answers():
    groups = random_groups(3)
    batch = pack_groups(groups)
    _, tokens_S = span_sums(torch.zeros(len(batch.target_N)), batch)
    assert tokens_S.tolist() == [len(answer) for group in groups for answer in group.answers]
    assert batch.num_tokens == sum(group.num_tokens for group in groups)
    assert count_groups(groups) == Counts(likelihood_tokens=len(batch.target_N), answers=9)
