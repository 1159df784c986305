"""SFT and pre-training: packed texts equal plain rows, gradients included; scored is what the format says."""

import random

import pytest
import torch
from torch.nn import functional as F

from hanlin.data.budget import count_tokens, split_by_budget, streams
from hanlin.data.pack import pack_tokens
from hanlin.objectives.next_token import next_token, score_texts, text_metrics
from hanlin.text.chat import FORMATS
from hanlin.text.encode import encode_conversation, encode_prompt
from hanlin.text.tokenizer import Tokenizer
from hanlin.types import Conversation, Message, Tokens
from tiny import CONFIGS, random_texts, tiny_model
from tiny_gradients import assert_same_gradients, gradients
from tiny_text import random_messages, write_directory


def row_loss(model, texts: list[Tokens]) -> torch.Tensor:
    """The plain way: every text is a row of its own, full logits, labels."""
    total, count = torch.tensor(0.0), 0
    for text in texts:
        ids = torch.tensor(text.ids)
        labels = torch.where(torch.tensor(text.scored), ids, -100)[1:]
        total = total + F.cross_entropy(model.logits(ids)[:-1], labels, ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    return total / count


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_equals_rows(family: str):
    model, texts = tiny_model(family), random_texts(6)
    expected = row_loss(model, texts)
    loss = next_token(model, pack_tokens(texts), count_tokens(texts)).total
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_split_equals_whole_and_padding_changes_nothing():
    model, texts = tiny_model("gemma2"), random_texts(7)
    counts = count_tokens(texts)

    def step(groups, pad_to: int = 0):
        return sum(next_token(model, pack_tokens(group, pad_to=pad_to), counts).total for group in groups)

    whole = gradients(model, step([texts]))
    bins = [[texts[index] for index in bin] for bin in split_by_budget(texts, max_tokens=50)]
    assert len(bins) > 1
    assert_same_gradients(gradients(model, step(bins)), whole)
    assert_same_gradients(gradients(model, step([[text] for text in texts])), whole)
    assert_same_gradients(gradients(model, step([texts], pad_to=300)), whole)


def test_counts_are_what_a_batch_scores():
    texts = random_texts(9, seed=3)
    assert count_tokens(texts).likelihood_tokens == len(pack_tokens(texts).target_N)
    assert count_tokens(texts) == sum((count_tokens([text]) for text in texts), start=count_tokens([]))


def test_a_batch_is_one_segment_and_one_span_a_text():
    one, other = Tokens((5, 6, 7), (False, True, True), id="a"), Tokens((8, 9), (True, True), id="b")
    batch = pack_tokens([one, other])
    assert [(segment.start, segment.length, segment.prefix_length) for segment in batch.segments] == [
        (0, 3, 0),
        (3, 2, 0),
    ]
    assert batch.positions_T.tolist() == [0, 1, 2, 0, 1]
    assert batch.predictor_N.tolist() == [0, 1, 3]
    assert batch.target_N.tolist() == [6, 7, 9]
    assert batch.span_N.tolist() == [0, 0, 1]
    assert (batch.ids_P, batch.num_logical_tokens) == (("a", "b"), 5)
    assert len(batch.chosen_P) == len(batch.rejected_P) == len(batch.prompt_P) == 0


def test_held_out_scores_are_the_loss_by_text():
    model, texts = tiny_model("llama"), random_texts(5)
    scores = score_texts(model, streams(texts, pack_tokens, max_tokens=40))
    for text, score in zip(texts, scores, strict=True):
        assert score.nll == pytest.approx(row_loss(model, [text]).item(), rel=1e-5)
        assert score.tokens == sum(text.scored[1:])
    assert text_metrics(scores)["eval_nll_loss"] == pytest.approx(row_loss(model, texts).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["gemma", "llama3", "smollm2"])
def test_masks_are_the_assistants_words_and_stops(name: str, tmp_path):
    """Read back piece by piece: what is scored decodes to the answers, each with its stop, and to nothing else."""
    tokenizer, format = Tokenizer.open(write_directory(tmp_path, name)), FORMATS[name]
    source = random.Random(7)
    for _ in range(20):
        messages = tuple(random_messages(source))
        answers = [format.answer(message.content) + format.stop for message in messages if message.role == "assistant"]
        for score, wanted in (("every", answers), ("last", answers[-1:])):
            tokens = encode_conversation(Conversation(messages, id="c"), format, tokenizer, score=score)
            scored = [id for id, is_scored in zip(tokens.ids, tokens.scored, strict=True) if is_scored]
            assert tokenizer.decode(scored, keep_control=True) == "".join(wanted)
            assert tokens.id == "c"
        prompt = encode_prompt(messages[:-1], format, tokenizer)
        assert tokens.ids[: len(prompt)] == tuple(prompt)
        assert tokens.scored.index(True) == len(prompt)


def test_a_turn_in_the_middle_is_scored_to_its_stop(tmp_path):
    tokenizer, format = Tokenizer.open(write_directory(tmp_path, "smollm2")), FORMATS["smollm2"]
    said = [("user", "hi"), ("assistant", "a"), ("user", "b"), ("assistant", "c")]
    conversation = Conversation(tuple(Message(*turn) for turn in said))
    tokens = encode_conversation(conversation, format, tokenizer, score="every")
    text = [tokenizer.piece(id) if scored else "." for id, scored in zip(tokens.ids, tokens.scored, strict=True)]
    assert [piece for piece in text if piece != "."] == ["a", "<|im_end|>", "c", "<|im_end|>"]
