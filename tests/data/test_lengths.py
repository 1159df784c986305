"""The length policies: what may be cut, what never is, and that every loss is counted."""

import json
import random

import pytest

from hanlin.data.lengths import PromptFrame, fit_lengths
from hanlin.errors import DataError
from hanlin.types import EncodedPair

BOS, TURN, STOP, NEWLINE = 1, 2, 3, 4
SYSTEM, USER, ASSISTANT = 5, 6, 7
HEADER = [TURN, ASSISTANT, NEWLINE]
FRAME = PromptFrame(start=4, end=5, turn=TURN, header=3)


def turn(role: int, content: list[int]) -> list[int]:
    return [TURN, role, NEWLINE, *content, STOP, NEWLINE]


def prompt(*turns: list[int]) -> tuple[int, ...]:
    return (BOS, *(id for one in turns for id in one), *HEADER)


def pair(prompt: tuple[int, ...], chosen: int = 4, rejected: int = 3, id: str = "p") -> EncodedPair:
    """Answers of these lengths, stop token included."""
    return EncodedPair(
        prompt=prompt, chosen=(*range(500, 499 + chosen), STOP), rejected=(*range(600, 599 + rejected), STOP), id=id
    )


def fit_prompt(prompt: tuple[int, ...], room: int, frame: PromptFrame = FRAME) -> tuple[int, ...]:
    (fitted,), _ = fit_lengths([pair(prompt)], max_length=room + 4, on_long="truncate_prompt", frame=frame)
    return fitted.prompt


def test_the_frame_is_read_off_two_prompts():
    one, other = prompt(turn(USER, [10])), prompt(turn(USER, [11]))
    assert PromptFrame.between(one, other, turn=TURN) == FRAME
    assert PromptFrame.between(one, other, turn=None) == PromptFrame(start=4, end=5)
    with_default = [prompt(turn(SYSTEM, [50, 51]), turn(USER, [id])) for id in (10, 11)]
    assert PromptFrame.between(*with_default, turn=TURN) == PromptFrame(start=11, end=5, turn=TURN, header=3)
    assert PromptFrame.between([10], [11], turn=TURN) == PromptFrame(start=0, end=0)


def test_what_fits_is_untouched():
    pairs = [pair(prompt(turn(USER, [10, 11])), id="a"), pair(prompt(turn(USER, [12])), id="b")]
    for policy in ("drop", "truncate_prompt", "error"):
        kept, report = fit_lengths(pairs, max_length=len(pairs[0].prompt) + 4, on_long=policy, frame=FRAME)
        assert kept == pairs
        assert (report.pairs, report.kept, report.dropped, report.shortened, report.examples) == (2, 2, {}, 0, {})


def test_the_limit_counts_prompt_and_longer_answer():
    one = pair(prompt(turn(USER, [10])), chosen=4, rejected=7)
    assert len(fit_lengths([one], max_length=len(one.prompt) + 7, on_long="drop")[0]) == 1
    with pytest.raises(DataError, match="no pair is left"):
        fit_lengths([one], max_length=len(one.prompt) + 6, on_long="drop")


def test_drop_counts_and_names():
    long = [pair(prompt(turn(USER, list(range(10, 60)))), id=f"long-{i}") for i in range(9)]
    kept, report = fit_lengths([*long, pair(prompt(turn(USER, [10])))], max_length=20, on_long="drop")
    assert [one.id for one in kept] == ["p"]
    assert report.dropped == {"too long": 9}
    assert report.examples["too long"][0] == "long-0 (63)"
    assert len(report.examples["too long"]) == 5
    assert report.lines()[:2] == [
        "10 pairs: 1 kept, 9 dropped (max_length = 20)",
        "  9 × too long: long-0 (63), long-1 (63), long-2 (63), long-3 (63), long-4 (63)",
    ]


