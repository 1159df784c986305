"""Which chat format a checkpoint uses, and whether our text equals what its own Jinja template writes.

The template is rendered as transformers does it, in a sandbox, on probe conversations that show the usual faults:
trimmed or untrimmed whitespace, system text, several turns, characters outside ASCII. Surprises: where a conversation
brings no system text, the format's default is given to the template as an explicit message, so what is compared is the
writing and not the defaults; a probe that the template refuses (Gemma's has no system role) is skipped; a broken
template is a difference, never a traceback.
"""

import datetime
import difflib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hanlin.errors import TemplateError
from hanlin.text.chat import FORMATS, ChatFormat
from hanlin.text.tokenizer import Tokenizer
from hanlin.text.tools import function
from hanlin.types import Message, ToolCall


class Difference(NamedTuple):
    """One probe that came out differently; `theirs` is the template's text, or what broke it."""

    probe: str
    ours: str
    theirs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Our text against the checkpoint's template.

    Attributes:
        format: the name of the audited format.
        missing_template: the checkpoint brings no template; nothing was compared and the family's format is used.
        differences: probes that came out differently.
        skipped: probes that the template refuses, each with its reason.
        num_compared: probes that were compared.
    """

    format: str
    missing_template: bool = False
    differences: tuple[Difference, ...] = ()
    skipped: tuple[str, ...] = ()
    num_compared: int = 0

    @property
    def clean(self) -> bool:
        """No probe differs."""
        return not self.differences

    @property
    def notice(self) -> str:
        """One line for people; "" when every probe is equal."""
        if self.missing_template:
            return f"the checkpoint has no chat template; the {self.format} format is used"
        if self.differences:
            probes = ", ".join(difference.probe for difference in self.differences)
            return f"the checkpoint's chat template differs from the {self.format} format on: {probes}"
        return ""


class _Refused(Exception):
    """The template called `raise_exception`."""


class _Generation(Extension):
    """Reads transformers' `{% generation %}` blocks, which mark answers for training masks, as their plain content."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _turns(*contents: str, system: str = "") -> tuple[Message, ...]:
    roles = ("user", "assistant")
    turns = tuple(Message(roles[i % 2], content) for i, content in enumerate(contents))
    return (Message("system", system), *turns) if system else turns


CODE = 'def f(x):\n    return {"值": x % 3}  # 注释\n\n\n```python\nprint(f"{x!r}")\n```'
PROBES: dict[str, tuple[Message, ...]] = {
    "one turn": _turns("Why is the sky blue?"),
    "answered": _turns("你好，世界！", "你好！有什么可以帮你？"),
    "several turns": _turns("写一首诗。", "春眠不觉晓", "Now in English, please.", "Asleep in spring", "谢谢"),
    "system text": _turns("你是谁？", "我是助手。", "Really?", system="You are a helpful assistant. 请用中文回答。"),
    "emoji and full-width spaces": _turns("🙂👨‍👩‍👧 全角　空格", "好的　👌🏽", "🇨🇳！"),
    "braces": _turns("{{ name }} {% if x %} {# no #} {0} }}", "{'a': {1}} %}", "{{}}"),
    "white space at the ends": _turns("  \n leading", "\n answer\t \n", " trailing \n\n"),
    "full-width space at the ends": _turns("\u3000段首缩进", "答\u3000", "问\u3000"),
    "code": _turns(CODE, CODE, CODE),
    "system text with white space at the ends": _turns("hi", system=" \n Be brief. \n"),
}

TOOLS: tuple[dict[str, Any], ...] = (
    function("weather", "查询天气 <now>", city={"type": "string"}, days={"type": "integer"}),
    function("add", 'Says "a + b".', numbers={"type": "array", "items": {"type": "number"}}),
)
_CALL = ToolCall("weather", {"city": "北京 🙂", "days": 2})
_NESTED = ToolCall("add", {"numbers": [1, 2.5, -1e-07], "as": {"text": "1", "yes": True, "no": None, "q": '"\\n'}})
_ASKED, _SAID = Message("user", "北京明天天气怎么样？"), Message("assistant", "晴。")
TOOL_PROBES: dict[str, tuple[Message, ...]] = {
    "tools": (_ASKED,),
    "tools and system text": (Message("system", "请用中文回答。"), _ASKED),
    "tools that are not called": (_ASKED, _SAID, Message("user", "谢谢")),
    "a call": (_ASKED, Message("assistant", "", (_CALL,)), Message("tool", '{"晴": "25°"}'), _SAID, _ASKED),
    "a call, unanswered": (_ASKED, Message("assistant", "", (_NESTED,)), Message("tool", " plain <text>\n")),
    "a call after text": (_ASKED, Message("assistant", "我查一下。", (_CALL,)), Message("tool", "晴")),
    "two calls": (_ASKED, Message("assistant", "", (_CALL, _NESTED)), Message("tool", "晴"), Message("tool", "2")),
}


