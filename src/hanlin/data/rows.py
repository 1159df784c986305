"""One row of somebody's preference data becomes a `Preference`, or a `BadRow` that says why not and how to mend it.

The form is read off each row by itself, so files of different forms may be mixed:

    ShareGPT ranking    conversations: [{from, value}], chosen and rejected: {from, value} or text
    Alpaca ranking      instruction, input, history, system, chosen and rejected: text
    conversational      prompt: [{role, content}], chosen and rejected: [{role: assistant, content}]
    plain               prompt, chosen and rejected: text
    implicit prompt     chosen and rejected: whole message lists; what they share is the prompt
    UltraFeedback       the same with a prompt text beside them, which must occur in the messages
    Anthropic HH        chosen and rejected: whole conversations, each in one text
    OpenAI              input: {messages}, preferred_output and non_preferred_output: [{role: assistant, content}]

Surprising: `messages` is read as the prompt only where nothing else is (UltraFeedback repeats the chosen conversation
there). How turns are read is said in `messages`.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from hanlin.config import shown
from hanlin.data import alpaca
from hanlin.data.messages import (
    MEDIA,
    BadRow,
    check_characters,
    checked_turns,
    label_of,
    messages_of,
    refuse_more_than_text,
    shown_columns,
    with_system_column,
)
from hanlin.data.transcripts import is_transcript, prompt_turns, transcript_turns
from hanlin.types import Message, Preference

_OTHER_PROMPTS = ("question", "query", "input")
_PROMPTS = ("prompt", "conversations", "messages")
_SFT_ANSWERS = {"output", "response", "completion", "answer"}
OPENAI = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
"""OpenAI's columns for answers, and our names for them."""
_SCORED = ("human_ref_A", "helpfulness", "score", "scores", "rating", "ratings", "ranking")
FEEDBACK = frozenset((*_SCORED, "response_1", "response1", "completions", "answers", "responses"))
"""Columns of answers with an opinion of each, of which `hanlin data pairs` makes pairs."""
_PAIR_COLUMNS = (*_PROMPTS, "instruction", "history", "chosen", "rejected", "system", "id", "category", "fault")
COLUMNS = frozenset((*_PAIR_COLUMNS, *OPENAI, *FEEDBACK, "tools", "label", *MEDIA, *_OTHER_PROMPTS, *_SFT_ANSWERS))
"""Every column that is looked at, be it only for a better message."""


def is_pair(row: Mapping[str, Any]) -> bool:
    """Whether a row wants to be a preference pair, in whatever form."""
    return any(column in row for column in ("chosen", "rejected", *OPENAI))


FEEDBACK_HINT = "these are answers and opinions of them; make pairs of them with `hanlin data pairs`"


def is_feedback(row: Mapping[str, Any]) -> bool:
    """Whether the columns are those of weak feedback."""
    return not FEEDBACK.isdisjoint(row)


def read_row(row: Any, name: str) -> Preference:
    """The preference in one parsed row; `name` is its id where the row has none of its own. Raises BadRow."""
    if not isinstance(row, dict):
        raise BadRow("the row is not an object", f"{shown(row)}; expected prompt, chosen and rejected")
    columns = {key: value for key, value in row.items() if value is not None}
    columns = _renamed(columns)
    refuse_more_than_text(columns)
    for side in ("chosen", "rejected"):
        if side not in columns:
            raise _without_answer(row, side)
    before_chosen, chosen = _answer(columns["chosen"], "chosen")
    before_rejected, rejected = _answer(columns["rejected"], "rejected")
    if before_chosen != before_rejected:
        raise _different_prompts(before_chosen, before_rejected)
    prompt = _shared_prompt(columns, before_chosen) if before_chosen else _own_prompt(columns)
    prompt = checked_turns(with_system_column(columns, prompt))
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise BadRow(f"{side} is empty", "every answer needs text")
    if chosen.strip() == rejected.strip():
        raise BadRow("equal answers", f"chosen and rejected are both {shown(chosen)}")
    for text in (chosen, rejected, *(message.content for message in prompt)):
        check_characters(text)
    return Preference(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        id=label_of(columns, "id") or name,
        category=label_of(columns, "category"),
        fault=label_of(columns, "fault"),
    )


