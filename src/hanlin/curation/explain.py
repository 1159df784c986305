"""What every rule says of one row, whatever the recipe makes of it."""

from dataclasses import dataclass
from pathlib import Path

from hanlin.curation.contamination import find_contamination, read_benchmarks
from hanlin.curation.guarding import questions
from hanlin.curation.guards import Guard
from hanlin.curation.identity import check_claims, own_names
from hanlin.curation.lexicon import check_words
from hanlin.curation.personal import check_spans
from hanlin.curation.policy import SIDE_RULES, curate_row
from hanlin.curation.recipe import CurationSection, DecontaminationSection, PairPolicy
from hanlin.curation.rows import Slot, slots_of
from hanlin.curation.rule import Around, Text, Verdict
from hanlin.curation.shards import Row, Trouble, find_shards, parse_row, read_chunks
from hanlin.curation.surroundings import with_surroundings
from hanlin.curation.toxicity import judge_toxicity
from hanlin.data.messages import BadRow
from hanlin.errors import DataError


@dataclass(frozen=True, slots=True)
class Line:
    """One side and one rule: the verdict in words, and the first stretch it is about."""

    side: str
    rule: str
    keep: bool
    reason: str
    found: str


def explain(
    place: str,
    config: CurationSection | None = None,
    *,
    decontamination: DecontaminationSection | None = None,
    guard: Guard | None = None,
    guarded: tuple[str, ...] = (),
) -> list[Line]:
    """The verdicts on row "FILE:NUMBER" (from 1), with the names and words of `config`, the benchmark items that it
    holds, and the guard's verdicts on the sides `guarded`. Raises DataError where there is no such row.
    """
    try:
        row = _row_at(place)
        kind, slots, _ = slots_of(row)
    except BadRow as bad:
        raise DataError(f"{place}: {bad.reason}") from None
    config = config or CurationSection()
    lines = _verdicts(slots, config)
    if kind == "pair":
        lines += _of_pair(row, config)
    if decontamination is not None and decontamination.files:
        lines += _of_benchmarks(slots, decontamination)
    if guard is not None:
        for side, prompt, answer in questions(slots, guarded):
            lines.append(_line(side, "guard", prompt if answer is None else answer, guard(prompt, answer)))
    return lines


def _row_at(place: str) -> Row:
    name, _, number = place.rpartition(":")
    if not name or not number.isdigit():
        raise DataError(f"{place} should have the form FILE:ROW, such as pairs.jsonl:12")
    for chunk in read_chunks(find_shards([name]), chunk_bytes=4_000_000, largest_row=64_000_000):
        if chunk.first <= int(number) < chunk.first + len(chunk.rows):
            raw = chunk.rows[int(number) - chunk.first]
            if isinstance(raw, Trouble):
                raise DataError(f"{place}: {raw.reason}")
            return parse_row(str(Path(name)), int(number), raw)
    raise DataError(f"{name} has no row {number}")


def _of_pair(row: Row, config: CurationSection) -> list[Line]:
    """What the rules about two answers say, whatever the recipe would do."""
    told = config.model_copy(update={"pair": PairPolicy(equal="flag", gap="flag", both="flag", worse="flag")})
    reasons = {one.rule: one.reason for one in curate_row(row.value, row.place, told).decisions if one.side == "pair"}
    rules = [f"pair_{name}" for name in PairPolicy.model_fields]
    return [Line("pair", rule, rule not in reasons, reasons.get(rule, ""), "") for rule in rules]


def _of_benchmarks(slots: list[Slot], section: DecontaminationSection) -> list[Line]:
    """A line for each item that the row holds, or one that it holds none."""
    benchmarks = read_benchmarks(section.files)
    hits = find_contamination([Text(raw) for _, raw in slots], benchmarks, coverage=section.coverage)
    found = [Line("row", "contaminated", False, f"{hit.item}, {hit.coverage:.0%} of it", "") for hit in hits]
    return found or [Line("row", "contaminated", True, "", "")]


def _verdicts(slots: list[Slot], config: CurationSection) -> list[Line]:
    lines = []
    for text, around in with_surroundings(slots, [Text(raw) for _, raw in slots]):
        for rule in SIDE_RULES.values():
            if rule.name != "document" or around.side == "document":
                lines.append(_line(around.side, rule.name, text.raw, _verdict(rule.name, text, around, config)))
        lines.append(_line(around.side, "toxic", text.raw, judge_toxicity(text)))
    return lines


def _verdict(rule: str, text: Text, around: Around, config: CurationSection) -> Verdict:
    """The rule's check; those that a recipe tells something, with what it tells."""
    if rule == "personal":
        return check_spans(text, addresses=config.addresses)
    if rule == "identity":
        return check_claims(text, own=own_names(config.name, config.maker))
    if rule == "lexicon":
        return check_words(text, extra=config.words, allowed=config.allowed)
    return SIDE_RULES[rule].check(text, around)


def _line(side: str, rule: str, raw: str, verdict: Verdict) -> Line:
    found = raw[verdict.spans[0].start : verdict.spans[0].end] if verdict.spans else ""
    return Line(side, rule, verdict.keep, verdict.reason, found[:80])
