"""Packed files and tables say what plain files say, to training and to curation; what is wrong with them is named."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
import zstandard

from hanlin.curation.shards import find_shards, read_rows, write_rows
from hanlin.data.files import data_files
from hanlin.data.sources import read_preferences
from hanlin.errors import DataError

ASKED, GOOD = '第{}题：\n"引号"，逗号\u2028行分隔', "好，的。\r\n二"
ROWS = [
    {"prompt": ASKED.format(index), "chosen": GOOD, "rejected": f"OK {index}", "id": str(index)} for index in range(40)
]


def as_table(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CONTENTS = {
    "rows.jsonl": LINES,
    "rows.json": json.dumps(ROWS),
    "rows.csv": as_table(ROWS),
    "excel.csv": "\ufeff" + as_table(ROWS) + "\r\n\r\n",
    "rows.tsv": as_table(ROWS, "\t"),
}
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", CONTENTS)
def test_every_file_says_the_same(tmp_path: Path, name: str, packed: str) -> None:
    file = tmp_path / (name + packed)
    file.write_bytes(PACK[packed](CONTENTS[name].encode()))
    found = [
        {"prompt": pair.prompt[0].content, "chosen": pair.chosen, "rejected": pair.rejected, "id": pair.id}
        for pair in read_preferences([file])[0]
    ]
    assert found == ROWS
    assert [row.value for row in read_rows(find_shards([str(file)]))] == ROWS


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_packed_file_that_was_cut_off_or_is_none_is_an_error(tmp_path: Path, packed: str) -> None:
    file = tmp_path / f"rows.jsonl{packed}"
    whole = PACK[packed](LINES.encode())
    for damaged in (whole[:-9], whole[: len(whole) // 2], b"no " + whole):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"rows\.jsonl\.\w+ is damaged"):
            read_preferences([file])
        with pytest.raises(DataError, match="is damaged"):
            list(read_rows([file]))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("prompt,chosen\na,b,c\n", "row 1: a row has more or fewer cells than the header: 3 and 2"),
        ("prompt,chosen,rejected\na,b,\n", "row 1: rejected is null"),
        ("prompt,chosen,rejected\na,b,c\n\na,b,\udcff\n", "row 2: not UTF-8"),
        ("\udcff,chosen,rejected\na,b,c\n", "is not UTF-8"),
        ("prompt,chosen,chosen\na,b,c\n", "two columns of the name 'chosen'"),
        ('prompt,chosen,rejected\n"a,b,c\nd,e,f\n', "is a quotation mark left open"),
        ("", "is empty"),
        ("prompt,chosen,rejected\n", "holds no rows"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path: Path, table: str, said: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(table.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as caught:
        read_preferences([file])
    assert said in str(caught.value)


def test_a_bad_row_of_a_table_is_set_aside_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"text\nfirst\nsecond,more\n\xff\nlast\n")
    rows = list(read_rows([tmp_path / "rows.csv"], largest_row=1000))
    assert [row.trouble for row in rows] == ["", "a row has more or fewer cells than the header", "not UTF-8", ""]
    assert [row.number for row in rows] == [1, 2, 3, 4]
    (tmp_path / "long.csv").write_text("text\n" + "字" * 200_000 + "\n")
    assert [row.trouble for row in read_rows([tmp_path / "long.csv"], largest_row=1000)] == ["the row is too large"]
    assert len(next(iter(read_rows([tmp_path / "long.csv"]))).value["text"]) == 200_000


def test_tables_in_a_folder_are_read_where_it_holds_nothing_else(tmp_path: Path) -> None:
    for name in ("b.csv", "a.tsv.gz", "README.md"):
        (tmp_path / name).touch()
    assert [path.name for path in data_files(tmp_path)[0]] == ["a.tsv.gz", "b.csv"]
    (tmp_path / "rows.jsonl.gz").touch()
    found, other = data_files(tmp_path)
    assert [path.name for path in found] == ["rows.jsonl.gz"]
    assert [path.name for path in other] == ["README.md", "a.tsv.gz", "b.csv"]


def test_rows_are_packed_alike_each_time_and_tables_are_not_written(tmp_path: Path) -> None:
    lines = [line.encode() for line in LINES.split("\n")[:-1]]
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        write_rows(tmp_path / name, lines)
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.jsonl.gz").read_bytes()) == LINES.encode()
    with pytest.raises(DataError, match="expected one of"):
        write_rows(tmp_path / "rows.csv", lines)