def audit(format: ChatFormat, tokenizer: Tokenizer, *, date: str | None = None) -> Audit:
    """Renders every probe with the format and with the checkpoint's template and compares the texts.

    Args:
        date: what both write where they write a date ("26 Jul 2024" style); the format's own date unless given.
    """
    if tokenizer.chat_template is None:
        return Audit(format=format.name, missing_template=True)
    if date is not None:
        format = replace(format, date=date)
    return _audit(format, tokenizer, tokenizer.chat_template, explicit=True)


def audit_tools(format: ChatFormat, tokenizer: Tokenizer) -> Audit:
    """As `audit`, of conversations with tools. A template that writes the same text with tools as without them knows
    none: `missing_template` is true, and the format's own form is used.
    """
    template, asked = tokenizer.chat_template, PROBES["one turn"]
    if template is None:
        return Audit(format=format.name, missing_template=True)
    try:
        texts = {
            render(template, asked, tokenizer, generation_prompt=True, date=format.date, tools=tools)
            for tools in ((), TOOLS)
        }
    except (_Refused, TemplateError) as error:
        return Audit(format=format.name, differences=(Difference("tools", "", str(error)),))
    if len(texts) == 1:
        return Audit(format=format.name, missing_template=True)
    return _audit(format, tokenizer, template, explicit=True, probes=TOOL_PROBES, tools=TOOLS)


def choose_format(tokenizer: Tokenizer, *, date: str | None = None) -> ChatFormat:
    """The format of a checkpoint: the family by its control pieces, then whichever candidate agrees with its template.

    Candidates are the family's formats, each also with the other trimming and with the default system text that the
    template itself writes. Where none agrees the family's likeliest format is returned; `audit` then shows the
    differences.

    Raises:
        TemplateError: the control pieces belong to no known chat format.
    """
    family = [format if date is None else replace(format, date=date) for format in _family(tokenizer)]
    template = tokenizer.chat_template
    if template is None:
        return family[0]
    candidates = family + [replace(format, trims=not format.trims, trims_system=not format.trims) for format in family]
    for format in candidates:
        default = _default_system(format, tokenizer, template)
        for candidate in (format, replace(format, default_system=default)):
            if _audit(candidate, tokenizer, template, explicit=False).clean:
                return candidate
    return next(
        (format for format in candidates if _audit(format, tokenizer, template, explicit=True).clean), family[0]
    )


def _family(tokenizer: Tokenizer) -> list[ChatFormat]:
    """Formats whose control pieces the tokenizer has, the likeliest first."""

    def has(*pieces: str) -> bool:
        return all(tokenizer.id(piece) is not None for piece in pieces)

    if has("<start_of_turn>", "<end_of_turn>"):
        names = ["gemma3", "gemma"] if has("[multimodal]") else ["gemma", "gemma3"]
    elif has("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"):
        names = ["llama3.1", "llama3"] if has("<|eom_id|>") else ["llama3", "llama3.1"]
    elif has("<|im_start|>", "<|im_end|>"):
        names = ["smollm2", "qwen2.5", "chatml"]
        first = "smollm2" if has("<jupyter_start>") else "qwen2.5" if has("<|object_ref_start|>") else "chatml"
        names.sort(key=lambda name: name != first)
    else:
        raise TemplateError(
            "the tokenizer has the control pieces of no chat format we know (Gemma <start_of_turn>, Llama 3 "
            "<|start_header_id|>, ChatML <|im_start|>), only "
            f"{', '.join(list(tokenizer.control)[:8]) or 'none at all'}; choose another model"
        )
    return [FORMATS[name] for name in names]


def _audit(
    format: ChatFormat,
    tokenizer: Tokenizer,
    template: str,
    *,
    explicit: bool,
    probes: Mapping[str, tuple[Message, ...]] = PROBES,
    tools: Sequence[dict[str, Any]] = (),
) -> Audit:
    """`explicit`: the default system text is given to the template as a message; otherwise the template must write
    it itself.
    """
    differences, skipped, num_compared = [], [], 0
    for name, messages in probes.items():
        prompt = messages[-1].role != "assistant"
        if not prompt and not format.audits_answers:
            continue
        given = messages
        if explicit and format.default_system and messages[0].role != "system":
            given = (Message("system", format.default_system), *messages)
        try:
            ours = format.text(messages, generation_prompt=prompt, tools=tools)
        except TemplateError as refusal:
            skipped.append(f"{name}: {refusal}")
            continue
        try:
            theirs = render(template, given, tokenizer, generation_prompt=prompt, date=format.date, tools=tools)
        except _Refused as refusal:
            skipped.append(f"{name}: {refusal}")
            continue
        except TemplateError as error:
            differences.append(Difference(name, ours, str(error)))
            break  # what is broken once is broken everywhere
        num_compared += 1
        if ours != theirs:
            differences.append(Difference(name, ours, theirs))
    if not num_compared and not differences:
        first = next(iter(probes))
        ours = format.text(probes[first], generation_prompt=True, tools=tools)
        differences.append(Difference(first, ours, f"the template refuses every conversation ({skipped[0]})"))
    return Audit(format=format.name, differences=tuple(differences), skipped=tuple(skipped), num_compared=num_compared)


