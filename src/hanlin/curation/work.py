"""One chunk of rows through the rules: what a worker does, and the files it leaves.

chunk-000000007.rows.jsonl       rows that stay, as they are to be written
chunk-000000007.decisions.jsonl  every drop, edit and flag
chunk-000000007.aside.jsonl      rows that could not be read, each with its place and reason
chunk-000000007.found.jsonl      benchmark items, each with the row that holds it
chunk-000000007.npz              the places of the rows that stay, and their prints where duplicates are looked for
chunk-000000007.near             their MinHash signatures, row by row (where near-duplicates are looked for)
chunk-000000007.bands            hashes of the signatures' bands, band by band
chunk-000000007.done.json        counts; written last: a chunk with it is complete
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hanlin.curation.contamination import Benchmarks, find_contamination, read_benchmarks
from hanlin.curation.duplicates import print_arrays
from hanlin.curation.fingerprints import check_extras
from hanlin.curation.policy import Decision, Judge, Outcome, curate_row
from hanlin.curation.recipe import CurationRecipe, DuplicatesSection
from hanlin.curation.rule import Text
from hanlin.curation.shards import Chunk, Row, Trouble, line_of, parse_row, read_file, write_file
from hanlin.curation.signatures import hash_bands
from hanlin.data.messages import BadRow
from hanlin.text.language import HAN_WORTH

PARTS = ("rows.jsonl", "decisions.jsonl", "aside.jsonl", "found.jsonl", "npz", "near", "bands")
_SIZES = (10, 30, 100, 300, 1000, 3000, 10_000)


@dataclass(slots=True)
class Tools:
    """What a worker loads once."""

    recipe: CurationRecipe
    benchmarks: Benchmarks
    judge: Judge | None


def make_tools(recipe: CurationRecipe) -> Tools:
    """Load benchmark files and, where the recipe asks for it, the classifier. Raises ConfigError, DataError."""
    check_extras()
    sides = (recipe.curation.prompt, recipe.curation.chosen, recipe.curation.rejected, recipe.curation.user)
    more = (recipe.curation.assistant, recipe.curation.tool, recipe.curation.document)
    judge = None
    if any(side.toxic != "keep" for side in (*sides, *more)):
        from hanlin.curation.toxicity import judge_toxicity as judge
    return Tools(recipe, read_benchmarks(recipe.decontamination.files), judge)


def part(work: Path, number: int, name: str) -> Path:
    """The file of that name of a chunk."""
    return work / f"chunk-{number:09d}.{name}"


def num_rows(work: Path, number: int) -> int:
    """Rows of a finished chunk that the rules left."""
    told = json.loads(part(work, number, "done.json").read_text(encoding="utf-8"))
    return sum(count for name, count in told.items() if name.startswith("passed|"))


def finished_chunks(work: Path) -> frozenset[int]:
    """Numbers of the chunks that are complete."""
    return frozenset(int(file.name.split(".")[0].rpartition("-")[2]) for file in work.glob("chunk-*.done.json"))


@dataclass(frozen=True, slots=True)
class Share:
    """Which chunks of the files one process or cluster has to see to: every `world_size`-th, and which are done."""

    files: Sequence[Path]
    done: frozenset[int]
    rank: int
    world_size: int

    def read(self, place: int, *, chunk_bytes: int, largest_row: int) -> Iterator[Chunk]:
        """The share's chunks of one file; those that are done without their rows."""
        for index, chunk in enumerate(read_file(self.files, place, chunk_bytes=chunk_bytes, largest_row=largest_row)):
            if (place + index) % self.world_size == self.rank:
                yield replace(chunk, rows=()) if chunk.number in self.done else chunk


@lru_cache(maxsize=1)
def _tools(recipe: str, run: str) -> Tools:
    """Loaded once in each worker for a run: files that the recipe names may be others in the next."""
    return make_tools(CurationRecipe.model_validate_json(recipe))


def work_on(chunk: Chunk, *, recipe: str, run: str, work: Path) -> tuple[int, int]:
    """Curate the chunk unless it is done; its number and bytes. `recipe` is JSON; `run` names this run."""
    if chunk.rows:
        curate_chunk(chunk, work, _tools(recipe, run))
    return chunk.number, chunk.consumed


@dataclass(slots=True)
class _Piles:
    """What a chunk's rows are sorted into."""

    rows: list[bytes]
    places: list[str]
    texts: list[list[tuple[str, Text]]]
    decisions: list[bytes]
    aside: list[bytes]
    findings: list[bytes]
    counts: Counter[str]


