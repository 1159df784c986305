"""Files, folders and hub datasets: all rows arrive in order, and every kind of damage is one clear line."""

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Literal

import polars
import pytest

from hanlin.data.files import fetch_dataset
from hanlin.data.sources import read_preferences
from hanlin.errors import DataError, FetchError


def row(number: int = 0, **changes):
    return {"prompt": f"问题 {number}", "chosen": f"答案 {number}", "rejected": f"answer {number}", **changes}


def write_lines(path: Path, rows, end: str = "\n") -> Path:
    text = "\n".join(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in rows)
    path.write_text(text + end, encoding="utf-8")
    return path


def write_array(path: Path, rows) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def refusal(*paths: str | Path, on_bad_row: Literal["error", "skip"] = "error") -> str:
    with pytest.raises(DataError) as caught:
        read_preferences(paths, on_bad_row=on_bad_row)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_kind_of_file_gives_the_same_pairs(tmp_path):
    rows = [row(i, id=f"r{i}") for i in range(7)]
    write_array(tmp_path / "array.json", rows)
    write_lines(tmp_path / "lines.jsonl", rows)
    write_lines(tmp_path / "nameless_lines.json", rows)
    write_array(tmp_path / "array_inside.jsonl", rows)
    write_lines(tmp_path / "no_newline.ndjson", rows, end="")
    polars.DataFrame(rows).write_parquet(tmp_path / "table.parquet")
    expected, _ = read_preferences([tmp_path / "array.json"])
    assert [pair.id for pair in expected] == [f"r{i}" for i in range(7)]
    for path in tmp_path.iterdir():
        pairs, report = read_preferences([path])
        assert pairs == expected, path
        assert (report.files, report.rows, report.kept, report.skipped) == ((str(path),), 7, 7, 0)


def test_parquet_messages_and_other_columns(tmp_path):
    said = [{"role": "user", "content": "问", "name": None}]
    table = {
        "prompt": ["问", None],
        "chosen": [[*said, {"role": "assistant", "content": "答", "name": None}]] * 2,
        "rejected": [[*said, {"role": "assistant", "content": "A", "name": None}]] * 2,
        "embedding": [[0.5] * 4, None],
    }
    polars.DataFrame(table).write_parquet(tmp_path / "t.parquet")
    pairs, _ = read_preferences([tmp_path / "t.parquet"])
    assert [(pair.chosen, pair.rejected, pair.id) for pair in pairs] == [
        ("答", "A", "t.parquet:1"),
        ("答", "A", "t.parquet:2"),
    ]


def test_one_object_is_one_row(tmp_path):
    assert len(read_preferences([write_array(tmp_path / "one.json", row())])[0]) == 1


def test_a_single_path_may_stand_alone(tmp_path):
    assert len(read_preferences(str(write_array(tmp_path / "a.json", [row()])))[0]) == 1


def test_ids_name_file_and_row_and_line_separators_in_text_do_not_count(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [row(0, chosen="x\u2028y\x85z"), "", "  ", row(1)])
    pairs, report = read_preferences([path])
    assert [pair.id for pair in pairs] == ["a.jsonl:1", "a.jsonl:4"]
    assert pairs[0].chosen == "x\u2028y\x85z"
    assert report.rows == 2


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in ("en", "zh"):
        (tmp_path / folder).mkdir()
        write_array(tmp_path / folder / "train.json", [row()])
    pairs, _ = read_preferences([tmp_path])
    assert [pair.id for pair in pairs] == [f"{tmp_path}/en/train.json:1", f"{tmp_path}/zh/train.json:1"]


def test_a_folder_is_read_sorted_and_says_what_it_left_out(tmp_path):
    write_array(tmp_path / "b.json", [row(1)])
    write_lines(tmp_path / "a.jsonl", [row(0)])
    (tmp_path / "deep").mkdir()
    write_array(tmp_path / "deep" / "c.json", [row(2)])
    (tmp_path / ".cache").mkdir()
    write_array(tmp_path / ".cache" / "d.json", [row(3)])
    for name in ("README.md", "dataset_info.json", "old.csv"):
        (tmp_path / name).write_text("{}")
    pairs, report = read_preferences([tmp_path])
    assert [pair.prompt[0].content for pair in pairs] == ["问题 0", "问题 1", "问题 2"]
    assert [Path(name).name for name in report.ignored] == ["README.md", "dataset_info.json", "old.csv"]
    assert "not read" in report.lines()[-1]


