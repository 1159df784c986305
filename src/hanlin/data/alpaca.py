"""What Alpaca's columns ask: instruction, input and the earlier rounds in history, as the turns of a prompt.

The input stands below the instruction, a line apart, as in LLaMA-Factory (data/converter.py); texts that are null or
empty are none. Conversations, pairs and feedback share the form; what answers it is theirs.
"""

from collections.abc import Mapping
from typing import Any

from hanlin.config import shown
from hanlin.data.messages import BadRow
from hanlin.types import Message


def question_of(columns: Mapping[str, Any]) -> str:
    """The last question, of a row without nulls. Raises BadRow."""
    texts = [columns.get(column, "") for column in ("instruction", "input")]
    for column, text in zip(("instruction", "input"), texts, strict=True):
        if not isinstance(text, str):
            raise BadRow(f"{column} is not text", shown(text))
    return "\n".join(text for text in texts if text.strip())


def turns_of(columns: Mapping[str, Any]) -> tuple[Message, ...]:
    """The earlier rounds and the last question, of a row without nulls. Raises BadRow."""
    return (*_history(columns.get("history", [])), Message("user", question_of(columns)))


def _history(value: Any) -> list[Message]:
    """Earlier rounds as messages."""
    rounds = value if isinstance(value, list) else [value]
    messages: list[Message] = []
    for number, pair in enumerate(rounds):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadRow("history is not rounds", f"history[{number}] is {shown(pair)}; expected [question, answer]")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages
