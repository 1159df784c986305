"""How rows are written: a `Preference` or a `Conversation` in the form that somebody's trainer reads.

The inverse of `rows`, `conversations` and `tool_rows`. Nothing is lost silently: a converted row is read again and must
say what the first one said, columns that no form knows are carried over, and what has no place in a form (text beside a
call in ShareGPT's) is a BadRow.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hanlin.data.conversations import read_conversation
from hanlin.data.messages import BadRow
from hanlin.data.rows import OPENAI, is_pair, read_row
from hanlin.types import Conversation, Message, Preference

Form = Literal["hanlin", "trl", "trl-plain", "sharegpt", "openai", "alpaca"]
_SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
_MESSAGES = ("conversations", "messages")
_KNOWN_FIELDS = {"role", "content", "from", "value", "tool_calls", "function_call", "tool_call_id"}


def _pair(pair: Preference) -> dict[str, Any]:
    """TRL's conversational form."""
    return {
        "prompt": _messages(pair.prompt),
        "chosen": _messages([Message("assistant", pair.chosen)]),
        "rejected": _messages([Message("assistant", pair.rejected)]),
    }


def _own_pair(pair: Preference) -> dict[str, Any]:
    """Ours: the same, and every row has an id."""
    return {"id": pair.id, **_pair(pair)}


def _plain_pair(pair: Preference) -> dict[str, Any]:
    """TRL's standard form, which holds one question."""
    question, *more = pair.prompt
    if more:
        raise BadRow("the prompt is more than one turn", f"{len(pair.prompt)} messages; the form trl holds them")
    return {"prompt": question.content, "chosen": pair.chosen, "rejected": pair.rejected}


def _sharegpt_pair(pair: Preference) -> dict[str, Any]:
    """LLaMA-Factory's ranking form."""
    return {
        "conversations": [_sharegpt_turn(message) for message in pair.prompt],
        "chosen": {"from": "gpt", "value": pair.chosen},
        "rejected": {"from": "gpt", "value": pair.rejected},
    }


def _openai_pair(pair: Preference) -> dict[str, Any]:
    """OpenAI's form for preference fine-tuning."""
    return {
        "input": {"messages": _messages(pair.prompt), "tools": [], "parallel_tool_calls": True},
        "preferred_output": _messages([Message("assistant", pair.chosen)]),
        "non_preferred_output": _messages([Message("assistant", pair.rejected)]),
    }


def _alpaca_pair(pair: Preference) -> dict[str, Any]:
    """LLaMA-Factory's ranking form of Alpaca's columns."""
    return {**_alpaca_question(pair.prompt), "chosen": pair.chosen, "rejected": pair.rejected}


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _sharegpt_turn(message: Message) -> dict[str, str]:
    if not message.tool_calls:
        return {"from": _SHAREGPT_ROLES[message.role], "value": message.content}
    if message.content.strip():
        raise BadRow("text beside a call", "a function_call turn of ShareGPT's form holds none; the form openai does")
    calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
    return {"from": "function_call", "value": json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)}


def _sharegpt(conversation: Conversation) -> dict[str, Any]:
    made: dict[str, Any] = {"conversations": [_sharegpt_turn(message) for message in conversation.messages]}
    if conversation.tools:
        functions = [tool["function"] for tool in conversation.tools]
        made["tools"] = json.dumps(functions, ensure_ascii=False)
    return made


def _openai(conversation: Conversation) -> dict[str, Any]:
    """Calls are numbered; a result has the number of the call that it answers, in their order."""
    messages = _messages(conversation.messages)
    waiting: list[str] = []
    count = 0
    for message, turn in zip(conversation.messages, messages, strict=True):
        if message.tool_calls:
            waiting = [f"call_{count + index}" for index in range(1, len(message.tool_calls) + 1)]
            count += len(waiting)
            turn["tool_calls"] = [
                {
                    "id": id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
                }
                for id, call in zip(waiting, message.tool_calls, strict=True)
            ]
        elif message.role == "tool" and waiting:
            turn["tool_call_id"] = waiting.pop(0)
    made: dict[str, Any] = {"messages": messages}
    if conversation.tools:
        made["tools"] = list(conversation.tools)
    return made


def _own_conversation(conversation: Conversation) -> dict[str, Any]:
    return {"id": conversation.id, **_openai(conversation)}


