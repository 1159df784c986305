"""Writes a conversation to a file that other tools, or people, read."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from hanlin.errors import ConfigError
from hanlin.types import Message

_TITLES = {"system": "系统 System", "user": "你 You", "assistant": "答 Answer", "tool": "工具 Tool"}


def write_transcript(name: str, messages: Sequence[Message], *, title: str) -> Path:
    """Write the messages to a new file and return its path.

    ".jsonl": one line in OpenAI's form, {"messages": [{"role", "content"}, ...]}. ".md": to read. An existing file is
    never overwritten. Raises ConfigError for another ending, a name that is taken, or a place that cannot be written.
    """
    path = Path(name).expanduser()
    if path.suffix not in (".jsonl", ".md"):
        shown = f"{name!r} ends in {path.suffix!r}" if name else "the name is missing 缺少文件名"
        raise ConfigError(f"{shown}; expected .jsonl or .md, as in /save {path.stem or 'chat'}.jsonl")
    if path.suffix == ".md":
        parts = [f"# {title}", *(f"**{_TITLES[message.role]}**\n\n{_readable(message)}" for message in messages)]
        text = "\n\n".join(parts) + "\n"
    else:
        listed = [{"role": message.role, "content": message.content, **_calls(message)} for message in messages]
        text = json.dumps({"messages": listed}, ensure_ascii=False) + "\n"
    _write_new(path, text)
    return path


def _readable(message: Message) -> str:
    calls = (f"`{call.name} {json.dumps(call.arguments, ensure_ascii=False)}`" for call in message.tool_calls)
    return "\n".join([text for text in (message.content.strip(), *calls) if text])


def _calls(message: Message) -> dict[str, object]:
    """The calls in OpenAI's form, where there are any."""
    made = [
        {
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in message.tool_calls
    ]
    return {"tool_calls": made} if made else {}


def _write_new(path: Path, text: str) -> None:
    if path.exists():
        raise ConfigError(f"{path} exists already 文件已存在; choose another name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror or error}); choose another place") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
