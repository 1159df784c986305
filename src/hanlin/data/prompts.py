"""Questions without answers: what reinforcement learning needs of preference pairs, conversations or plain prompts.

The form is read off each row by itself. Of a pair the prompt is taken, of a conversation what stands before its last
turn where that is the assistant's; answers are not looked at. `prompt` alone, a text or messages, will do. Nothing is
kept in the cache directory: prompts are short, and rewards want their messages.
"""

from dataclasses import dataclass
from typing import Any

from hanlin.config import shown
from hanlin.data.cache import EncodedFiles
from hanlin.data.conversations import CONVERSATIONS, read_conversation
from hanlin.data.groups import Prompt
from hanlin.data.lengths import fit_prompts
from hanlin.data.messages import (
    BadRow,
    check_characters,
    checked_turns,
    label_of,
    messages_of,
    refuse_more_than_text,
    with_system_column,
)
from hanlin.data.prepare import DataConfig, PreparedData, encode_each, prepared, with_refused, with_system
from hanlin.data.rows import COLUMNS, is_pair, read_row
from hanlin.data.sources import RowForm, read_files
from hanlin.data.tool_rows import has_tools
from hanlin.data.transcripts import prompt_turns
from hanlin.errors import ConfigError, TemplateError
from hanlin.text.chat import ChatFormat
from hanlin.text.encode import encode_prompt, naming
from hanlin.text.tokenizer import Tokenizer
from hanlin.types import Message


@dataclass(frozen=True, slots=True)
class Question:
    """The messages of a prompt, which end with a user turn."""

    messages: tuple[Message, ...]
    id: str


def read_question(row: Any, name: str) -> Question:
    """The question in one parsed row; `name` is its id where the row has none of its own. Raises BadRow."""
    if not isinstance(row, dict):
        raise BadRow("the row is not an object", f"{shown(row)}; expected prompt, conversations or messages")
    columns = {key: value for key, value in row.items() if value is not None}
    if has_tools(columns):
        raise BadRow("tools", "answers that call tools cannot be sampled yet")
    if is_pair(columns):
        pair = read_row(row, name)
        return Question(pair.prompt, pair.id)
    column = next((one for one in ("prompt", "conversations", "messages") if one in columns), None)
    if column is None:
        conversation = read_conversation(row, name)
        return Question(conversation.messages[:-1], conversation.id)
    refuse_more_than_text(columns)
    value = columns[column]
    messages = prompt_turns(value) if isinstance(value, str) else messages_of(value, column)
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    messages = checked_turns(with_system_column(columns, messages))
    for message in messages:
        check_characters(message.content)
    return Question(messages, label_of(columns, "id") or name)


QUESTIONS = RowForm(
    read=read_question,
    expected="prompts (preference pairs, conversations, or prompt alone)",
    required=(frozenset(("prompt",)), *CONVERSATIONS.required),
    columns=COLUMNS | CONVERSATIONS.columns,
)


def prepare_prompts(
    config: DataConfig,
    format: ChatFormat,
    tokenizer: Tokenizer,
    *,
    num_answers: int,
    max_tokens: int,
    system: str = "",
) -> PreparedData:
    """Prompts that leave room for `max_tokens` within `data.max_length`. Raises as `prepare_data`."""
    on_long = config.on_long
    if on_long == "truncate_prompt":
        raise ConfigError(
            'data.on_long = "truncate_prompt" would reward answers to a prompt that the model saw only in part; use '
            '"drop" or "error"'
        )

    def encode(question: Question) -> Prompt:
        messages = with_system(question.messages, system)
        with naming(question.id):
            ids = encode_prompt(messages, format, tokenizer)
        return Prompt(tuple(ids), messages, num_answers, max_tokens, id=question.id)

    def read(paths: tuple[str, ...]) -> EncodedFiles:
        questions, rows = read_files(paths, QUESTIONS, on_bad_row=config.on_bad_row)
        refused: list[TemplateError] = []
        prompts = encode_each(questions, encode, refused.append if config.on_bad_row == "skip" else None)
        rows = with_refused(rows, refused, format, is_any_left=bool(prompts), noun="prompts")
        fitted, lengths = fit_prompts(prompts, max_length=config.max_length, on_long=on_long)
        return EncodedFiles(fitted, rows, lengths)

    return prepared(config, read, noun="prompts")
