"""What is in data, a few rows of it, two parts of it, and files in another form."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import zstandard

from hanlin.curation.conversion import convert_files
from hanlin.curation.duplicates import Prints, similar_groups
from hanlin.curation.duplicates import make_prints as prints_of_texts
from hanlin.curation.rule import Text
from hanlin.curation.sampling import choose_groups, sample_rows, split_rows
from hanlin.curation.shards import find_shards, read_rows
from hanlin.curation.survey import as_dict, survey
from hanlin.data.rows import read_row
from hanlin.errors import ConfigError, DataError

HAN = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈"
SYSTEM = "你是一个乐于助人的双语助手，请用用户的语言回答，并且不要使用表情符号，也不要混用两种语言。" * 3


def make_prints(rows: list[list[tuple[str, str]]]) -> Prints:
    return prints_of_texts([[(side, Text(text)) for side, text in row] for row in rows])


def text_of(draw: random.Random, size: int) -> str:
    return "".join(draw.choice(HAN) for _ in range(size))


def pair(prompt: str, chosen: str, rejected: str = "不知道。") -> dict[str, Any]:
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    return {"prompt": asked, "chosen": chosen, "rejected": rejected}


def rows_with_likes() -> list[dict[str, Any]]:
    """40 prompts, of each three rows: as it is, with one character changed, with another answer."""
    draw = random.Random(5)
    rows = []
    for _ in range(40):
        prompt, chosen = text_of(draw, 80), text_of(draw, 120)
        rows += [pair(prompt, chosen), pair(prompt[:-1] + "甲", chosen + "乙"), pair(prompt, text_of(draw, 90))]
    draw.shuffle(rows)
    return rows


def written(path: Path, rows: list[Any]) -> list[Path]:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return find_shards([str(path)])


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_near_duplicates_stay_on_one_side_and_no_row_is_lost_or_changed(tmp_path: Path) -> None:
    rows = rows_with_likes()
    files = written(tmp_path / "rows.jsonl", rows)
    done = split_rows(files, tmp_path / "out", held_out=0.25, seed=3)
    train, held = (lines_of(path) for path in done.paths)
    assert (len(train), len(held)) == (done.train, done.held_out) == (90, 30)
    assert sorted(train + held) == sorted(lines_of(files[0]))
    start = {json.loads(line)["prompt"][1]["content"][:60] for line in train}
    assert start.isdisjoint(json.loads(line)["prompt"][1]["content"][:60] for line in held)
    assert done.groups == 40
    assert done.largest == 3


def test_a_split_depends_on_the_seed_and_the_rows_but_not_on_their_order(tmp_path: Path) -> None:
    rows = rows_with_likes()
    parts = []
    for name, order, seed in (("a", rows, 1), ("b", rows[::-1], 1), ("c", rows, 2)):
        done = split_rows(written(tmp_path / f"{name}.jsonl", order), tmp_path / name, held_out=30, seed=seed)
        parts.append(sorted(lines_of(done.paths[1])))
    assert parts[0] == parts[1] != parts[2]


def test_groups_chain_and_take_in_rows_that_share_a_prompt() -> None:
    draw = random.Random(9)
    text = list(text_of(draw, 300))
    chain = []
    for step in range(4):
        chain.append([("document", "".join(text))])
        text[step * 50 : step * 50 + 12] = text_of(draw, 12)
    other = [("document", text_of(draw, 300))]
    groups = similar_groups(make_prints([*chain, other]), keys=("prompt", "pair"))
    assert groups.tolist() == [0, 0, 0, 0, 4]
    same = [[("user", "今天天气怎么样呢"), ("assistant", text_of(draw, 100))] for _ in range(3)]
    assert similar_groups(make_prints(same), keys=("prompt", "pair")).tolist() == [0, 0, 0]


def test_a_group_that_is_too_large_stays_in_training() -> None:
    digests = [bytes([index]) * 16 for index in range(10)]
    groups = np.array([0] * 7 + [7, 8, 9])
    for seed in range(5):
        assert choose_groups(groups.tolist(), digests, 3, seed=seed) == {7, 8, 9}


def test_a_split_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    files = written(tmp_path / "rows.jsonl", [pair("天地玄黄宇宙洪荒", "日月盈昃辰宿列张")] * 3)
    with pytest.raises(ConfigError, match="share such as"):
        split_rows(files, tmp_path / "a", held_out=1.5)
    with pytest.raises(ConfigError, match="one part empty"):
        split_rows(files, tmp_path / "b", held_out=9)
    with pytest.raises(DataError, match="near-duplicates of one another"):
        split_rows(files, tmp_path / "c", held_out=1)
    (tmp_path / "c" / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="exists"):
        split_rows(files, tmp_path / "c", held_out=1)


def test_a_sample_is_the_same_for_the_same_seed_and_in_order(tmp_path: Path) -> None:
    files = written(tmp_path / "rows.jsonl", [pair(f"第{number}个问题", "好") for number in range(200)])
    one = [row.number for row in sample_rows(files, 20, seed=1)]
    assert one == sorted(one) == [row.number for row in sample_rows(files, 20, seed=1)]
    assert one != [row.number for row in sample_rows(files, 20, seed=2)]
    assert len(sample_rows(files, 999)) == 200
    drawn = [row.number for seed in range(300) for row in sample_rows(files, 2, seed=seed)]
    assert 85 < sum(drawn) / len(drawn) < 116
    with pytest.raises(ConfigError, match="1 or more"):
        sample_rows(files, 0)


def test_a_survey_counts_kinds_sides_languages_turns_and_repeats(tmp_path: Path) -> None:
    english = (
        "The sky is blue because air scatters blue light more than it scatters red light, so we see blue from here."
    )
    rows: list[Any] = [
        pair("天空为什么是蓝色的呢？", "因为空气散射蓝光最多。"),
        {"prompt": "Why is the sky blue?", "chosen": english, "rejected": "不知道。"},
        {"messages": [{"role": "user", "content": "這個問題說來話長"}, {"role": "assistant", "content": "好。"}] * 2},
        {"text": "春天来了，公园里的花都开了。"},
        {"text": "春天来了!公园里的花都开了"},
        {"nothing": 1},
    ]
    (tmp_path / "more.jsonl").write_bytes(b'{broken\n\n{"text": "\xe6\x98\xa5"}\n')
    found = as_dict(survey([*written(tmp_path / "rows.jsonl", rows), tmp_path / "more.jsonl"], near=True))
    assert found["rows"] == 8
    assert found["kinds"] == {"pair": 2, "conversation": 1, "document": 3}
    assert found["sides"]["chosen"]["languages"] == {"zh-Hans": 1, "en": 1}
    assert found["sides"]["user"]["languages"] == {"zh-Hant": 2}
    assert found["sides"]["document"]["units"]["max"] == 12
    assert found["turns"] == {"1": 2, "2": 1}
    assert found["repeated_rows"] == 1
    assert found["left_out"] == {"no pair, conversation or document": 1, "the line is not JSON": 1}
    files = list(found["files"].values())
    assert [one["rows"] for one in files] == [6, 2]
    assert [one["left_out"] for one in files] == [1, 1]
    with pytest.raises(DataError, match="none of 1 rows"):
        survey(written(tmp_path / "bad.jsonl", [{"x": 1}]))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".jsonl.zst"])
def test_files_are_converted_into_every_format_and_read_again(suffix: str, tmp_path: Path) -> None:
    rows: list[Any] = [{**pair(f"第{number}个问题", f"第{number}个回答"), "score": number} for number in range(5)]
    rows.insert(2, {"prompt": "x", "chosen": None, "rejected": "y"})
    output = tmp_path / f"made{suffix}"
    done = convert_files(written(tmp_path / "rows.jsonl", rows), output, "sharegpt")
    assert (done.read, done.written) == (6, 5)
    made = [row.value for row in read_rows(find_shards([str(output)]))]
    assert [row["score"] for row in made] == list(range(5))
    assert [read_row(row, "x") for row in made] == [read_row(row, "x") for row in rows if row["chosen"]]
    assert done.set_aside is not None
    assert json.loads(done.set_aside.read_text(encoding="utf-8"))["row"] == 3
    with pytest.raises(DataError, match="exists"):
        convert_files(find_shards([str(output)]), output, "trl")


def test_rows_of_every_format_are_the_same(tmp_path: Path) -> None:
    rows = rows_with_likes()[:9]
    (plain,) = written(tmp_path / "rows.jsonl", rows)
    (tmp_path / "packed.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    (tmp_path / "list.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    polars.DataFrame(rows).write_parquet(tmp_path / "table.parquet")
    for name in ("packed.jsonl.zst", "list.json", "table.parquet"):
        assert [row.value for row in read_rows([tmp_path / name])] == rows
