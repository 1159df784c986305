"""Similar rows go, different rows stay, whatever the order; benchmark items are found."""

import json
import random
from pathlib import Path

import numpy as np
import polars
import pytest

from hanlin.curation.contamination import Hit, find_contamination, read_benchmarks, report_contamination
from hanlin.curation.duplicates import KEYS, Prints, find_duplicates
from hanlin.curation.duplicates import make_prints as prints_of_texts
from hanlin.curation.fingerprints import (
    SHINGLE,
    exact_key,
    grams,
    grams_of,
    jaccard,
    shingles,
    signatures,
    unit_hashes,
    unit_hashes_of,
)
from hanlin.curation.rule import Text
from hanlin.errors import DataError

HAN = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈"
WORDS = ("sky", "earth", "dark", "yellow", "cosmos", "sun", "moon", "star", "cold", "heat", "rain", "gold", "jade")


def make_prints(rows: list[list[tuple[str, str]]]) -> Prints:
    return prints_of_texts([[(side, Text(text)) for side, text in row] for row in rows])


def made_text(draw: random.Random, size: int) -> list[str]:
    if draw.random() < 0.5:
        return [draw.choice(HAN) for _ in range(size)]
    return [f"{draw.choice(WORDS)} " for _ in range(size)]


def edited(draw: random.Random, text: list[str], share: float) -> list[str]:
    return [draw.choice("甲乙丙丁") if draw.random() < share else piece for piece in text]


def pair_of(one: str, other: str) -> bool:
    prints = make_prints([[("document", one)], [("document", other)]])
    return bool(list(find_duplicates(prints, keys=("pair",), exact=False, better="first")))


def test_similar_texts_are_found_and_different_ones_are_not() -> None:
    draw = random.Random(3)
    found = similar = merged = different = 0
    for _ in range(400):
        text = made_text(draw, draw.randint(60, 300))
        other = edited(draw, text, draw.choice([0.01, 0.02, 0.03, 0.15, 0.25, 0.4]))
        one, two = "".join(text), "".join(other)
        near = jaccard(shingles(one), shingles(two))
        if near > 0.8:
            similar, found = similar + 1, found + pair_of(one, two)
        elif near < 0.5:
            different, merged = different + 1, merged + pair_of(one, two)
    assert similar > 80
    assert different > 80
    assert found >= 0.95 * similar
    assert merged <= 0.01 * different


def test_the_exact_key_folds_what_does_not_count() -> None:
    assert exact_key("繁體中文，ＡＢＣ！") == exact_key("繁体中文 abc")
    assert exact_key("中文") != exact_key("文中")
    assert len(unit_hashes("hello 世界 42")) == 4


def test_texts_have_the_same_units_and_shingles_alone_and_together() -> None:
    texts = [
        "",
        "hello 世界 42",
        "，。",
        "abc",
        "def ghi",
        "a" * 5000 + " b",
        "",
        "日本の東京 café × 가나",
        "\n\n",
        "Ⅷ𠀀x",
    ]
    together = unit_hashes_of(texts)
    for text, units, shingled in zip(texts, together, grams_of(together, SHINGLE), strict=True):
        assert units.tolist() == unit_hashes(text).tolist()
        assert shingled.tolist() == grams(units, SHINGLE).tolist()
    assert len(set(map(len, together))) > 4
    assert unit_hashes_of([]) == []


def some_rows() -> list[list[tuple[str, str]]]:
    draw = random.Random(11)
    rows = []
    for _ in range(40):
        prompt, chosen = made_text(draw, 60), made_text(draw, 120)
        for share in (0, 0.01, 0.3):
            answer = "".join(edited(draw, chosen, share))
            rows.append([("prompt", "".join(prompt)), ("chosen", answer), ("rejected", "".join(made_text(draw, 80)))])
    return rows


@pytest.mark.parametrize("better", ["longer_chosen", "shorter_chosen"])
def test_the_rows_that_stay_do_not_depend_on_their_order_and_a_second_run_finds_nothing(better) -> None:
    rows = some_rows()
    kept = []
    for seed in (0, 1):
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        shuffled = [rows[index] for index in order]
        gone = {one.row for one in find_duplicates(make_prints(shuffled), keys=KEYS, better=better)}
        assert gone
        kept.append(sorted(order[index] for index in range(len(rows)) if index not in gone))
    assert kept[0] == kept[1]
    left = [rows[index] for index in kept[0]]
    assert list(find_duplicates(make_prints(left), keys=KEYS, better=better)) == []


def test_the_better_row_stays() -> None:
    long = [("prompt", "天地玄黄宇宙洪荒日月盈昃"), ("chosen", HAN + "云腾致雨"), ("rejected", "不")]
    short = [long[0], ("chosen", HAN), long[2]]
    (gone,) = find_duplicates(make_prints([short, long]), keys=("pair",), better="longer_chosen")
    assert (gone.row, gone.of) == (0, 1)


def test_signatures_estimate_similarity() -> None:
    draw = random.Random(1)
    text = made_text(draw, 400)
    one, two = shingles("".join(text)), shingles("".join(edited(draw, text, 0.05)))
    first, second = signatures([one, two])
    assert float((first == second).mean()) == pytest.approx(jaccard(one, two), abs=0.15)


def test_no_rows_are_no_duplicates() -> None:
    prints = make_prints([])
    assert isinstance(prints, Prints)
    assert prints.near.of([], 0).shape == (0, 120)
    assert not np.any(prints.present)
    assert list(find_duplicates(prints, keys=KEYS, better="first")) == []