def _alpaca(conversation: Conversation) -> dict[str, Any]:
    if conversation.tools or any(message.tool_calls or message.role == "tool" for message in conversation.messages):
        raise BadRow("tools", "the form alpaca holds none; openai and sharegpt do")
    *prompt, answer = conversation.messages
    return {**_alpaca_question(prompt), "output": answer.content}


def _alpaca_question(prompt: Sequence[Message]) -> dict[str, Any]:
    system = [message.content for message in prompt[:1] if message.role == "system"]
    turns = [message.content for message in prompt[len(system) :]]
    made: dict[str, Any] = {"instruction": turns[-1], "input": ""}
    if system:
        made["system"] = system[0]
    if len(turns) > 1:
        made["history"] = [list(pair) for pair in zip(turns[:-1:2], turns[1:-1:2], strict=True)]
    return made


PAIR_FORMS: dict[Form, Callable[[Preference], dict[str, Any]]] = {
    "hanlin": _own_pair,
    "trl": _pair,
    "trl-plain": _plain_pair,
    "sharegpt": _sharegpt_pair,
    "openai": _openai_pair,
    "alpaca": _alpaca_pair,
}
CONVERSATION_FORMS: dict[Form, Callable[[Conversation], dict[str, Any]]] = {
    "hanlin": _own_conversation,
    "openai": _openai,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
}
FORMS: tuple[Form, ...] = tuple(dict.fromkeys((*PAIR_FORMS, *CONVERSATION_FORMS)))


@dataclass(frozen=True, slots=True)
class Converted:
    """A row in its new form. `lost` names columns and fields of messages for which there was no place."""

    row: dict[str, Any]
    lost: tuple[str, ...] = ()


def convert_row(row: Any, name: str, form: Form) -> Converted:
    """A parsed row in another form; `name` is its id where it has none. Raises BadRow where it cannot be read, or
    where the form cannot hold it.
    """
    pair = isinstance(row, dict) and is_pair(row)
    read: Callable[[Any, str], Any] = read_row if pair else read_conversation
    noun: Any = read(row, name)
    forms: Mapping[Form, Callable[[Any], dict[str, Any]]] = PAIR_FORMS if pair else CONVERSATION_FORMS
    if form not in forms:
        kind = "preference pairs" if pair else "conversations"
        raise BadRow(f"the form {form} is not for {kind}", f"expected one of {', '.join(forms)}")
    made = forms[form](noun)
    used = _pair_columns(row) if pair else _conversation_columns(row)
    carried = {key: value for key, value in row.items() if key not in used and value is not None}
    lost = [key for key in carried if key in made and key != "id"]
    made |= {key: value for key, value in carried.items() if key not in made}
    if read(made, name) != noun:
        raise BadRow("the form cannot hold it", f"read again from the form {form} it says something else")
    return Converted(made, (*lost, *(f"message.{field}" for field in _unknown_fields(row))))


def _conversation_columns(row: Mapping[str, Any]) -> set[str]:
    """Columns that the reader took in: what they say is in the noun."""
    column = _first(row, _MESSAGES)
    asked = {column} if column else {"instruction", "input", "output", "history"}
    return {*asked, "system", "tools", "images", "videos", "audios"}


def _pair_columns(row: Mapping[str, Any]) -> set[str]:
    used = {"chosen", "rejected", "prompt", "system", "tools"}
    if any(column in row for column in OPENAI):
        return {*used, "input", *OPENAI}
    column = _first(row, ("prompt", *_MESSAGES, "instruction"))
    whole = isinstance(row.get("chosen"), list) and len(row["chosen"]) > 1
    if whole or column is None:
        return used
    return {*used, *(("instruction", "input", "history") if column == "instruction" else (column,))}


def _first(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """The first of the columns that the row has, null or not there aside."""
    return next((column for column in columns if row.get(column) is not None), None)


def _unknown_fields(row: Mapping[str, Any]) -> list[str]:
    found: dict[str, None] = {}
    asked = row["input"].get("messages") if isinstance(row.get("input"), dict) else None
    texts = [row.get(column) for column in (*_MESSAGES, "prompt", "chosen", "rejected", *OPENAI)]
    for value in (*texts, asked):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                found |= dict.fromkeys(key for key in item if key not in _KNOWN_FIELDS and item[key] is not None)
    return list(found)
