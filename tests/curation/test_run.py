"""A whole run: the same rows whatever the workers, ranks, chunks and kills; nothing lost, everything named."""

import csv
import io
import json
import logging
import os
from pathlib import Path

import polars
import pytest
import zstandard

from hanlin.curation import deduplication, duplicates, shards
from hanlin.curation.account import summarise_sheet
from hanlin.curation.duplicates import KEYS
from hanlin.curation.explain import explain
from hanlin.curation.recipe import CurationRecipe
from hanlin.curation.run import run
from hanlin.curation.workers import LocalWorkers
from hanlin.errors import ConfigError, DataError

PAIRS = [
    {
        "prompt": f"请介绍第{number}种水果的特点，并说明它适合在什么季节吃。",
        "chosen": f"第{number}种水果甘甜多汁，"
        + f"含有维生素{number}，秋天成熟，适合{number}月食用。" * (1 + number % 3)
        + "希望有用。",
        "rejected": f"不知道{number}。",
    }
    for number in range(60)
]
PAIRS[5]["chosen"] = "我是由OpenAI训练的语言模型，无法吃水果，但可以为您介绍。"
PAIRS[6]["chosen"] += "请联系13812345678。"
PAIRS[7] = dict(PAIRS[8])


def jsonl(rows: list) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def recipe(output: Path, *files: Path, **sections) -> CurationRecipe:
    section = {
        "input": {"files": tuple(map(str, files)), **sections.pop("input", {})},
        "output": {"directory": str(output)},
    }
    section["run"] = {"workers": 1, "chunk_bytes": 2000, **sections.pop("run", {})}
    return CurationRecipe.model_validate({**section, **sections})


def rows_of(output: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(output.glob("rows-*.jsonl")))


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text(jsonl(PAIRS), encoding="utf-8")
    return file


