"""Rules meet sides: what becomes of one row under a recipe, and every decision on the way."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hanlin.curation import languages, pairs, quality
from hanlin.curation.identity import IDENTITY, find_identity, own_names, rewritten
from hanlin.curation.lexicon import LEXICON, check_words
from hanlin.curation.masks import Masks
from hanlin.curation.personal import LIST, MANY, PERSONAL, find_personal
from hanlin.curation.recipe import CurationSection, SidePolicy
from hanlin.curation.rows import Kind, Slot, edited, read_slots
from hanlin.curation.rule import KEEP, Around, Rule, Span, Text, Verdict, objection
from hanlin.curation.surroundings import with_surroundings

SIDE_RULES: dict[str, Rule] = {
    rule.name: rule for rule in (PERSONAL, IDENTITY, LEXICON, *languages.RULES, *quality.RULES, quality.DOCUMENT)
}
_CHECKED = {name: rule for name, rule in SIDE_RULES.items() if name not in ("personal", "identity", "lexicon")}
_PAIR_VERSION = 1
# By these an answer is judged worse than the other.
_FAULTS = ("language", "repetition", "ending", "garbled", "identity")
_SHOWN = 160  # characters of `before` and `after` in a decision


@dataclass(frozen=True, slots=True)
class Decision:
    """One drop, edit or flag: which rule in which version, where in which side, what stood there and what does now."""

    side: str
    rule: str
    version: int
    action: str
    reason: str
    start: int = 0
    end: int = 0
    before: str = ""
    after: str = ""


@dataclass(slots=True)
class Outcome:
    """What became of a row: the row to write (None: dropped), and why."""

    kind: Kind
    id: str
    row: dict[str, Any] | None
    slots: list[Slot]
    texts: list[Text]
    decisions: list[Decision] = field(default_factory=list)
    changed: bool = False

    @property
    def dropped_by(self) -> str:
        return next((decision.rule for decision in self.decisions if decision.action == "drop"), "")


Judge = Callable[[Text], Verdict]


def curate_row(row: Any, name: str, config: CurationSection, *, judge: Judge | None = None) -> Outcome:
    """Apply the recipe to one parsed row; `judge` is the toxicity classifier. Raises BadRow where it cannot be read."""
    kind, slots, label = read_slots(row, name)
    texts = [Text(text) for _, text in slots]
    outcome = Outcome(kind, label, row, slots, texts)
    masks = _RowMasks(texts)
    edits: dict[Slot, str] = {}
    around = Around()
    for text, around in with_surroundings(slots, texts):
        side = around.side
        policy: SidePolicy = getattr(config, side)
        _check(outcome, text, around, policy, judge)
        if policy.lexicon != "keep":
            verdict = check_words(text, extra=config.words, allowed=config.allowed)
            if not verdict.keep:
                outcome.decisions.append(_decision(text, side, "lexicon", LEXICON.version, policy.lexicon, verdict))
        made = _personal(outcome, text, side, policy, masks, config)
        made = _identity(outcome, text if made == text.raw else Text(made), side, policy, config)
        if made != text.raw:
            edits[side, text.raw] = made
    if kind == "pair":
        _pair(outcome, texts[-2], texts[-1], around.prompt, config)
    if any(decision.action == "drop" for decision in outcome.decisions):
        outcome.row = None
    elif edits:
        _edit(outcome, row, edits)
    return outcome


class _RowMasks:
    """The masks of one row, made when they are needed."""

    def __init__(self, texts: list[Text]) -> None:
        self._texts, self._made = texts, dict[bool, Masks]()

    def of(self, *, replace: bool) -> Masks:
        if replace not in self._made:
            chinese = any(text.num_han for text in self._texts)
            self._made[replace] = Masks(chinese=chinese, replace=replace)
        return self._made[replace]


def _edit(outcome: Outcome, row: dict[str, Any], edits: dict[Slot, str]) -> None:
    moved = next((decision for decision in outcome.decisions if decision.action == "to_rejected"), None)
    if moved is not None and outcome.kind == "pair":
        # The chosen answer, with its personal data masked, is what the rewriting is preferred to.
        edits[outcome.slots[-1]] = moved.after if moved.after else outcome.slots[-2][1]
    outcome.row = edited(row, edits)
    outcome.slots = [(side, edits.get((side, text), text)) for side, text in outcome.slots]
    outcome.texts = [
        text if text.raw == raw else Text(raw) for text, (_, raw) in zip(outcome.texts, outcome.slots, strict=True)
    ]
    outcome.changed = True


def _check(outcome: Outcome, text: Text, around: Around, policy: SidePolicy, judge: Judge | None) -> None:
    for name, rule in _CHECKED.items():
        action = getattr(policy, name)
        if action == "keep":
            continue
        verdict = rule.check(text, around)
        if not verdict.keep:
            outcome.decisions.append(_decision(text, around.side, rule.name, rule.version, action, verdict))
    if judge is not None and policy.toxic != "keep":
        verdict = judge(text)
        if not verdict.keep:
            outcome.decisions.append(_decision(text, around.side, "toxic", 1, policy.toxic, verdict))


def _decision(text: Text, side: str, rule: str, version: int, action: str, verdict: Verdict) -> Decision:
    span = verdict.spans[0] if verdict.spans else Span(0, 0, rule)
    before = text.raw[span.start : span.end][:_SHOWN]
    return Decision(side, rule, version, action, verdict.reason, span.start, span.end, before)


def _personal(
    outcome: Outcome, text: Text, side: str, policy: SidePolicy, masks: "_RowMasks", config: CurationSection
) -> str:
    if policy.personal == "keep":
        return text.raw
    spans = find_personal(text, addresses=config.addresses)
    if not spans:
        return text.raw
    if spans[0].kind == LIST and policy.personal != "flag":
        outcome.decisions.append(_decision(text, side, "personal", PERSONAL.version, "drop", objection(MANY, spans)))
        return text.raw
    edit = policy.personal in ("mask", "replace")
    made, put = (
        masks.of(replace=policy.personal == "replace").apply(text.raw, spans, is_data=side == "tool")
        if edit
        else (text.raw, [""] * len(spans))
    )
    for span, after in zip(spans, put, strict=True):
        before = text.raw[span.start : span.end][:_SHOWN]
        outcome.decisions.append(
            Decision(
                side, "personal", PERSONAL.version, policy.personal, span.kind, span.start, span.end, before, after
            )
        )
    return made


def _identity(outcome: Outcome, text: Text, side: str, policy: SidePolicy, config: CurationSection) -> str:
    raw = text.raw
    if policy.identity == "keep":
        return raw
    spans = find_identity(text, own=own_names(config.name, config.maker))
    if not spans:
        return raw
    action = policy.identity
    if action == "to_rejected" and side != "chosen":
        action = "drop"
    made = raw
    if action in ("rewrite", "to_rejected"):
        made = rewritten(raw, spans, name=config.name or "{name}", maker=config.maker or "{maker}")
    start, end = spans[0].start, spans[-1].end
    after = raw if action == "to_rejected" else made[start : end + len(made) - len(raw)]
    reason = f"claims to be {raw[spans[0].start : spans[0].end]}"
    outcome.decisions.append(
        Decision(side, "identity", IDENTITY.version, action, reason, start, end, raw[start:end][:_SHOWN], after)
    )
    return made


def _pair(outcome: Outcome, chosen: Text, rejected: Text, asked: Text | None, config: CurationSection) -> None:
    """The rules about two answers."""
    failed = {one.rule for one in outcome.decisions if one.side == "chosen" and one.rule in _FAULTS}
    around = Around(asked, "rejected")
    failed_too = {name for name in failed if not SIDE_RULES[name].check(rejected, around).keep}
    both, worse = sorted(failed_too), sorted(failed - failed_too)
    verdicts = {
        "equal": pairs.check_equal(chosen, rejected) if config.pair.equal != "keep" else KEEP,
        "gap": pairs.check_gap(chosen, rejected) if config.pair.gap != "keep" else KEEP,
        "both": objection(f"both fail {', '.join(both)}") if both else KEEP,
        "worse": objection(f"only chosen fails {', '.join(worse)}")
        if worse
        and not _faults(rejected, around) - failed
        and "to_rejected" not in {one.action for one in outcome.decisions}
        else KEEP,
    }
    for name, verdict in verdicts.items():
        action = getattr(config.pair, name)
        if not verdict.keep and action != "keep":
            decision = Decision("pair", f"pair_{name}", _PAIR_VERSION, action, verdict.reason)
            outcome.decisions.append(decision)


def _faults(text: Text, around: Around) -> set[str]:
    return {name for name in _FAULTS if not SIDE_RULES[name].check(text, around).keep}