def test_error_names_the_pair_its_length_and_the_limit():
    with pytest.raises(DataError, match=r"pair a\.jsonl:3 has 15 tokens .*max_length = 14"):
        fit_lengths([pair(prompt(turn(USER, [10, 11])), id="a.jsonl:3")], max_length=14, on_long="error")


def test_a_long_question_loses_its_middle():
    long = prompt(turn(USER, list(range(100, 200))))
    assert fit_prompt(long, 15) == prompt(turn(USER, [100, 101, 102, 197, 198, 199]))
    assert fit_prompt(long, 14) == prompt(turn(USER, [100, 101, 102, 198, 199]))
    assert fit_prompt(long, 10) == prompt(turn(USER, [100]))


def test_old_exchanges_go_whole_and_first():
    exchanges = [turn(USER, [10, 11]), turn(ASSISTANT, [12]), turn(USER, [13]), turn(ASSISTANT, [14]), turn(USER, [15])]
    whole = prompt(*exchanges)
    assert fit_prompt(whole, len(whole) - 1) == prompt(*exchanges[2:])
    assert fit_prompt(whole, len(prompt(*exchanges[2:]))) == prompt(*exchanges[2:])
    assert fit_prompt(whole, len(prompt(*exchanges[2:])) - 1) == prompt(*exchanges[4:])


def test_the_system_text_stays():
    system = turn(SYSTEM, [50, 51, 52])
    exchanges = [turn(USER, [10, 11]), turn(ASSISTANT, [12]), turn(USER, list(range(100, 150)))]
    whole = prompt(system, *exchanges)
    assert fit_prompt(whole, len(whole) - 1) == prompt(system, exchanges[2])
    assert fit_prompt(whole, len(prompt(system)) + 5 + 4) == prompt(system, turn(USER, [100, 101, 148, 149]))


def test_without_a_turn_id_the_prompt_is_one_turn():
    frame = PromptFrame(start=2, end=1)
    assert fit_prompt((1, 2, 30, 31, 32, 33, 34, 9), 6, frame) == (1, 2, 30, 31, 34, 9)


def test_what_cannot_fit_is_dropped_by_reason():
    fine = pair(prompt(turn(USER, [10])))
    long_answer = pair(prompt(turn(USER, [10] * 9)), chosen=40, id="answer")
    long_system = pair(prompt(turn(SYSTEM, [50] * 60), turn(USER, [10])), id="system")
    kept, report = fit_lengths([fine, long_answer, long_system], max_length=45, on_long="truncate_prompt", frame=FRAME)
    assert kept == [fine]
    assert report.dropped == {"answer too long": 1, "system text too long": 1}
    assert report.examples["answer too long"] == ("answer (58)",)


def test_equal_and_empty_answers_are_dropped_under_every_policy():
    start = prompt(turn(USER, [10]))
    equal = EncodedPair(prompt=start, chosen=(8, 9, STOP), rejected=(8, 9, STOP), id="equal")
    empty = EncodedPair(prompt=start, chosen=(8, STOP), rejected=(STOP,), id="empty")
    for policy in ("drop", "truncate_prompt", "error"):
        kept, report = fit_lengths([equal, empty, pair(start)], max_length=99, on_long=policy, frame=FRAME)
        assert [one.id for one in kept] == ["p"]
        assert report.dropped == {"equal answers": 1, "empty answer": 1}
        assert report.examples == {"equal answers": ("equal (13)",), "empty answer": ("empty (12)",)}


def test_cutting_prompts_needs_to_know_their_frame():
    with pytest.raises(TypeError, match="needs a PromptFrame"):
        fit_lengths([], max_length=9, on_long="truncate_prompt")


def test_no_pairs_is_an_empty_report():
    kept, report = fit_lengths(iter(()), max_length=8, on_long="error")
    assert (kept, report.pairs, report.lengths, report.histogram) == ([], 0, {}, ())