def test_a_run_edits_drops_and_accounts_for_everything(data: Path, tmp_path: Path) -> None:
    done = run(recipe(tmp_path / "out", data), on_progress=quiet)
    out = tmp_path / "out"
    lines = rows_of(out).decode().splitlines()
    decisions = [json.loads(line) for line in (out / "decisions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert done.total("read") == 60
    assert done.total("written") == len(lines) == 60 - done.total("dropped") - done.total("aside")
    assert any("[手机号]" in line for line in lines)
    assert not any("OpenAI" in line or "13812345678" in line for line in lines)
    masked = next(one for one in decisions if one["rule"] == "personal")
    assert (masked["row"], masked["before"], masked["after"]) == ("pairs.jsonl:7", "13812345678", "[手机号]")
    assert masked["version"] >= 1
    same = next(one for one in decisions if one["rule"] == "duplicate_exact")
    assert same["row"] in ("pairs.jsonl:8", "pairs.jsonl:9")
    assert "http" not in (out / "report.html").read_text(encoding="utf-8")
    assert "60 read" in (out / "README.md").read_text(encoding="utf-8")
    untouched = json.dumps(PAIRS[0], ensure_ascii=False)
    assert untouched in lines


@pytest.mark.parametrize("changes", [{"run": {"workers": 2}}, {"run": {"chunk_bytes": 100_000}}])
def test_workers_and_chunks_change_nothing(data: Path, tmp_path: Path, changes: dict) -> None:
    run(recipe(tmp_path / "one", data), on_progress=quiet)
    run(recipe(tmp_path / "other", data, **changes), on_progress=quiet)
    for name in ("decisions.jsonl", "set-aside.jsonl", "README.md", "precision.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "other")


def test_curating_twice_changes_nothing(data: Path, tmp_path: Path) -> None:
    run(recipe(tmp_path / "one", data), on_progress=quiet)
    again = run(recipe(tmp_path / "two", tmp_path / "one" / "rows-00000.jsonl"), on_progress=quiet)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")
    assert again.total("dropped") == 0


def test_a_killed_run_goes_on_where_it_stopped(data: Path, tmp_path: Path) -> None:
    run(recipe(tmp_path / "whole", data), on_progress=quiet)

    def kill(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path / "cut", data), on_progress=kill)
    finished = sorted((tmp_path / "cut" / ".work").glob("*.done.json"))
    assert finished
    before = finished[0].stat().st_mtime_ns
    seen = []
    run(recipe(tmp_path / "cut", data), on_progress=lambda done, _: seen.append(finished[0].stat().st_mtime_ns))
    assert set(seen) == {before}, "a finished chunk was curated again"
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    with pytest.raises(ConfigError, match="another recipe"):
        run(recipe(tmp_path / "cut", data, duplicates={"exact": False}), on_progress=quiet)


def test_ranks_share_the_chunks_and_one_call_finishes(data: Path, tmp_path: Path) -> None:
    run(recipe(tmp_path / "whole", data), on_progress=quiet)
    for rank in (1, 0):
        done = run(recipe(tmp_path / "ranks", data), rank=rank, world_size=2, on_progress=quiet)
        assert not done.complete
    assert run(recipe(tmp_path / "ranks", data), on_progress=quiet).complete
    assert rows_of(tmp_path / "ranks") == rows_of(tmp_path / "whole")
    with pytest.raises(ConfigError, match="--rank 2"):
        run(recipe(tmp_path / "bad", data), rank=2, world_size=2, on_progress=quiet)


def test_signatures_that_stay_in_their_files_find_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = {"duplicates": {"near": KEYS}}
    done = run(recipe(tmp_path / "held", data, **near), on_progress=quiet)
    assert done.counts["dropped|duplicate_prompt"]
    for place in (deduplication, duplicates):
        monkeypatch.setattr(place, "IN_MEMORY", 0)
    monkeypatch.setattr(deduplication, "_OPEN_FILES", 2)
    run(recipe(tmp_path / "read", data, **near), on_progress=quiet)
    for name in ("decisions.jsonl", "rows-00000.jsonl"):
        assert (tmp_path / "held" / name).read_bytes() == (tmp_path / "read" / name).read_bytes()


def test_a_worker_that_is_killed_is_one_line() -> None:
    with LocalWorkers(2) as workers, pytest.raises(DataError, match="goes on where it stopped"):
        list(workers.each(os._exit, [1]))


def test_parquet_and_zst_give_the_same_rows(data: Path, tmp_path: Path) -> None:
    run(recipe(tmp_path / "plain", data), on_progress=quiet)
    packed = tmp_path / "packed.jsonl.zst"
    packed.write_bytes(zstandard.compress(data.read_bytes()))
    polars.DataFrame(PAIRS).write_parquet(tmp_path / "pairs.parquet")
    for name in ("packed.jsonl.zst", "pairs.parquet"):
        run(recipe(tmp_path / f"of-{name}", tmp_path / name), on_progress=quiet)
        assert rows_of(tmp_path / f"of-{name}") == rows_of(tmp_path / "plain")


def test_bad_rows_are_named_and_kept_aside_and_no_text_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mixed.jsonl"
    good = json.dumps(PAIRS[0], ensure_ascii=False).encode()
    large = json.dumps({**PAIRS[1], "chosen": "大" * 200_000}, ensure_ascii=False).encode()
    bad = (
        b"{broken secret-text",
        '{"prompt": "中文"}'.encode("gb18030"),
        b'{"prompt": "a", "chosen": null, "rejected": "b"}',
    )
    file.write_bytes(b"\n".join((b"\xef\xbb\xbf" + good, *bad, large, b"[1]", b"", b'{"x": 1}')) + b"\n")
    with caplog.at_level(logging.DEBUG):
        done = run(recipe(tmp_path / "out", file, input={"largest_row": 100_000}), on_progress=quiet)
    aside = [
        json.loads(line) for line in (tmp_path / "out" / "set-aside.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [one["row"] for one in aside] == [2, 3, 4, 5, 6, 8]
    assert aside[0]["raw"] == "{broken secret-text"
    assert aside[1]["reason"] == "not UTF-8"
    assert aside[3] == {"file": str(file), "row": 5, "reason": "the row is too large", "bytes": len(large) + 1}
    assert done.total("read") == 7 == done.total("written") + done.total("aside")
    assert "secret-text" not in caplog.text + "".join(capsys.readouterr())


def test_a_full_disk_is_said_and_loses_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shards.os.fsync
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left.*goes on where it stopped"):
        run(recipe(tmp_path / "out", data), on_progress=quiet)
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob("*.partial"))
    run(recipe(tmp_path / "out", data), on_progress=quiet)
    run(recipe(tmp_path / "whole", data), on_progress=quiet)
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")


def test_one_row_is_explained(data: Path) -> None:
    lines = explain(f"{data}:6")
    identity = next(line for line in lines if line.side == "chosen" and line.rule == "identity")
    assert not identity.keep
    assert identity.found == "openai" or identity.found == "OpenAI"
    with pytest.raises(DataError, match="no row 99"):
        explain(f"{data}:99")


def test_a_filled_in_sheet_is_summarised(data: Path, tmp_path: Path) -> None:
    run(recipe(tmp_path / "out", data), on_progress=quiet)
    sheet = tmp_path / "out" / "precision.csv"
    with pytest.raises(DataError, match="nobody has filled"):
        summarise_sheet(sheet)
    lines = sheet.read_text(encoding="utf-8-sig").splitlines()
    sheet.write_text("\n".join([lines[0], *(line + "y" for line in lines[1:])]), encoding="utf-8")
    assert all(right == judged > 0 for _, right, judged in summarise_sheet(sheet))
    told = sheet.read_text(encoding="utf-8-sig")
    rows = list(csv.reader(io.StringIO(told)))
    again = io.StringIO()
    csv.writer(again, delimiter=";").writerows(rows)
    for text, encoding in ((told, "gb18030"), (again.getvalue(), "utf-8")):  # as Excel may save it
        (tmp_path / "sheet.csv").write_text(text, encoding=encoding)
        assert summarise_sheet(tmp_path / "sheet.csv") == summarise_sheet(sheet)
    (tmp_path / "sheet.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="lacks the columns rule and right"):
        summarise_sheet(tmp_path / "sheet.csv")


def test_a_rule_that_fails_is_no_bad_row(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of ours must not set people's rows aside as if they were damaged."""

    def broken(*_: object, **__: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr("hanlin.curation.work.curate_row", broken)
    with pytest.raises(ValueError, match="a defect"):
        run(recipe(tmp_path / "out", data), on_progress=quiet)


def test_rows_that_are_nested_too_deeply_are_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "deep.jsonl"
    deep = "[" * 100_000 + "]" * 100_000
    less = "[" * 900 + "]" * 900
    phone = {**PAIRS[0], "prompt": "我的手机是13812345678，怎么办？"}
    lines = [jsonl([PAIRS[0]]).rstrip(), f'{{"text": {deep}}}', jsonl([phone]).rstrip()[:-1] + f', "x": {less}}}']
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = run(recipe(tmp_path / "out", file), on_progress=quiet)
    assert done.total("read") == 3
    assert done.total("written") + done.total("aside") == 3
    assert done.total("aside") >= 1


def test_shards_of_one_name_keep_their_places_apart(tmp_path: Path) -> None:
    files = []
    for folder in ("zh", "en"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "pairs.jsonl")
        files[-1].write_text(jsonl(PAIRS[:8] if folder == "zh" else PAIRS[20:28]), encoding="utf-8")
    run(recipe(tmp_path / "out", *files), on_progress=quiet)
    lines = (tmp_path / "out" / "decisions.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["row"] for line in lines} >= {"zh/pairs.jsonl:6", "zh/pairs.jsonl:7"}


def test_benchmark_items_are_reported_by_file(data: Path, tmp_path: Path) -> None:
    bench = tmp_path / "fruit.jsonl"
    items = [{"question": PAIRS[3]["prompt"]}, {"question": "这道题目和水果没有任何关系，它问的是星星有多远。"}]
    bench.write_text(jsonl(items), encoding="utf-8")
    empty = tmp_path / "other.txt"
    empty.write_text("没有人会写下的一句话，它足够长，也足够怪。\n", encoding="utf-8")
    wanted = {"files": (str(bench), str(empty)), "coverage": 0.9}
    done = run(recipe(tmp_path / "out", data, decontamination=wanted), on_progress=quiet)
    found = [json.loads(line) for line in (tmp_path / "out" / "contamination.jsonl").read_text().splitlines()]
    assert {"row": "pairs.jsonl:4", "item": "fruit.jsonl:1", "coverage": 1.0} in found
    assert done.counts["dropped|contaminated"] == len({one["row"] for one in found})
    for name in ("report.html", "README.md"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "fruit.jsonl" in text
        assert "other.txt" in text


def test_a_run_never_writes_over_what_it_reads(data: Path, tmp_path: Path) -> None:
    """Input inside the output is refused; an output inside a folder of input is not read by the next call."""
    before = data.read_bytes()
    for folder in (tmp_path, data):
        with pytest.raises(ConfigError, match="written over"):
            run(recipe(tmp_path, folder), on_progress=quiet)
    assert data.read_bytes() == before
    inside = tmp_path / "deeper"
    inside.mkdir()
    data.rename(inside / "pairs.jsonl")

    def kill(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path / "deeper" / "curated", inside), on_progress=kill)
    run(recipe(tmp_path / "deeper" / "curated", inside), on_progress=quiet)
    again = run(recipe(tmp_path / "deeper" / "curated", inside), on_progress=quiet)
    assert again.total("read") == 60
    assert not (inside / "curated" / ".work").exists()


def test_a_zst_file_that_was_cut_off_is_no_short_one(data: Path, tmp_path: Path) -> None:
    packed = zstandard.compress(data.read_bytes() * 40)
    file = tmp_path / "cut.jsonl.zst"
    file.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"cut\.jsonl\.zst is damaged"):
        run(recipe(tmp_path / "out", file), on_progress=quiet)
    frames = tmp_path / "frames.jsonl.zst"
    frames.write_bytes(b"".join(zstandard.compress(line) for line in data.read_bytes().splitlines(keepends=True)))
    run(recipe(tmp_path / "frames", frames), on_progress=quiet)
    run(recipe(tmp_path / "plain", data), on_progress=quiet)
    assert rows_of(tmp_path / "frames") == rows_of(tmp_path / "plain")


def test_a_key_that_stands_twice_hides_nothing(tmp_path: Path) -> None:
    file = tmp_path / "twice.jsonl"
    good = json.dumps(PAIRS[0], ensure_ascii=False)
    file.write_text(f'{good}\n{{"prompt": "我的手机是13812345678", {good[1:]}\n', encoding="utf-8")
    done = run(recipe(tmp_path / "out", file), on_progress=quiet)
    assert (done.total("written"), done.total("aside")) == (1, 1)
    assert b"13812345678" not in rows_of(tmp_path / "out")


def test_a_full_disk_between_the_chunks_and_the_output_is_said_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shards.os.replace

    def full(source: Path, to: Path) -> None:
        if to.name.startswith("groups-"):
            raise OSError(28, "No space left on device")
        real(source, to)

    monkeypatch.setattr(shards.os, "replace", full)
    with pytest.raises(DataError, match="No space left"):
        run(recipe(tmp_path / "out", data), on_progress=quiet)
    monkeypatch.undo()
    (tmp_path / "out" / ".rows-00000.jsonl.1.partial").write_bytes(b"half")
    run(recipe(tmp_path / "out", data), on_progress=quiet)
    assert not list((tmp_path / "out").rglob("*.partial"))
