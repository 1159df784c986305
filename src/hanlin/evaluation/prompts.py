"""The prompts of a language suite, and the language that each one wants its answer in.

A row's own "language" field decides. Without one an explicit request does (用英文回答, 翻译成英文, "reply in Chinese"),
then the language that the request is written in. Where two opinions are possible (用英语怎么说, or a request in English
over a Chinese passage) the language is "": such prompts are counted but not judged.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hanlin.errors import DataError
from hanlin.text.language import Evidence, line_language, measure, strip_uncounted
from hanlin.types import ROLES, Message

Expected = Literal["zh", "en", ""]

_ASK = (
    "回|答|写|介绍|解释|说明|描述|翻译|总结|概括|作答|表达|讲|列|复述|造句|改写|润色|创作|进行|告诉|给我|帮我|来"
    "|和我|跟我|交流"
)
_EN, _ZH = "(?:英文|英语)", "(?:简体|繁体)?(?:中文|汉语|普通话)"
_INTO = "(?:翻译?|译|转换?|改写?)(?:成|为|到|作)(?:地道的?|流畅的?|标准的?|自然的?|现代)?"
_OPENING = "(?:^|[，。；,;\\s])请?(?:全程|全部|只|都)?用"
_CHINESE = "(?:simplified |traditional |mandarin )?(?:chinese|mandarin)\\b"
_TONGUES = (
    "french|german|spanish|italian|portuguese|japanese|korean|russian|arabic|hindi|latin|dutch|polish|romanian|turkish"
    "|vietnamese|thai|swedish|czech|greek|hebrew|catalan|ukrainian|indonesian|gujarati|bengali|tamil|urdu|persian"
)
_FOREIGN = (
    "日|法|德|俄|韩|泰|西班牙|葡萄牙|意大利|阿拉伯|越南|拉丁|荷兰|希腊|印地|印尼|马来|土耳其|波兰|捷克|瑞典|希伯来|乌克兰"
    "|古吉拉特|孟加拉|蒙古|藏|维吾尔"
)
_TURN = r"translat\w+|render\w*|convert\w*"
_SAY = "answer|reply|respond|write|speak|chat|talk|say|explain|describe|summari[sz]e|rewrite|output"
# The first line of the table that is found decides, so refusals and questions about a language come before requests.
_REQUESTS: tuple[tuple[str, Expected], ...] = (
    (rf"(?:不要|别|勿|不许|禁止|避免|不能|不得)再?(?:使?用|说|夹杂?|出现|翻译成){_EN}", "zh"),
    (rf"{_EN}[里中]?(?:怎么|如何|咋)(?:说|讲|写|表达)|{_EN}(?:是|叫)什么", ""),
    (rf"\bhow (?:do|would|can|should) (?:you|i|we|one) (?:say|write|pronounce|express)\b[^.\n]*\bin {_CHINESE}", ""),
    (rf"\bwhat(?:'s| is| does)\b[^.\n]*\bin {_CHINESE}", ""),
    (rf"(?<![他她它们人])(?:请|使)?用(?:纯?地道的?)?{_EN}[来]?(?:{_ASK})|{_OPENING}{_EN}", "en"),
    (rf"(?:回答|回复|作答|输出)[^。\n]{{0,6}}(?:用|以|使用){_EN}|{_EN}(?:回答|回复|作答)|以{_EN}", "en"),
    (rf"{_INTO}{_EN}|英译(?![中汉])|[中汉]译英", "en"),
    (rf"(?:写|拟|起草|生成)[^。，\n]{{0,15}}{_EN}的?(?:邮件|信|作文|文章|诗|演讲|简历|短文|句子|广告)", "en"),
    (rf"(?<![他她它们人])(?:请|使)?用{_ZH}[来]?(?:{_ASK})|{_OPENING}{_ZH}", "zh"),
    (rf"{_INTO}{_ZH}|[英外日法德]译[中汉]|{_ZH}(?:回答|回复|作答)|以{_ZH}", "zh"),
    (rf"\b(?:{_SAY})\b[^.?!\n]{{0,60}}\bin {_CHINESE}(?! (?!please)\w)", "zh"),
    (rf"\b(?:{_TURN})\b[^.?!\n]{{0,200}}\b(?:in|to|into) {_CHINESE}", "zh"),
    (rf"{_INTO}(?:{_FOREIGN})[语文]", ""),
    (rf"\b(?:{_TURN}|write|answer|reply)\b[^?!\n]{{0,200}}\b(?:in|to|into) (?:{_TONGUES})\b", ""),
    (rf"(?:^|[.!?,;\n])[ \t]*(?:please )?(?:in|use) {_CHINESE}[ \t]*(?:[,:.!]|please|only|$)", "zh"),
    (r"\b(?:not|don't|never|do not|avoid)\b[^.\n]{0,30}\b(?:in|use|using|speak) english\b", ""),
    (r"\b(?:in|to|into|use) english\b", "en"),
)
_GRAMMAR = re.compile("[的是了吗么呢请把用在有为给写介解说讲怎如何吧]")
_COMPILED: list[tuple[re.Pattern[str], Expected]] = [
    (re.compile(pattern, re.I | re.M), language) for pattern, language in _REQUESTS
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One item of a suite. `messages` end with a user turn; `language` is what the answer must be in, "" if either."""

    id: str
    messages: tuple[Message, ...]
    language: Expected
    category: str = ""

    @property
    def text(self) -> str:
        """All that the user and the system said: the terms that an answer may repeat."""
        return "\n".join(message.content for message in self.messages if message.role != "assistant")