def test_lengths_are_those_before_fitting():
    pairs = [pair(tuple(range(10, 10 + size)), id=str(size)) for size in range(1, 101)]
    _, report = fit_lengths(pairs, max_length=60, on_long="drop")
    spread = report.lengths["prompt"]
    assert (spread.minimum, spread.median, spread.p90, spread.p99, spread.maximum) == (1, 51, 91, 100, 100)
    assert spread.mean == 50.5
    assert report.lengths["row"].maximum == 104
    assert report.histogram == ((64, 60), (128, 40))


def test_laws_on_random_pairs():
    rng = random.Random(7)
    for _ in range(500):
        turns = [turn(SYSTEM, rng.choices(range(10, 99), k=rng.randrange(1, 9)))] if rng.random() < 0.5 else []
        for index in range(2 * rng.randrange(4) + 1):
            turns.append(turn(ASSISTANT if index % 2 else USER, rng.choices(range(10, 99), k=rng.randrange(1, 30))))
        before = pair(prompt(*turns), chosen=rng.randrange(2, 30), rejected=rng.randrange(2, 30))
        limit = rng.randrange(20, 160)
        fitting = pair(prompt(turn(USER, [10])), 2, 2, id="fits")
        kept, report = fit_lengths([fitting, before], max_length=limit, on_long="truncate_prompt", frame=FRAME)
        assert report.kept == len(kept) == report.pairs - sum(report.dropped.values())
        if len(kept) == 1:
            assert report.dropped in ({"answer too long": 1}, {"system text too long": 1})
            continue
        after = kept[1]
        assert (after.chosen, after.rejected) == (before.chosen, before.rejected)
        assert len(after.prompt) + max(len(after.chosen), len(after.rejected)) <= limit
        assert report.cut_tokens == len(before.prompt) - len(after.prompt)
        assert report.shortened == (after != before)
        assert after.prompt[0] == BOS
        assert after.prompt[-5:] == (STOP, NEWLINE, *HEADER)
        roles = [after.prompt[i + 1] for i, id in enumerate(after.prompt) if id == TURN]
        expected = [SYSTEM] if turns[0][1] == SYSTEM else []
        assert roles == expected + [USER, ASSISTANT] * ((len(roles) - len(expected)) // 2)
        if expected:
            assert after.prompt[: len(turns[0]) + 1] == (BOS, *turns[0])
        remaining = iter(before.prompt)
        assert all(id in remaining for id in after.prompt), "tokens are removed, never changed or moved"


@pytest.mark.assets
def test_real_pairs_of_a_real_tokenizer_stay_readable(assets, shared_data):
    from hanlin.data.sources import read_preferences
    from hanlin.text.chat import FORMATS
    from hanlin.text.encode import encode_pair, encode_prompt
    from hanlin.text.tokenizer import Tokenizer
    from hanlin.types import Message

    pairs, _ = read_preferences(sorted(shared_data.glob("dpo_*_200.json")))
    for name, folder in (("gemma3", "gemma3"), ("llama3", "llama3"), ("qwen2.5", "qwen2_5")):
        tokenizer, form = Tokenizer.from_directory(assets / "tokenizers" / folder), FORMATS[name]
        one, other = (encode_prompt([Message("user", letter)], form, tokenizer) for letter in "ab")
        frame = PromptFrame.between(one, other, turn=tokenizer.id(form.opening))
        encoded = [encode_pair(pair, form, tokenizer) for pair in pairs[::7]]
        kept, report = fit_lengths(encoded, max_length=512, on_long="truncate_prompt", frame=frame)
        assert report.shortened > 3, json.dumps(report.lines())
        for pair in kept:
            text = tokenizer.decode(list(pair.prompt), keep_control=True)
            head = tokenizer.decode(one[: frame.header + bool(form.bos)], keep_control=True)
            assert text.startswith(head[: len(form.bos) + len(form.opening)])
            assert text.endswith(tokenizer.decode(one[-frame.end :], keep_control=True))
            assert pair.chosen[-1] == pair.rejected[-1] == tokenizer.id(form.stop)