def test_benchmark_items_are_found_in_rows(tmp_path: Path) -> None:
    long = "小明有二十三个苹果，他给了小红七个，又买了十二个，请问小明现在一共有多少个苹果？"
    english = "A train leaves the station at nine and travels sixty miles an hour for three hours, how far does it go?"
    file = tmp_path / "bench.jsonl"
    file.write_text("".join(json.dumps({"question": q}) + "\n" for q in (long, english, "光合作用的产物是什么")))
    benchmarks = read_benchmarks((str(file),))

    def found(text: str) -> list[Hit]:
        return find_contamination([Text(text)], benchmarks, coverage=0.5)

    assert found(f"题目：{long}答") == [Hit("bench.jsonl:1", 1.0)]
    assert found(english.upper()) == [Hit("bench.jsonl:2", 1.0)]
    assert found("光合作用的产物是什么？") == [Hit("bench.jsonl:3", 1.0)]
    assert found("光合作用的产物是什么，为什么重要？小明有苹果。") == []
    both = found(f"{long}\n{english[:60]}")
    assert both[0] == Hit("bench.jsonl:1", 1.0)
    with pytest.raises(DataError, match="does not exist"):
        read_benchmarks((str(tmp_path / "none.jsonl"),))
    (tmp_path / "bad.jsonl").write_text("{not json")
    with pytest.raises(DataError, match="is not JSON"):
        read_benchmarks((str(tmp_path / "bad.jsonl"),))


def test_every_benchmark_has_its_report(tmp_path: Path) -> None:
    """Files of one name in two folders are told apart; a file of which nothing was found is in the report."""
    for folder, questions in (("zh", ("甲乙丙丁戊己庚辛", "子丑寅卯辰巳午未")), ("en", ("what is the sky made of",))):
        (tmp_path / folder).mkdir()
        lines = "".join(json.dumps({"question": question}) + "\n" for question in questions)
        (tmp_path / folder / "test.jsonl").write_text(lines)
    benchmarks = read_benchmarks(tuple(str(tmp_path / name / "test.jsonl") for name in ("zh", "en")))
    hits = [("a:1", Hit("zh/test.jsonl:1", 1.0)), ("a:2", Hit("zh/test.jsonl:1", 0.5))]
    zh, en = report_contamination(benchmarks, hits)
    assert (zh.name, zh.items, zh.hit, zh.rows, zh.coverage, zh.most) == ("zh/test.jsonl", 2, 1, 2, 0.75, 1.0)
    assert (en.name, en.items, en.hit, en.rows) == ("en/test.jsonl", 1, 0, 0)


def test_a_benchmark_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    question = "小明有二十三个苹果，他给了小红七个，请问他还有多少个苹果？"
    polars.DataFrame({"question": [question]}).write_parquet(tmp_path / "bench.parquet")
    benchmarks = read_benchmarks((str(tmp_path / "bench.parquet"),))
    assert find_contamination([Text(question)], benchmarks, coverage=0.5) == [Hit("bench.parquet:1", 1.0)]
    (tmp_path / "gbk.csv").write_bytes(f"id,question\n1,{question}\n".encode("gbk"))
    (tmp_path / "empty.csv").write_text("id,question\n")
    for name, said in (("gbk.csv", "is not UTF-8"), ("empty.csv", "holds no items")):
        with pytest.raises(DataError, match=f"{name} {said}"):
            read_benchmarks((str(tmp_path / name),))


LONG = "小明有二十三个苹果，他给了小红七个，请问他现在还有多少个苹果？"
OTHER = "下列关于细胞膜结构与功能的叙述中，正确的\n一项是哪一个选项呢？"
WHY = "先减去七个，再看剩下多少。" * 9
TABLES = {
    "ceval.csv": f'id,question,A,B,answer,explanation\n0,"{LONG}",十六个,七个,A,{WHY}\n1,"{OTHER}",a,b,A,\n',
    "cmmlu.csv": f',Question,A,B,C,D,Answer\n0,{LONG},a,b,c,d,A\n1,"{OTHER}",a,b,c,d,B\n',
    "mmlu.csv": f'{LONG},{"甲乙丙丁" * 20},b,c,d,A\n"{OTHER}",a,b,c,d,B\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_the_questions_of_a_table_are_its_items(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8")
    benchmarks = read_benchmarks((str(tmp_path / name),))
    for number, text in enumerate((LONG, OTHER), start=1):
        assert find_contamination([Text(text)], benchmarks, coverage=1.0) == [Hit(f"{name}:{number}", 1.0)]
    assert not find_contamination([Text(WHY)], benchmarks, coverage=0.1)


def test_messages_and_turns_of_a_benchmark_are_items_too(tmp_path: Path) -> None:
    rows = [{"question_id": 1, "turns": [LONG, "再算一遍。"]}, {"Prompt": [{"role": "user", "content": OTHER}]}]
    file = tmp_path / "bench.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    benchmarks = read_benchmarks((str(file),))
    found = [find_contamination([Text(text)], benchmarks, coverage=0.8) for text in (LONG, OTHER)]
    assert [[hit.item for hit in hits] for hits in found] == [["bench.jsonl:1"], ["bench.jsonl:2"]]


def test_a_short_item_of_two_benchmarks_is_found_in_both_and_too_short_ones_are_counted(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("中国的首都是哪里？\n1+1=\n", encoding="utf-8")
    benchmarks = read_benchmarks((str(tmp_path / "a.txt"), str(tmp_path / "b.txt")))
    hits = find_contamination([Text("请问：\n中国的首都是哪里")], benchmarks, coverage=0.5)
    assert {hit.item for hit in hits} == {"a.txt:1", "b.txt:1"}
    reports = report_contamination(benchmarks, [("x:1", hit) for hit in hits])
    assert [(one.name, one.items, one.too_short, one.hit) for one in reports] == [
        ("a.txt", 1, 1, 1),
        ("b.txt", 1, 1, 1),
    ]