def _default_system(format: ChatFormat, tokenizer: Tokenizer, template: str) -> str:
    """The system text that the template writes when a conversation brings none; "" where it writes none that we can
    find.
    """
    header = "".join(text for text, _ in format.header("system"))
    try:
        text = render(template, PROBES["one turn"], tokenizer, generation_prompt=True, date=format.date)
    except (_Refused, TemplateError):
        return ""
    text = text.removeprefix(format.bos)
    if format.folds_system or not text.startswith(header):
        return ""
    preamble = format.preamble.replace("{date}", format.date)
    return text.removeprefix(header).split(format.stop, 1)[0].removeprefix(preamble)


def render(
    template: str,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    generation_prompt: bool,
    date: str,
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    """A checkpoint's Jinja template as transformers renders it (`utils/chat_template_utils.py`, 5.x): sandbox, same
    settings and names.

    `date` is what `date_string` and `strftime_now` say. The exception raised for `raise_exception` is private to this
    module.

    Raises:
        TemplateError: the template cannot be parsed, or breaks on these messages.
    """

    def raise_exception(message: object = "") -> None:
        raise _Refused(str(message))

    def strftime_now(pattern: str) -> str:
        try:
            return datetime.datetime.strptime(date, "%d %b %Y").strftime(pattern)
        except ValueError:
            return date

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    try:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = tojson
        environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        return environment.from_string(template).render(
            messages=[_as_dict(message) for message in messages],
            tools=list(tools) or None,
            documents=None,
            add_generation_prompt=generation_prompt,
            date_string=date,
            **tokenizer.special,
        )
    except _Refused:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template cannot be parsed, line {error.lineno}: {error.message}") from None
    except Exception as error:  # a template is somebody else's program: whatever breaks in it is its fault
        raise TemplateError(f"the chat template breaks: {type(error).__name__}: {error}") from None


def _as_dict(message: Message) -> dict[str, Any]:
    """A message as transformers gives it to templates: calls in OpenAI's form, arguments parsed."""
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        functions = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
        made["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return made


def side_by_side(difference: Difference, *, width: int = 100) -> str:
    """The two texts in two columns with visible white space; lines that differ carry a `≠`.

    `width` counts terminal columns, of which a Chinese character takes two.
    """
    column = max((width - 3) // 2, 10)
    ours, theirs = _visible(difference.ours), _visible(difference.theirs)
    rows = [(f"ours ({difference.probe})", "   ", "the checkpoint's template"), ("-" * column, "-+-", "-" * column)]
    for tag, i, i_end, j, j_end in difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        for left, right in zip_longest(ours[i:i_end], theirs[j:j_end], fillvalue=""):
            mark = " | " if tag == "equal" else " ≠ "
            cells = zip_longest(_folded(left, column), _folded(right, column), fillvalue="")
            rows += [(one, mark, two) for one, two in cells]
    return "\n".join((_padded(left, column) + mark + right).rstrip() for left, mark, right in rows)


def _visible(text: str) -> list[str]:
    """Lines with a sign for every newline, tab and full-width space, and for blanks at a line's ends."""
    lines = [line.replace("\t", "→").replace("\u3000", "□") for line in text.replace("\n", "⏎\n").split("\n")]
    return [_ends(line) for line in lines if line]


def _ends(line: str) -> str:
    body, newline = line.removesuffix("⏎"), "⏎" if line.endswith("⏎") else ""
    inner = body.strip(" ")
    if not inner:
        return "·" * len(body) + newline
    left = len(body) - len(body.lstrip(" "))
    return "·" * left + inner + "·" * (len(body) - left - len(inner)) + newline


def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _folded(line: str, column: int) -> list[str]:
    parts, used = [""], 0
    for char in line:
        if used + _columns(char) > column:
            parts.append("")
            used = 0
        parts[-1] += char
        used += _columns(char)
    return parts


def _padded(text: str, column: int) -> str:
    return text + " " * (column - sum(_columns(char) for char in text))