def test_a_byte_order_mark_is_accepted(tmp_path):
    for name, rows in (("a.json", [row()]), ("b.jsonl", row())):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
        assert len(read_preferences([path])[0]) == 1


def test_windows_line_ends(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\r\n".join(json.dumps(row(i)).encode() for i in range(3)) + b"\r\n")
    assert len(read_preferences([path])[0]) == 3


def test_a_bad_row_stops_and_is_named(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [row(), "", row(chosen=None), row(), row(rejected="")])
    message = refusal(path)
    assert message.startswith(f"{path}, line 3: chosen is null")
    assert "1 more bad rows of 4 in this file" in message
    assert 'on_bad_row = "skip"' in message
    assert refusal(write_array(tmp_path / "a.json", [row(), row(chosen=None)])).startswith(
        f"{tmp_path}/a.json, row 2: "
    )


def test_skipped_rows_are_counted_by_reason(tmp_path):
    rows = [row(), *[row(i, chosen=None) for i in range(8)], row(rejected=" "), "{broken", [1], row(1)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    pairs, report = read_preferences([path], on_bad_row="skip")
    assert [pair.id for pair in pairs] == ["a.jsonl:1", "a.jsonl:13"]
    assert report.reasons == {
        "chosen is null": 8,
        "rejected is empty": 1,
        "the line is not JSON": 1,
        "the row is not an object": 1,
    }
    assert report.rows == report.kept + sum(report.reasons.values()) == 13
    assert len(report.examples["chosen is null"]) == 5
    assert report.examples["rejected is empty"][0].startswith(f"{path}, line 10: ")
    assert report.lines()[0] == "13 rows in 1 files: 2 kept, 11 skipped"
    assert report.lines()[1].startswith("  8 × chosen is null, first in ")


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path):
    path = write_lines(tmp_path / "sft.jsonl", [{"instruction": "a", "output": "b"}] * 3)
    message = refusal(path, on_bad_row="skip")
    assert message.startswith("none of 3 rows can be used")
    assert "SFT data" in message


def test_a_cut_last_line(tmp_path):
    text = json.dumps(row()) + "\n" + json.dumps(row(1))[:-9]
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    assert "line 2: the last line is cut off" in refusal(path)
    assert read_preferences([path], on_bad_row="skip")[1].reasons == {"the last line is cut off": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty (0 bytes)"),
        ("[]", "holds no rows"),
        ("  \n", "line 2, column 1"),
        ('[{"prompt": "a",\n "chosen" "b"}]', "Expecting ':' delimiter, line 2, column 11"),
        ('[{"prompt": "a"}, {"pro', "the file ends too early"),
        ('[{"prompt": "a"}', "the file ends too early"),
        ('{"train": [{"prompt": "a"}]}', "save the list under 'train' as the file"),
        ('"text"', "holds a str; expected a list of rows"),
        ("[" * 100_000, "nested too deep"),
        ("[" + "1" * 5000 + "]", "Exceeds the limit"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_a_json_file_that_cannot_be_read(tmp_path, text, expected):
    path = tmp_path / "a.json"
    path.write_text(text)
    for message in (refusal(path), refusal(path, on_bad_row="skip")):
        assert expected in message
        assert str(path) in message


def test_text_in_another_encoding(tmp_path):
    gbk = json.dumps([row()], ensure_ascii=False).encode("gbk")
    (tmp_path / "gbk.json").write_bytes(b"\n" + gbk)
    at = 1 + gbk.index("问".encode("gbk"))
    assert f"at offset {at}, line 2; it may be GB18030" in refusal(tmp_path / "gbk.json")
    (tmp_path / "utf16.json").write_bytes(json.dumps([row()]).encode("utf-16"))
    assert "is UTF-16" in refusal(tmp_path / "utf16.json")
    first = json.dumps(row()).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(first + b'{"prompt": "\xff"}\n' + first)
    assert f"line 2: not UTF-8: byte 0xff at offset {len(first) + 12} of the file" in refusal(tmp_path / "a.jsonl")
    assert read_preferences([tmp_path / "a.jsonl"], on_bad_row="skip")[1].reasons == {"not UTF-8": 1}


def test_wrong_and_missing_files(tmp_path):
    write_array(tmp_path / "pairs.json", [row()])
    (tmp_path / "pairs.xlsx").write_text("a,b")
    (tmp_path / "empty").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").touch()
    assert "near it: pairs.json" in refusal(tmp_path / "pair.json")
    assert "there is no folder" in refusal(tmp_path / "nowhere" / "pairs.json")
    said = refusal(tmp_path / "pairs.xlsx")
    assert "suffix '.xlsx'; expected one of .json, .jsonl, .ndjson, .csv, .tsv, .parquet, or the texts packed" in said
    assert "save the table as CSV" in said
    assert "found nothing" in refusal(tmp_path / "empty")
    assert "found README.md" in refusal(tmp_path / "docs")
    assert "no data was given" in refusal()
    (tmp_path / "broken.json").symlink_to(tmp_path / "gone.json")
    assert "does not exist" in refusal(tmp_path / "broken.json")


def test_a_name_in_a_known_folder_is_a_missing_file_not_a_hub_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_array(tmp_path / "data" / "train.json", [row()])
    assert "data/trian does not exist" in refusal("data/trian")


def test_damaged_parquet(tmp_path):
    whole = tmp_path / "whole.parquet"
    polars.DataFrame([row(i) for i in range(50)]).write_parquet(whole)
    data = whole.read_bytes()
    damaged = tmp_path / "damaged.parquet"
    for content in (b"", b"PAR1", data[:-9], data[: len(data) // 2], b"not parquet at all"):
        damaged.write_bytes(content)
        assert str(damaged) in refusal(damaged)
    rng = random.Random(0)
    for _ in range(60):
        noisy = bytearray(data)
        for _ in range(5):
            noisy[rng.randrange(len(noisy))] = rng.randrange(256)
        damaged.write_bytes(noisy)
        with contextlib.suppress(DataError):
            read_preferences([damaged], on_bad_row="skip")


def test_any_damage_to_text_files_is_a_data_error(tmp_path):
    rng = random.Random(1)
    lines = b"".join(json.dumps(row(i), ensure_ascii=False).encode() + b"\n" for i in range(4))
    array = json.dumps([row(i) for i in range(4)], ensure_ascii=False).encode()
    for data, name in ((lines, "a.jsonl"), (array, "a.json"), (lines, "b.json")):
        for _ in range(150):
            noisy = bytearray(data[: rng.randrange(1, len(data) + 1)])
            for _ in range(rng.randrange(3)):
                noisy[rng.randrange(len(noisy))] = rng.randrange(256)
            (tmp_path / name).write_bytes(noisy)
            with contextlib.suppress(DataError):
                pairs, report = read_preferences([tmp_path / name], on_bad_row="skip")
                assert len(pairs) == report.kept == report.rows - sum(report.reasons.values())


def test_a_ten_megabyte_row_is_just_a_row(tmp_path):
    long = "长" * 3_500_000
    path = write_lines(tmp_path / "a.jsonl", [row(), row(1, chosen=long), row(2, chosen=long, rejected=long)])
    pairs, report = read_preferences([path], on_bad_row="skip")
    assert pairs[1].chosen == long
    assert report.reasons == {"equal answers": 1}
    assert all(len(example) < 500 for named in report.examples.values() for example in named)


def test_reading_imports_neither_torch_nor_polars(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [row()])
    code = (
        "import sys; from hanlin.data.sources import read_preferences; "
        f"read_preferences([{str(path)!r}]); "
        "print([name for name in ('torch', 'polars', 'huggingface_hub', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def cached_dataset(cache: Path, repository: str, files: dict[str, list]) -> None:
    """The hub's cache as an earlier download leaves it."""
    folder = cache / f"datasets--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    for name, rows in files.items():
        path = folder / "snapshots" / "abc123" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_array(path, rows)


def read_offline(cache: Path, name: str) -> dict:
    """Read a hub dataset in a process of its own: huggingface_hub reads its settings when imported."""
    code = (
        "import json, sys\nfrom hanlin.data.sources import read_preferences\nfrom hanlin.errors import HanlinError\n"
        "try:\n    pairs, report = read_preferences([sys.argv[1]])\n"
        "    print(json.dumps({'pairs': [p.chosen for p in pairs], 'ignored': len(report.ignored)}))\n"
        "except HanlinError as error:\n    print(json.dumps({'error': str(error), 'kind': type(error).__name__}))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", code, name], capture_output=True, text=True, check=True, env=environment, cwd=cache
    )
    return json.loads(done.stdout)


def test_hub_datasets_come_from_the_cache_when_offline(tmp_path):
    cached_dataset(tmp_path, "org/pairs", {"dpo_en.json": [row(1)], "dpo_zh.json": [row(2)], "README.md": []})
    assert read_offline(tmp_path, "org/pairs") == {"pairs": ["答案 1", "答案 2"], "ignored": 1}
    assert read_offline(tmp_path, "org/pairs:zh")["pairs"] == ["答案 2"]
    absent = read_offline(tmp_path, "org/pairs:fr")
    assert absent["kind"] == "DataError"
    assert "org/pairs:fr holds no data" in absent["error"]


def test_of_a_hub_dataset_the_held_out_splits_are_not_read(tmp_path):
    files = {
        f"data/{split}-00000-of-00001.json": [row(i)]
        for i, split in enumerate(["train_prefs", "test_prefs", "train_sft"])
    }
    cached_dataset(tmp_path, "org/feedback", files)
    cached_dataset(tmp_path, "org/plain", {"all.json": [row(5)], "validation.json": [row(6)]})
    assert read_offline(tmp_path, "org/feedback:train_prefs") == {"pairs": ["答案 0"], "ignored": 2}
    assert read_offline(tmp_path, "org/feedback:test_prefs")["pairs"] == ["答案 1"]
    assert read_offline(tmp_path, "org/plain") == {"pairs": ["答案 5"], "ignored": 1}


def test_a_hub_dataset_that_cannot_be_fetched(tmp_path):
    result = read_offline(tmp_path, "nobody/nothing")
    assert result["kind"] == "FetchError"
    assert result["error"].startswith("nobody/nothing is no file or folder here")
    assert "\n" not in result["error"]


def test_a_name_that_no_hub_takes():
    with pytest.raises(FetchError, match=r"a--b"):
        fetch_dataset("org/a--b")


@pytest.mark.assets
def test_all_real_pairs_are_good(shared_data):
    for name in ("dpo_zh_200.json", "dpo_en_200.json"):
        pairs, report = read_preferences([shared_data / name])
        raw = json.loads((shared_data / name).read_text(encoding="utf-8"))
        assert (report.rows, report.kept, report.reasons) == (200, 200, {})
        for pair, original in zip(pairs, raw, strict=True):
            assert [message.content for message in pair.prompt] == [turn["value"] for turn in original["conversations"]]
            assert (pair.chosen, pair.rejected) == (original["chosen"]["value"], original["rejected"]["value"])


@pytest.mark.assets
def test_real_data_of_other_kinds_says_what_it_is(shared_data):
    assert "this is SFT data" in refusal(shared_data / "alpaca_zh_500.json")
    assert "tools" in refusal(shared_data / "toolcall_en_100.json")
    assert "chosen and rejected are missing" in refusal(shared_data / "c4_demo.jsonl")
    assert "chosen and rejected are missing" in refusal(shared_data / "cold_dev.csv")