def curate_chunk(chunk: Chunk, work: Path, tools: Tools) -> dict[str, int]:
    """Curate the chunk's rows and write its files; the counts."""
    piles = _Piles([], [], [], [], [], [], Counter())
    source = chunk.source
    for number, raw in enumerate(chunk.rows, start=chunk.first):
        place = f"{source}:{number}"
        if raw == b"":
            continue
        piles.counts[f"read|{source}"] += 1
        reason = (
            raw.reason
            if isinstance(raw, Trouble)
            else _curate(piles, parse_row(chunk.file, number, raw), place, source, tools)
        )
        if reason:
            _set_aside(piles, chunk.file, number, reason, raw)
    _write(chunk, work, piles, tools.recipe.duplicates)
    return dict(piles.counts)


def _curate(piles: _Piles, row: Row, place: str, source: str, tools: Tools) -> str:
    """Put the row where it belongs; why it cannot be read, or ""."""
    if row.trouble:
        return row.trouble
    try:
        outcome = curate_row(row.value, place, tools.recipe.curation, judge=tools.judge)
    except BadRow as bad:
        return bad.reason
    except RecursionError:
        return "the row is nested too deeply"
    _decontaminate(piles, outcome, place, tools)
    _sort(piles, outcome, row.raw, place, source)
    section = tools.recipe.duplicates
    if outcome.row is not None and (section.exact or section.near):
        piles.texts.append([(side, text) for (side, _), text in zip(outcome.slots, outcome.texts, strict=True)])
    return ""


def _decontaminate(piles: _Piles, outcome: Outcome, place: str, tools: Tools) -> None:
    if outcome.row is None:
        return
    found = find_contamination(outcome.texts, tools.benchmarks, coverage=tools.recipe.decontamination.coverage)
    if found:
        piles.findings += (
            line_of({"row": place, "item": hit.item, "coverage": round(hit.coverage, 4)}) for hit in found
        )
        reason = f"{found[0].item}, {found[0].coverage:.0%} of it"
        outcome.decisions.append(Decision("row", "contaminated", 1, "drop", reason))
        outcome.row = None


def _sort(piles: _Piles, outcome: Outcome, raw: bytes, place: str, source: str) -> None:
    for decision in outcome.decisions:
        piles.decisions.append(line_of({"row": place, "id": outcome.id, **asdict(decision)}))
        piles.counts[f"decision|{decision.side}|{decision.rule}|{decision.action}"] += 1
        piles.counts[f"by source|{source}|{decision.rule}|{decision.action}"] += 1
    if outcome.row is None:
        piles.counts[f"dropped|{outcome.dropped_by}"] += 1
        return
    made = json.dumps(outcome.row, ensure_ascii=False).encode("utf-8", "backslashreplace") if outcome.changed else raw
    piles.rows.append(made + b"\n")
    piles.places.append(place)
    piles.counts[f"passed|{source}"] += 1
    for (side, _), text in zip(outcome.slots, outcome.texts, strict=True):
        if side in ("chosen", "rejected", "assistant", "document"):
            size = next((limit for limit in _SIZES if text.size <= limit), 0)
            piles.counts[f"length|{side}|{size}"] += 1
            piles.counts[f"language|{side}|{_script(text)}"] += 1


def _script(text: Text) -> str:
    """For the plot: by raw counts, one Han character worth 0.6 words as in `text.language`."""
    if not text.num_han:
        return "Latin" if text.num_words else "none"
    return "Han" if HAN_WORTH * text.num_han >= text.num_words else "Latin"


def _set_aside(piles: _Piles, file: str, number: int, reason: str, raw: bytes | Trouble) -> None:
    record: dict[str, Any] = {"file": file, "row": number, "reason": reason}
    if isinstance(raw, Trouble):
        record["bytes"] = raw.size
    else:
        try:
            record["raw"] = raw.decode()
        except UnicodeDecodeError:
            record["base64"] = base64.b64encode(raw).decode()
    piles.aside.append(line_of(record))
    piles.counts[f"aside|{reason}"] += 1


def _write(chunk: Chunk, work: Path, piles: _Piles, section: DuplicatesSection) -> None:
    arrays = print_arrays(piles.texts, section.near) if section.exact or section.near else {}
    near = arrays.pop("near", None)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays, places=np.array([place.encode() for place in piles.places]))
    contents = [piles.rows, piles.decisions, piles.aside, piles.findings, [buffer.getvalue()]]
    if near is not None and section.near:
        present = arrays["present"]
        bands = (hash_bands(near[:, key], present[:, key]).tobytes() for key in range(present.shape[1]))
        contents += [near.tobytes()], list(bands)
    for name, pieces in zip(PARTS, contents, strict=False):
        write_file(part(work, chunk.number, name), pieces)
    write_file(part(work, chunk.number, "done.json"), [json.dumps(piles.counts, ensure_ascii=False).encode()])
