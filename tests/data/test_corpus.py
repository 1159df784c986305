"""Documents on disk: every token scored once, memory flat, the same data the same name, damage noticed."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import polars
import pytest

from hanlin.data.budget import count_tokens
from hanlin.data.corpus import cuts
from hanlin.data.documents import prepare_documents
from hanlin.data.prepare import DataConfig, PreparedData
from hanlin.errors import ConfigError, DataError
from hanlin.text.chat import FORMATS
from hanlin.text.tokenizer import Tokenizer
from tiny_objectives import documents
from tiny_run import write_rows
from tiny_text import write_directory


@pytest.fixture(scope="module", params=["gemma", "smollm2"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tokenizer]:
    return request.param, Tokenizer.open(write_directory(tmp_path_factory.mktemp("tokenizer"), request.param))


def prepare(tokenizer: tuple[str, Tokenizer], *paths: Path, cache: Path | None = None, **fields: Any) -> PreparedData:
    config = DataConfig(train=tuple(map(str, paths)), **{"max_length": 16, **fields})
    return prepare_documents(config, FORMATS[tokenizer[0]], tokenizer[1], cache=cache)


@pytest.mark.parametrize(("length", "longest"), [(1, 5), (2, 5), (5, 5), (6, 5), (9, 5), (10, 5), (57, 5), (9, 2)])
def test_pieces_score_every_token_but_the_first_once(length: int, longest: int):
    scored = [place for start, size in cuts(length, longest) for place in range(start + 1, start + size)]
    assert scored == list(range(1, length))
    assert all(2 <= size <= longest for _, size in cuts(length, longest))


def test_pieces_are_the_documents(tokenizer: tuple[str, Tokenizer], tmp_path: Path):
    name, tokens = tokenizer
    rows = documents(12)
    data = prepare(tokenizer, write_rows(tmp_path / "a.jsonl", rows))
    whole: dict[str, list[int]] = {}
    for piece in data.train:
        assert 2 <= len(piece.ids) <= 16
        whole[piece.id] = [*whole.get(piece.id, [])[:-1], *piece.ids]
    assert list(whole) == [f"a.jsonl:{number}" for number in range(1, 13)]
    begin = [tokens.id("<bos>")] if name == "gemma" else []
    end = tokens.id("<eos>" if name == "gemma" else "<|endoftext|>")
    for row, ids in zip(rows, whole.values(), strict=True):
        assert ids == [*begin, *tokens.encode(row["text"]), end]
    assert count_tokens(data.train).likelihood_tokens == sum(len(ids) - 1 for ids in whole.values())
    assert max(len(piece.ids) for piece in data.typical) == max(len(piece.ids) for piece in data.train)


def test_every_kind_of_file_gives_the_same_documents(tokenizer: tuple[str, Tokenizer], tmp_path: Path):
    rows = documents(6)
    write_rows(tmp_path / "lines.jsonl", rows)
    (tmp_path / "array.json").write_text(json.dumps(rows))
    polars.DataFrame(rows).with_columns(odd=1).write_parquet(tmp_path / "table.parquet")
    (tmp_path / "texts").mkdir()
    for number, row in enumerate(rows):
        (tmp_path / "texts" / f"{number}.txt").write_text(row["text"], encoding="utf-8")
    expected = [piece.ids for piece in prepare(tokenizer, tmp_path / "lines.jsonl").train]
    for name in ("array.json", "table.parquet", "texts"):
        assert [piece.ids for piece in prepare(tokenizer, tmp_path / name).train] == expected, name


def test_bad_rows_are_named_and_counted(tokenizer: tuple[str, Tokenizer], tmp_path: Path):
    bad = [{"text": " "}, {"content": "x"}, {"text": 3}, ["x"], {"text": "a\0"}]
    path = write_rows(tmp_path / "a.jsonl", [*documents(3), *bad])
    with pytest.raises(DataError, match=r"a\.jsonl, line 4: the text is empty.*4 more bad rows of 8"):
        prepare(tokenizer, path)
    data = prepare(tokenizer, path, on_bad_row="skip")
    assert (data.rows[0].kept, data.rows[0].skipped) == (3, 5)
    assert data.rows[0].reasons["the text is missing"] == 2
    with pytest.raises(DataError, match="none of 5 rows"):
        prepare(tokenizer, write_rows(tmp_path / "b.jsonl", bad), on_bad_row="skip")


def test_held_out_documents_are_whole_and_apart(tokenizer: tuple[str, Tokenizer], tmp_path: Path):
    one, other = write_rows(tmp_path / "a.jsonl", documents(20)), write_rows(tmp_path / "b.jsonl", documents(9))
    everything = prepare(tokenizer, one, other)
    data = prepare(tokenizer, one, other, held_out_pairs=6)
    trained, held_out = {piece.id for piece in data.train}, {piece.id for piece in data.held_out}
    assert len(held_out) == 6
    assert not trained & held_out
    assert sorted(piece.ids for piece in (*data.train, *data.held_out)) == sorted(p.ids for p in everything.train)
    assert data.sizes == tuple(sum(piece.id.startswith(name) for piece in data.train) for name in ("a.", "b."))
    assert data.fingerprint != everything.fingerprint
    with pytest.raises(ConfigError, match="leaves none of 29 documents"):
        prepare(tokenizer, one, other, held_out_pairs=29)


def test_known_documents_are_not_encoded_again(tokenizer: tuple[str, Tokenizer], tmp_path: Path):
    path, cache = write_rows(tmp_path / "a.jsonl", documents(5)), tmp_path / "cache" / "tokens"
    first = prepare(tokenizer, path, cache=cache)
    (entry,) = (tmp_path / "cache" / "documents").iterdir()
    written = (entry / "ids.bin").stat().st_mtime_ns
    second = prepare(tokenizer, path, cache=cache)
    assert (entry / "ids.bin").stat().st_mtime_ns == written
    assert second.fingerprint == first.fingerprint == prepare(tokenizer, path).fingerprint
    expected = [piece.ids for piece in first.train]
    assert [piece.ids for piece in second.train] == expected
    (entry / "ids.bin").write_bytes(b"short")
    mended = prepare(tokenizer, path, cache=cache)
    assert [piece.ids for piece in mended.train] == expected
    write_rows(path, documents(6))
    assert prepare(tokenizer, path, cache=cache).fingerprint != first.fingerprint


def test_memory_does_not_grow_with_the_corpus(tokenizer: tuple[str, Tokenizer], tmp_path: Path):
    """Ten times the documents, the same peak of Python's and NumPy's memory, within a few row buffers."""
    peaks = []
    for number in (300, 3000):
        path = tmp_path / f"{number}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for index in range(number):
                file.write(json.dumps({"text": f"the quick brown fox {index} " * 12}) + "\n")
        tracemalloc.start()
        data = prepare(tokenizer, path)
        assert len(data.train[len(data.train) - 1].ids) >= 2
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 200_000


@pytest.mark.assets
def test_the_shared_documents_are_read_whole(shared_data: Path, assets: Path):
    tokenizer = Tokenizer.open(assets / "smollm2-135m-instruct.gguf")
    config = DataConfig(train=(str(shared_data / "c4_demo.jsonl"),), max_length=256, held_out_pairs=20)
    data = prepare_documents(config, FORMATS["smollm2"], tokenizer)
    assert (data.rows[0].rows, data.rows[0].skipped) == (300, 0)
    assert len({piece.id for piece in data.held_out}) == 20
    assert len({piece.id for piece in (*data.train, *data.held_out)}) == 300
