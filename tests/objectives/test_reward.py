"""Reward models: packed pairs equal padded rows, gradients included; transformers opens one with equal scores."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import hanlin
from hanlin.config import load_recipe
from hanlin.data.budget import split_by_budget, streams
from hanlin.data.pack import count_pairs, pack_ends
from hanlin.errors import CheckpointError
from hanlin.models.attention import SegmentAttention
from hanlin.models.reward import add_score, load_reward_model, rewards
from hanlin.models.weights import load_model, save_model
from hanlin.objectives.reward import reward, reward_metrics, score_rewards
from hanlin.text.tokenizer import Tokenizer
from hanlin.training.recipe import Recipe
from hanlin.training.session import open_material
from hanlin.types import EncodedPair, Segment
from tiny import CONFIGS, random_pairs, tiny_model
from tiny_gradients import assert_same_gradients, gradients
from tiny_objectives import recipe_of


def reward_model(family: str, *, seed: int = 0):
    model = tiny_model(family, seed=seed)
    add_score(model, seed=seed)
    return model


def row_reward(model, ids: tuple[int, ...]) -> torch.Tensor:
    """The reward of one plain row, read at its last token."""
    attend = SegmentAttention(model.config, [Segment(0, len(ids))], model.device)
    hidden = model.hidden(torch.tensor(ids), torch.arange(len(ids)), attend)
    return rewards(model, hidden[-1:])[0]


def row_loss(model, pairs: list[EncodedPair]) -> torch.Tensor:
    total = torch.tensor(0.0)
    for pair in pairs:
        difference = row_reward(model, pair.prompt + pair.chosen) - row_reward(model, pair.prompt + pair.rejected)
        total = total - F.logsigmoid(difference)
    return total / len(pairs)


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_and_shared_equals_padded_rows(family: str):
    model, pairs = reward_model(family), random_pairs(5)
    expected = row_loss(model, pairs)
    loss = reward(model, pack_ends(pairs), count_pairs(pairs)).total
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_split_equals_whole():
    model, pairs = reward_model("gemma2"), random_pairs(6)
    counts = count_pairs(pairs)
    whole = gradients(model, reward(model, pack_ends(pairs), counts).total)
    bins = [[pairs[index] for index in bin] for bin in split_by_budget(pairs, max_tokens=60)]
    assert len(bins) > 1
    assert_same_gradients(gradients(model, sum(reward(model, pack_ends(group), counts).total for group in bins)), whole)


@pytest.mark.parametrize("share", [True, False])
def test_the_places_read_are_the_answers_last_tokens(share: bool):
    pairs = [*random_pairs(4), EncodedPair((1, 2), (3, 4), (3, 4, 5)), EncodedPair((1, 2), (3, 4, 5), (3, 4))]
    batch = pack_ends(pairs, share=share)
    ends = [answer[-1] for pair in pairs for answer in (pair.chosen, pair.rejected)]
    assert batch.tokens_T[batch.predictor_N].tolist() == ends
    lengths = [len(pair.prompt) + len(answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    assert (batch.positions_T[batch.predictor_N] + 1).tolist() == lengths


def test_equal_answers_give_ln_2_and_swapping_negates():
    model = reward_model("llama")
    same = EncodedPair((1, 2), (3, 4), (3, 4))
    assert reward(model, pack_ends([same]), count_pairs([same])).total.item() == pytest.approx(math.log(2))
    one, other = EncodedPair((1, 2), (3, 4), (5,)), EncodedPair((1, 2), (5,), (3, 4))
    first, second = (score_rewards(model, [([0], pack_ends([pair]))])[0] for pair in (one, other))
    assert first.margin == pytest.approx(-second.margin, rel=1e-5)


def test_metrics_are_means_over_pairs():
    model, pairs = reward_model("qwen2"), random_pairs(5)
    scores = score_rewards(model, streams(pairs, pack_ends, max_tokens=60))
    terms = reward(model, pack_ends(pairs), count_pairs(pairs)).terms
    for name, value in terms.items():
        assert reward_metrics(scores)[f"eval_{name}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3", "llama", "qwen2"])
def test_transformers_opens_it_with_equal_scores(family: str, tmp_path: Path):
    import transformers

    model = reward_model(family)
    save_model(model, tmp_path, dtype="float32", eos_ids=(1,), pad_id=0)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    assert theirs.config.num_labels == 1
    pairs = random_pairs(4, seed=2)
    rows = [pair.prompt + answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    with torch.no_grad():
        for ids in rows:
            ids = tuple(max(id, 2) for id in ids)
            expected = theirs(torch.tensor([[*ids, 0, 0]]), attention_mask=torch.tensor([[1] * len(ids) + [0, 0]]))
            torch.testing.assert_close(row_reward(model, ids), expected.logits[0, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_saved_and_loaded_is_the_model_in_memory(family: str, tmp_path: Path):
    model = reward_model(family)
    save_model(model, tmp_path, dtype="float32")
    loaded = load_reward_model(tmp_path)
    mine, theirs = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert json.loads((tmp_path / "config.json").read_text())["architectures"][0].endswith("ForSequenceClassification")


def test_the_two_kinds_of_model_are_not_taken_for_each_other(tmp_path: Path):
    save_model(reward_model("llama"), tmp_path / "reward")
    save_model(tiny_model("llama"), tmp_path / "language")
    with pytest.raises(CheckpointError, match="is a reward model"):
        load_model(tmp_path / "reward")
    with pytest.raises(CheckpointError, match="no reward model"):
        load_reward_model(tmp_path / "language")


def test_a_trained_run_scores_answers_in_transformers_as_here(tmp_path: Path):
    """Through the recipe, the tokenizer and its padding: the stop is not what rows are padded with."""
    import transformers

    recipe = recipe_of(tmp_path, "reward")
    run = hanlin.train(recipe)
    model, tokenizer = load_reward_model(run), Tokenizer.open(run)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(run, dtype=torch.float32).eval()
    assert theirs.config.pad_token_id != tokenizer.id("<|im_end|>")
    pairs = open_material(load_recipe(Recipe, recipe), on_note=lambda _: None).data.held_out
    scores = score_rewards(model, streams(pairs, pack_ends, max_tokens=90))
    for pair, score in zip(pairs, scores, strict=True):
        for answer, mine in ((pair.chosen, score.chosen), (pair.rejected, score.rejected)):
            with torch.no_grad():
                expected = theirs(torch.tensor([pair.prompt + answer])).logits[0, 0].item()
            assert mine == pytest.approx(expected, rel=1e-4, abs=1e-4)