def _renamed(columns: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's columns under our names, and Anthropic's transcripts as messages."""
    if any(column in columns for column in OPENAI):
        asked = columns.get("input")
        if not isinstance(asked, dict) or "messages" not in asked:
            raise BadRow(
                "the prompt is missing", f"input is {shown(asked)}; expected {{messages: [{{role, content}}]}}"
            )
        columns = {**columns, "prompt": asked["messages"], "tools": asked.get("tools")}
        for column, side in OPENAI.items():
            answer = columns.get(column)
            if not isinstance(answer, list) or len(answer) != 1:
                raise BadRow(
                    f"{column} is not one message", f"{shown(answer)}; expected [{{role: assistant, content}}]"
                )
            columns[side] = answer
    elif not any(column in columns for column in (*_PROMPTS, "instruction")):
        for side in ("chosen", "rejected"):
            if isinstance(text := columns.get(side), str) and is_transcript(text):
                columns[side] = [{"role": turn.role, "content": turn.content} for turn in transcript_turns(text)]
    return columns


def _without_answer(row: Mapping[str, Any], side: str) -> BadRow:
    """What to say of a row without `side`: the commonest kinds of other data are recognised by their columns."""
    if side in row:
        return BadRow(f"{side} is null", "every pair needs both answers")
    other = [str(key) for key in row if key not in COLUMNS]
    if near := difflib.get_close_matches(side, other, n=1, cutoff=0.75):
        return BadRow(f"{side} is missing", f"rename the column {near[0]!r} to {side!r}")
    columns = ", ".join(map(str, row)) or "none"
    if "chosen" in row or "rejected" in row:
        return BadRow(f"{side} is missing", f"the columns are {columns}")
    if "label" in row:
        kind = "data with one labelled answer a row (KTO)"
    elif is_feedback(row):
        return BadRow("chosen and rejected are missing", FEEDBACK_HINT)
    elif not _SFT_ANSWERS.isdisjoint(row) or "conversations" in row or "messages" in row:
        kind = "SFT data"
    else:
        return BadRow("chosen and rejected are missing", f"the columns are {shown_columns(columns)}")
    return BadRow(
        "chosen and rejected are missing",
        f"this is {kind} (columns {shown_columns(columns)}); a preference pair has prompt, chosen and rejected",
    )


def _answer(value: Any, side: str) -> tuple[tuple[Message, ...], str]:
    """The answer's text and the messages before it, if the value is a whole conversation."""
    if isinstance(value, str):
        return (), value
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(f"{side} is not text", f"{shown(value)}; expected text, a message or a list of messages")
    if not value:
        raise BadRow(f"{side} is empty", "the list holds no message")
    if isinstance(value[0], str):
        raise BadRow(f"{side} is a list of texts", f"{len(value)} of them; expected one answer")
    messages = messages_of(value, side)
    if messages[-1].role != "assistant":
        raise BadRow(f"{side} does not end with an assistant turn", f"its last turn is the {messages[-1].role}'s")
    return messages[:-1], messages[-1].content


def _different_prompts(one: tuple[Message, ...], other: tuple[Message, ...]) -> BadRow:
    reason = "chosen and rejected have different prompts"
    if len(one) != len(other):
        return BadRow(reason, f"{len(one)} messages before the chosen answer, {len(other)} before the rejected one")
    number = next(i for i, (a, b) in enumerate(zip(one, other, strict=True), start=1) if a != b)
    return BadRow(reason, f"message {number} differs; only the last answer may")


def _shared_prompt(columns: Mapping[str, Any], prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """`prompt`, which both answers' message lists begin with; the row's own prompt has to say the same."""
    own = columns.get("prompt")
    if isinstance(own, str):
        if not any(own.strip() in message.content for message in prompt):
            raise BadRow(
                "the prompt is not in the messages", f"{shown(own)} does not occur in chosen; drop one of them"
            )
    elif own is not None and messages_of(own, "prompt") != prompt:
        raise BadRow("the prompt is not in the messages", "chosen and rejected begin with other messages than prompt")
    return prompt


def _own_prompt(columns: Mapping[str, Any]) -> tuple[Message, ...]:
    if isinstance(prompt := columns.get("prompt"), str):
        return prompt_turns(prompt)
    for column in _PROMPTS:
        if column in columns:
            return messages_of(columns[column], column)
    if "instruction" in columns:
        return alpaca.turns_of(columns)
    if near := [column for column in _OTHER_PROMPTS if column in columns]:
        raise BadRow("the prompt is missing", f"rename the column {near[0]!r} to 'prompt'")
    raise BadRow("the prompt is missing", "expected prompt (text or messages) or conversations")
