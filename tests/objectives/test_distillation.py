"""Distillation: the fused, packed, split loss equals the plain one, gradients included; a student that is its teacher
learns nothing.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hanlin.data.budget import count_tokens, split_by_budget, streams
from hanlin.data.pack import pack_tokens
from hanlin.models.memory import Scratch
from hanlin.models.transformer import Transformer
from hanlin.objectives import likelihood
from hanlin.objectives.distillation import (
    DIVERGENCES,
    DistillationConfig,
    distillation,
    distillation_metrics,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    score_against,
)
from hanlin.types import Tokens
from tiny import CONFIGS, VOCAB, random_texts, tiny_model
from tiny_gradients import assert_same_gradients, gradients

KINDS = ("forward", "reverse", "jensen-shannon")


def config_of(**values: Any) -> DistillationConfig:
    return DistillationConfig(**({"kind": "distillation", "teacher": "teacher"} | values))


def divergence(kind: str, p: Tensor, q: Tensor) -> Tensor:
    """By the definitions, row by row, from probabilities."""
    if kind == "forward":
        return (p * (p / q).log()).sum(-1)
    if kind == "reverse":
        return (q * (q / p).log()).sum(-1)
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2


def row_loss(model: Transformer, teacher: Transformer, texts: list[Tokens], config: DistillationConfig) -> Tensor:
    """The plain way: every text is a row of its own, full logits of both, in fp64."""
    total, count = torch.tensor(0.0, dtype=torch.float64), 0
    for text in texts:
        ids = torch.tensor(text.ids)
        scored = torch.tensor(text.scored)[1:]
        mine, theirs = model.logits(ids)[:-1][scored].double(), teacher.logits(ids)[:-1][scored].double()
        p, q = (F.softmax(logits / config.temperature, dim=-1) for logits in (theirs, mine))
        total = total + divergence(config.divergence, p, q).sum()
        total = total + config.weight * F.cross_entropy(mine, ids[1:][scored], reduction="sum")
        count += int(scored.sum())
    return (total / count).float()


def loss_of(model: Transformer, teacher: Transformer, texts: list[Tokens], config: DistillationConfig) -> Tensor:
    return distillation(model, pack_tokens(texts), count_tokens(texts), teacher=teacher, config=config).total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", CONFIGS)
def test_packed_equals_dense_rows(family: str, kind: str):
    model, teacher, texts = tiny_model(family), tiny_model(family, seed=1), random_texts(5)
    config = config_of(divergence=kind, temperature=1.7, weight=0.3)
    expected = row_loss(model, teacher, texts, config)
    loss = loss_of(model, teacher, texts, config)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    mine = gradients(model, loss)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert_same_gradients(mine, gradients(model, expected))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["frozen", "fast", "lean"])
def test_every_way_through_the_head_gives_the_same_gradients(kind: str, mode: str, monkeypatch: pytest.MonkeyPatch):
    """Chunks and pieces end in the middle of the predictions; soft-caps are reached. The teacher's logits never exist
    for more predictions than a chunk has.
    """
    monkeypatch.setattr(likelihood, "CHUNK_ROWS", 5)
    monkeypatch.setattr(likelihood, "SLAB_WORDS", 7)
    monkeypatch.setitem(likelihood.PIECE_BYTES, "cpu", 4 * VOCAB * 2)
    model, teacher, texts = tiny_model("gemma2"), tiny_model("gemma2", seed=1), random_texts(4)
    config = config_of(divergence=kind, weight=0.5)
    model.head_weight.requires_grad_(mode != "frozen")
    model.head_mode = "fast" if mode == "frozen" else mode  # pyright: ignore
    scratch = Scratch()
    model.lend(scratch)
    mine = gradients(model, loss_of(model, teacher, texts, config))
    model.lend(None)
    assert len(scratch._buffers["teacher logits"]) == 5 * VOCAB
    assert (len(scratch._buffers["logits"]) > 5 * VOCAB) == (mode == "fast")
    assert_same_gradients(mine, gradients(model, row_loss(model, teacher, texts, config)))


def test_split_equals_whole_and_padding_changes_nothing():
    model, teacher, texts, config = tiny_model("gemma2"), tiny_model("gemma2", seed=1), random_texts(7), config_of()
    counts = count_tokens(texts)

    def step(groups: list[list[Tokens]], pad_to: int = 0) -> Tensor:
        parts = [
            distillation(model, pack_tokens(group, pad_to=pad_to), counts, teacher=teacher, config=config).total
            for group in groups
        ]
        return torch.stack(parts).sum()

    whole = gradients(model, step([texts]))
    bins = [[texts[index] for index in bin] for bin in split_by_budget(texts, max_tokens=50)]
    assert len(bins) > 1
    assert_same_gradients(gradients(model, step(bins)), whole)
    assert_same_gradients(gradients(model, step([[text] for text in texts])), whole)
    assert_same_gradients(gradients(model, step([texts], pad_to=200)), whole)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_learns_nothing(kind: str, temperature: float):
    model, teacher, texts = tiny_model("gemma2"), tiny_model("gemma2"), random_texts(5)
    loss = loss_of(model, teacher, texts, config_of(divergence=kind, temperature=temperature))
    within = 0.0 if kind != "jensen-shannon" else 1e-6
    assert abs(loss.item()) <= within
    assert all(gradient.abs().max() <= within for gradient in gradients(model, loss).values())


def test_two_words_by_hand():
    """p = (3/4, 1/4) and q = (1/2, 1/2): KL(p || q) = ln 2 - H(p), KL(q || p) = ln(2 / sqrt 3)."""
    log_p, log_q = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    value, slope = forward_kl(log_p, log_q)
    assert value.item() == pytest.approx(math.log(2) - entropy, rel=1e-5)
    assert slope.tolist() == [[pytest.approx(-0.25), pytest.approx(0.25)]]
    assert reverse_kl(log_p, log_q)[0].item() == pytest.approx(math.log(2 / math.sqrt(3)), rel=1e-5)
    middle = -(0.625 * math.log(0.625) + 0.375 * math.log(0.375))  # H(m) - (H(p) + H(q)) / 2
    assert jensen_shannon(log_p, log_q)[0].item() == pytest.approx(middle - (entropy + math.log(2)) / 2, rel=1e-5)


@pytest.mark.parametrize(("kind", "beta"), [("forward", 0.0), ("reverse", 1.0), ("jensen-shannon", 0.5)])
def test_the_divergence_is_trl_s(kind: str, beta: float):
    """TRL's generalised divergence of GKD, on a batch of rows."""
    gkd = pytest.importorskip("trl.experimental.gkd")
    source = torch.Generator().manual_seed(0)
    mine, theirs = (3 * torch.randn(2, 7, VOCAB, generator=source) for _ in range(2))
    expected = gkd.GKDTrainer.generalized_jsd_loss(mine, theirs, beta=beta, temperature=1.3, reduction="sum")
    rows = ((logits.view(-1, VOCAB) / 1.3).log_softmax(-1) for logits in (theirs, mine))
    assert DIVERGENCES[kind](*rows)[0].sum().item() == pytest.approx(expected.item(), rel=1e-5)


def test_held_out_scores_are_those_of_each_text():
    model, teacher, texts = tiny_model("smollm2"), tiny_model("smollm2", seed=1), random_texts(5)
    config = config_of()
    scores = score_against(model, streams(texts, pack_tokens, max_tokens=40), teacher=teacher, config=config)
    for text, score in zip(texts, scores, strict=True):
        assert score.mean_divergence == pytest.approx(row_loss(model, teacher, [text], config).item(), rel=1e-4)
        assert score.text.tokens == sum(text.scored[1:])
    metrics = distillation_metrics(scores)
    assert metrics["eval_divergence"] == pytest.approx(row_loss(model, teacher, texts, config).item(), rel=1e-4)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_nll_loss"]))
