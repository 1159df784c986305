"""Pairs from scores, ratings, thumbs, counts and ranked lists; what makes none is counted by its reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from hanlin.curation.feedback import read_feedback
from hanlin.curation.shards import find_shards
from hanlin.curation.weak_pairs import Paired, PairRule, pair_files
from hanlin.data.messages import BadRow
from hanlin.data.rows import read_row
from hanlin.errors import ConfigError, DataError


def pairs_of(tmp_path: Path, rows: list[Any], **rule: Any) -> tuple[list[tuple[str, str]], Paired]:
    file, output = tmp_path / "rows.jsonl", tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    output.unlink(missing_ok=True)
    done = pair_files(find_shards([str(file)]), output, PairRule(**rule))
    made = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    found = [read_row(row, "x") for row in made]
    return [(pair.chosen, pair.rejected) for pair in found], done


BEST = ("甲", "丙")
FORMS = {
    "scores inside": {
        "prompt": "问",
        "answers": [{"text": "乙", "score": 3}, {"text": "甲", "score": 5}, {"text": "丙", "score": 1}],
    },
    "scores beside": {"prompt": "问", "responses": ["乙", "甲", "丙"], "scores": [3, 5, "1"]},
    "ratings of several people": {"question": "问", "answers": ["乙", "甲", "丙"], "ratings": [[3], [5, 4], [1, 2]]},
    "UltraFeedback": {
        "instruction": "问",
        "completions": [
            {"model": "a", "response": "乙", "overall_score": 7.5},
            {"model": "b", "response": "甲", "overall_score": 9},
            {"model": "c", "response": "丙", "overall_score": 2},
        ],
    },
    "counts": {
        "messages": [{"role": "user", "content": "问"}],
        "candidates": [
            {"content": "乙", "upvotes": 1, "downvotes": 0},
            {"content": "甲", "upvotes": 9, "downvotes": 1},
            {"content": "丙", "upvotes": 0, "downvotes": 3},
        ],
    },
    "votes for each": {"prompt": "问", "answers": ["乙", "甲", "丙"], "votes": [3, 9, 0]},
    "ranks": {"prompt": "问", "answers": ["乙", "甲", "丙"], "ranks": [2, 1, 3]},
    "a ranked list": {"prompt": "问", "ranking": ["甲", {"text": "乙"}, "丙"]},
    "SHP": {"history": "问", "human_ref_A": "丙", "human_ref_B": "甲", "labels": 0, "score_A": 3, "score_B": 41},
    "HelpSteer2's preferences": {"prompt": "问", "response_1": "甲", "response_2": "丙", "preference_strength": -2},
    "HelpSteer3": {
        "context": [{"role": "user", "content": "问"}],
        "response1": "丙",
        "response2": "甲",
        "overall_preference": 1,
    },
    "thumbs beside": {"prompt": "问", "answers": ["甲", "丙"], "thumbs": ["👍", "踩"]},
}


@pytest.mark.parametrize("name", FORMS)
def test_the_best_and_the_worst_answer_make_the_first_pair(name: str, tmp_path: Path) -> None:
    found, done = pairs_of(tmp_path, [FORMS[name]])
    assert found == [BEST]
    assert (done.read, done.prompts, done.written) == (1, 1, 1)


@pytest.mark.parametrize(
    ("up", "down"), [(True, False), (1, -1), ("up", "down"), ("赞", "踩"), ("+1", "-1"), (1.0, 0.0)]
)
def test_single_thumbs_from_many_rows_are_added_up(up: Any, down: Any, tmp_path: Path) -> None:
    votes = [("甲", up), ("丙", down), ("甲", up), ("丙", up), ("丙", down), ("甲", down), ("甲", up)]
    rows = [{"prompt": "问", "completion": answer, "label": label} for answer, label in votes]
    found, done = pairs_of(tmp_path, rows)
    assert found == [BEST]
    made = json.loads((tmp_path / "pairs.jsonl").read_text(encoding="utf-8"))
    assert made["feedback"] == {
        "scale": "thumbs",
        "chosen": {"value": 0.6667, "votes": 4},
        "rejected": {"value": 0.4, "votes": 3},
    }
    assert made["rows"] == [f"rows.jsonl:{number}" for number in range(1, 8)]
    assert done.answers == 2


def test_margin_votes_ties_and_most_pairs(tmp_path: Path) -> None:
    row = {"prompt": "问", "answers": ["一", "二二", "三", "四"], "scores": [4, 4, 3.5, 1], "votes": [3, 3, 3, 1]}
    found, done = pairs_of(tmp_path, [row], max_pairs=9)
    assert found == [("一", "四"), ("二二", "四"), ("三", "四"), ("一", "三"), ("二二", "三")]
    assert done.left_out.counts == {"a pair: a tie": 1}
    found, done = pairs_of(tmp_path, [row], max_pairs=9, margin=1)
    assert found == [("一", "四"), ("二二", "四"), ("三", "四")]
    assert done.left_out.counts == {"a pair: a tie": 1, "a pair: closer than the margin": 2}
    found, done = pairs_of(tmp_path, [row], max_pairs=1, min_votes=2)
    assert found == [("一", "三")]
    assert done.left_out.counts == {"too few votes": 1, "a pair: a tie": 1, "a pair: beyond --max-pairs": 1}
    found, _ = pairs_of(tmp_path, [row], max_pairs=9, margin=3.2, min_votes=2, ties="longer")
    assert found == [("二二", "一")]
    assert pairs_of(tmp_path, [row], max_pairs=9, margin=3.2, min_votes=2, ties="shorter")[0] == [("一", "二二")]


def test_everything_left_out_is_counted_and_named(tmp_path: Path) -> None:
    rows = [
        FORMS["scores beside"],
        {"prompt": "独", "answer": "一", "score": 1},
        {"prompt": "无", "answers": ["一", "二"]},
        {"prompt": "错", "answers": ["一", "二"], "scores": [1]},
        {"prompt": "乱", "answer": "一", "thumbs": "perhaps"},
        {"prompt": "问", "answer": "丁", "label": True},
        [1],
        {"answer": "一", "score": 1},
    ]
    _, done = pairs_of(tmp_path, rows)
    assert done.left_out.counts == {
        "a pair: beyond --max-pairs": 2,
        "nothing to compare with: one answer or none": 1,
        "nothing says how good an answer is": 1,
        "scores and answers differ in length": 1,
        "thumbs is neither up nor down": 1,
        "two kinds of feedback for one prompt": 1,
        "the row is not an object": 1,
        "the prompt is missing": 1,
    }
    assert done.set_aside is not None
    places = [json.loads(line)["row"] for line in done.set_aside.read_text(encoding="utf-8").splitlines()]
    assert sorted(places) == [1, 1, 2, 3, 4, 5, 6, 7, 8]


def test_rankings_of_different_answers_are_not_averaged(tmp_path: Path) -> None:
    rows = [{"prompt": "问", "ranking": ["甲", "丙"]}, {"prompt": "问", "ranking": ["丙", "甲", "丁"]}]
    found, done = pairs_of(tmp_path, rows)
    assert found == [BEST]
    assert done.left_out.counts == {"two rankings of different answers": 1}
    rows = [{"prompt": "问", "ranking": order} for order in (["甲", "丙"], ["甲", "丙"], ["丙", "甲"])]
    assert pairs_of(tmp_path, rows)[0] == [BEST]


def test_no_pairs_are_an_error_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give no pair: 1 × nothing to compare"):
        pairs_of(tmp_path, [{"prompt": "独", "answer": "一", "score": 1}])
    assert not (tmp_path / "pairs.jsonl").exists()
    with pytest.raises(ConfigError, match="--margin"):
        PairRule(margin=-1)
    with pytest.raises(BadRow, match="not a number"):
        read_feedback({"prompt": "问", "answer": "一", "score": "high"})


def test_kto_in_llama_factorys_forms() -> None:
    turns = [{"from": "human", "value": "问"}, {"from": "gpt", "value": "甲"}]
    for row in (
        {"conversations": turns, "kto_tag": True},
        {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "甲"}], "label": True},
        {"instruction": "问", "input": "", "output": "甲", "kto_tag": True},
    ):
        prompt, (opinion,) = read_feedback(row)
        assert [message.content for message in prompt] == ["问"]
        assert (opinion.answer, opinion.scale, opinion.total) == ("甲", "thumbs", 1.0)
    with pytest.raises(BadRow, match="does not end with a user turn"):
        read_feedback({"conversations": turns, "answer": "乙", "kto_tag": True})


def test_helpsteers_ratings_of_one_answer_a_row_make_pairs(tmp_path: Path) -> None:
    asked = "问\n<extra_id_1>Assistant\n答\n<extra_id_1>User\n再问"
    ratings = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
    rows = [{"prompt": asked, "response": text, "helpfulness": n, **ratings} for text, n in (("丙", 1), ("甲", 4))]
    found, done = pairs_of(tmp_path, rows, margin=3)
    assert found == [BEST]
    assert done.prompts == 1
    made = json.loads((tmp_path / "pairs.jsonl").read_text(encoding="utf-8"))
    assert [turn["content"] for turn in made["prompt"]] == ["问", "答", "再问"]
    assert [turn["role"] for turn in made["prompt"]] == ["user", "assistant", "user"]


def test_a_preference_is_as_wide_as_it_is_strong_and_none_is_a_tie(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"问{strength}", "response_1": "甲", "response_2": "丙", "preference_strength": strength}
        for strength in (-3, 0, 2, 1)
    ]
    found, done = pairs_of(tmp_path, rows, margin=2)
    assert found == [BEST, BEST[::-1]]
    assert done.left_out.counts == {"a pair: a tie": 1, "a pair: closer than the margin": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"history": "问", "human_ref_A": "甲", "human_ref_B": "乙", "score_A": 3},
            "nothing says how good an answer is",
        ),
        ({"prompt": "问", "response_1": "甲", "response_2": "乙"}, "nothing says how good an answer is"),
        ({"prompt": "问", "response_1": "甲", "response_2": "乙", "preference_strength": "?"}, "is not a number"),
        ({"prompt": "问", "response_1": "甲", "response_2": ["乙", "丙"], "preference_strength": 1}, "is not text"),
    ],
)
def test_what_two_answers_lack_is_named(row: Any, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read_feedback(row)


def test_preferences_among_other_answers_are_not_averaged(tmp_path: Path) -> None:
    rows = [
        {"prompt": "问", "response_1": "甲", "response_2": other, "preference_strength": -1} for other in ("乙", "丙")
    ]
    _, done = pairs_of(tmp_path, rows)
    assert done.left_out.counts == {"two rankings of different answers": 1}