def expected_language(messages: tuple[Message, ...]) -> Expected:
    """What the last user turn wants its answer in.

    A request of the system message, or an earlier one that says it lasts (从现在起, "always"), holds until another one.
    """
    last = messages[-1].content
    requested = _requested(last)
    if requested is None:
        for message in messages[:-1]:
            standing = message.role == "system" or re.search(
                r"从现在|以后|接下来|始终|from now on|always", message.content
            )
            if standing and message.role != "assistant":
                found = _requested(message.content)
                requested = requested if found is None else found
    return _written_in(last) if requested is None else requested


def _requested(text: str) -> Expected | None:
    """The request in a text, None without one; where there are several, the first in the table counts."""
    outside = strip_uncounted(text)
    for pattern, language in _COMPILED:
        if pattern.search(outside):
            return language
    return None


def _written_in(text: str) -> Expected:
    """The language of a request that may carry a passage in another one: what its first and its last line agree on."""
    lines = [line for line in re.split(r"[\n:：]", strip_uncounted(text)) if _tells(measure(line))]
    first, last = (lines[0], lines[-1]) if lines else (text, text)
    found = _line_written_in(first)
    return found if found == _line_written_in(last) else ""


def _tells(evidence: Evidence) -> bool:
    """Whether a line is more than names."""
    return line_language(evidence) != "none" or evidence.english_function > 0


def _line_written_in(line: str) -> Expected:
    """Whose grammar holds a line together: 请解释 machine learning is Chinese, "What does 加油 mean?" is English."""
    evidence = measure(line)
    if evidence.language == "other":
        return ""
    if evidence.han == 0 or evidence.words == 0:
        return "zh" if evidence.han else "en" if evidence.words else ""
    chinese, english = bool(_GRAMMAR.search(line)), evidence.english_function > 0
    if chinese != english:
        return "zh" if chinese else "en"
    return "en" if next(char for char in line if char.isalpha()).isascii() and evidence.english else "zh"


def read_prompts(path: Path | str) -> list[Prompt]:
    """Read a JSONL (or JSON array) file of prompts or of preference pairs in TRL's form.

    A row is an object with `prompt` (a string or messages of `role` and `content`). `id`, `language` ("zh", "en", "")
    and `category` are optional; others (`chosen`, `rejected`) are ignored; an assistant turn at the end is dropped.

    Raises:
        DataError: the file cannot be read or is empty, or a row is wrong; it names file, row and what was expected.
    """
    path = Path(path)
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(_rows(path), start=1):
        prompt = _prompt(row, f"{path.name}:{number}", path=path, number=number)
        if prompt.id in seen:
            raise DataError(
                f"{path}: row {number} has the id {prompt.id!r} of row {seen[prompt.id]}; make the ids unique"
            )
        seen[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise DataError(f'{path}: no prompts; write one JSON object a line, such as {{"id": "1", "prompt": "你好"}}')
    return prompts


def _rows(path: Path) -> list[object]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    if text.lstrip().startswith("["):
        rows = _json(text, f"{path}: ")
        return rows if isinstance(rows, list) else [rows]
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [_json(line, f"{path}: line {number}, ") for number, line in lines]


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}no JSON: {error}; write one JSON object a line") from error


def _prompt(row: object, default_id: str, *, path: Path, number: int) -> Prompt:
    where = f"{path}: row {number}"
    if not isinstance(row, dict):
        raise DataError(f"{where} is {_shown(row)}; expected an object with a `prompt`")
    if "prompt" not in row:
        raise DataError(f"{where} has no `prompt`, only {', '.join(map(str, row)) or 'nothing'}; add the field")
    messages = _messages(row["prompt"], where)
    language, category = row.get("language"), row.get("category", "")
    if language not in (None, "zh", "en", ""):
        raise DataError(f'{where} has language {_shown(language)}; expected "zh", "en" or "" (not judged)')
    found: Expected = expected_language(messages) if language is None else language
    return Prompt(id=str(row.get("id", default_id)), messages=messages, language=found, category=str(category or ""))


def _messages(prompt: object, where: str) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list):
        raise DataError(f"{where} has the prompt {_shown(prompt)}; expected a string or a list of messages")
    messages: list[Message] = []
    for message in prompt:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ROLES or not isinstance(content, str):
            raise DataError(
                f"{where} has the message {_shown(message)}; expected role ({', '.join(ROLES)}) and content"
            )
        messages.append(Message(role, content))
    if messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        raise DataError(f"{where} has no user message at the end of its prompt; end it with what the model must answer")
    return tuple(messages)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
