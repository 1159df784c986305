"""How a conversation becomes text, where the loss may look, what ends an answer, and how an answer is read back.

A `ChatFormat` is data: Gemma and Llama 3 are values of one type. `spans` is the only function that knows how turns are
put together; prompts, training text, scored spans, ids (`hanlin.text.encode`) and the Jinja template for others are
all read from the same fields, so training and serving cannot drift apart.

Surprises: whitespace that the official template trims is trimmed here too (full-width spaces included), Gemma has no
system role (the text goes into the first user turn), Llama 3.1's system turn always begins with two dates, and the
newline after Gemma's and ChatML's stop piece belongs to the text but is nothing that the model has to say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hanlin.errors import ConfigError, TemplateError
from hanlin.text.template import write_template
from hanlin.text.tools import HERMES, LLAMA, ToolFormat
from hanlin.types import ROLES, Message, ToolCall

Kind = Literal["control", "text", "answer", "stop"]
DEFAULT_DATE = "26 Jul 2024"  # what Llama 3.1's own template says when nobody gives a date


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """One family's way to write turns. Change a field with `dataclasses.replace`: a date, another default system text.

    Attributes:
        name: its key in `FORMATS`.
        bos: the dedicated piece that begins every text; "" where the family has none.
        opening: control piece before a turn's role.
        closing: control piece after the role; "" where the header ends without one.
        header_gap: text between header and content.
        stop: control piece after every content: what the model must learn to say at an answer's end.
        gap: text after `stop`, never scored.
        other_stops: further pieces that end an answer.
        assistant: the family's word for the role "assistant".
        trims: contents lose the white space at both ends; trims_system: so does the leading system text.
        folds_system: there is no system turn; its text and a blank line go before the first user content.
        default_system: system text for conversations that bring none; "" adds nothing.
        preamble: text that the leading system turn always begins with; `{date}` is filled in.
        date: what `{date}` becomes.
        alternates: user and assistant must take turns, beginning with the user.
        audits_answers: false where published templates disagree on what follows an answer: only prompts are audited.
        tools: how tools are declared, called and answered.
    """

    name: str
    bos: str = ""
    opening: str
    closing: str = ""
    header_gap: str
    stop: str
    gap: str = ""
    other_stops: tuple[str, ...] = ()
    assistant: str = "assistant"
    trims: bool
    trims_system: bool = True
    folds_system: bool = False
    default_system: str = ""
    preamble: str = ""
    date: str = DEFAULT_DATE
    alternates: bool = False
    audits_answers: bool = True
    tools: ToolFormat = HERMES

    @property
    def stops(self) -> tuple[str, ...]:
        """Every piece that ends an answer, the one that we train first."""
        return (self.stop, *self.other_stops)

    def spans(
        self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] = (), generation_prompt: bool = False
    ) -> Iterator[tuple[str, Kind]]:
        """The text in pieces, each a control piece or plain text; joined they are `text`.

        Kinds: "control" (one id, found by name), "text", "answer" and "stop". The last two, an answer's text and the
        control piece after it, are what the assistant says; nothing else is. `tools` are declared as `Conversation`
        has them.

        Raises:
            TemplateError: no messages, an unknown role, an empty content, an order or a call that the family cannot
            hold.
        """
        if self.bos:
            yield self.bos, "control"
        for role, content in self._turns(messages, tools):
            yield from self.header(role)
            says = role == "assistant"
            yield content, "answer" if says else "text"
            yield self.stop, "stop" if says else "control"
            if self.gap:
                yield self.gap, "text"
        if generation_prompt:
            yield from self.header("assistant")

    def header(self, role: str) -> Iterator[tuple[str, Kind]]:
        """The spans that open a turn."""
        yield self.opening, "control"
        yield self.assistant if role == "assistant" else role, "text"
        if self.closing:
            yield self.closing, "control"
        yield self.header_gap, "text"

    def text(
        self, messages: Sequence[Message], generation_prompt: bool = False, *, tools: Sequence[dict[str, Any]] = ()
    ) -> str:
        """The conversation as the official template writes it; with `generation_prompt` the assistant's header follows.

        Raises:
            TemplateError: as `spans`.
        """
        return "".join(text for text, _ in self.spans(messages, tools=tools, generation_prompt=generation_prompt))

    def answer(self, content: str, calls: Sequence[ToolCall] = ()) -> str:
        """An assistant content with its calls as it stands between header and stop.

        Raises:
            TemplateError: it is empty, or a call cannot be written.
        """
        text = content.strip() if self.trims else content
        if calls:
            return self.tools.write(text, calls)
        if not content.strip():
            raise TemplateError(
                "the answer is empty or only whitespace; expected text; remove the row or write an answer"
            )
        return text

    def parse(self, text: str) -> Message:
        """The assistant message in what a model wrote: everything before the first stop piece, trimmed as rendered,
        the calls at its end as calls.

        A leading assistant header is left out, so that `parse` also reads a whole rendered assistant turn.
        """
        text = text.removeprefix("".join(span for span, _ in self.header("assistant")))
        end = min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=len(text))
        return Message("assistant", *self.tools.read(text[:end].strip() if self.trims else text[:end]))

    def _turns(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
        """Roles and final contents: system text placed, tools declared, contents trimmed, order checked."""
        for number, message in enumerate(messages, 1):
            self._check(number, message, messages[number - 2] if number > 1 else None)
        if not messages:
            raise TemplateError("the conversation has no messages; expected at least one user message")
        leads = messages[0].role == "system"
        system = messages[0].content if leads else self.default_system
        if self.trims_system:
            system = system.strip()
        numbered = list(self._contents(messages[1:] if leads else messages, first=2 if leads else 1))
        turns = [(role, content) for _, role, content in numbered]
        if self.alternates:
            self._check_order([(number, role) for number, role, _ in numbered])
        declared = self.tools.declare(tools) if tools else ""
        if declared and self.tools.place == "user":
            if not turns or turns[0][0] != "user":
                raise TemplateError("there are tools and no user turn to declare them in; begin with a user turn")
            turns[0] = ("user", declared + turns[0][1])
        elif declared:
            system = f"{system}\n\n{declared}" if system else declared
        if self.folds_system:
            if system:
                turns[0] = ("user", f"{system}\n\n{turns[0][1]}")
            return turns
        environment = self.tools.environment if tools else ""
        system = environment + self.preamble.replace("{date}", self.date) + system
        return [("system", system), *turns] if system else turns

    def _contents(self, messages: Sequence[Message], *, first: int) -> Iterator[tuple[int, str, str]]:
        """Number, role and text of each turn; results that follow one another may be one turn."""
        results: list[str] = []
        for place, message in enumerate(messages):
            if message.role == "tool":
                results.append(self.tools.answered(message.content))
                followed = messages[place + 1].role if place + 1 < len(messages) else ""
                if followed != "tool" or self.tools.quotes_results:
                    yield first + place, self.tools.result_role, "\n".join(results)
                    results = []
            elif message.tool_calls:
                yield first + place, message.role, self.answer(message.content, message.tool_calls)
            else:
                yield first + place, message.role, message.content.strip() if self.trims else message.content

    def _check(self, number: int, message: Message, before: Message | None) -> None:
        if message.role == "tool":
            if before is None or not (before.role == "tool" or before.tool_calls):
                raise TemplateError(f"turn {number} is what a tool answered; expected a call in the turn before it")
            return
        if message.role not in ROLES:
            raise TemplateError(f"turn {number} has the role {message.role!r}; expected one of {', '.join(ROLES)}")
        if message.tool_calls and message.role != "assistant":
            raise TemplateError(f"turn {number} ({message.role}) calls a tool; only the assistant may")
        if not message.content.strip() and not message.tool_calls:
            raise TemplateError(
                f"turn {number} ({message.role}) is empty or only whitespace; expected text; remove the turn or fill it"
            )

    def _check_order(self, roles: Sequence[tuple[int, str]]) -> None:
        for place, (number, role) in enumerate(roles):
            expected = ("user", "assistant")[place % 2]
            if role != expected:
                raise TemplateError(
                    f"turn {number} has the role {role!r}; {self.name} expected {expected!r}: user and "
                    "assistant must alternate, beginning with the user; join or reorder the turns"
                )
        if not roles:
            raise TemplateError(f"the conversation has only system text; {self.name} expected a user turn after it")

    def jinja(self) -> str:
        """A Jinja chat template that transformers renders as `text` does; for checkpoints that bring none."""
        return write_template(self)


def _gemma(name: str, *, trims_system: bool) -> ChatFormat:
    return ChatFormat(
        name=name,
        bos="<bos>",
        opening="<start_of_turn>",
        header_gap="\n",
        stop="<end_of_turn>",
        gap="\n",
        other_stops=("<eos>",),
        assistant="model",
        trims=True,
        trims_system=trims_system,
        folds_system=True,
        alternates=True,
    )


def _llama3(name: str, *, preamble: str, other_stops: tuple[str, ...], tools: ToolFormat) -> ChatFormat:
    return ChatFormat(
        name=name,
        bos="<|begin_of_text|>",
        opening="<|start_header_id|>",
        closing="<|end_header_id|>",
        header_gap="\n\n",
        stop="<|eot_id|>",
        other_stops=other_stops,
        trims=True,
        preamble=preamble,
        audits_answers=False,
        tools=tools,
    )


def _chatml(name: str, *, default_system: str) -> ChatFormat:
    return ChatFormat(
        name=name,
        opening="<|im_start|>",
        header_gap="\n",
        stop="<|im_end|>",
        gap="\n",
        other_stops=("<|endoftext|>",),
        trims=False,
        trims_system=False,
        default_system=default_system,
    )


# Sources: the checkpoints' own templates, checked byte for byte in tests/text/test_audit.py. Gemma 1/2 refuse system
# text; for them it is folded the way of the Gemma prompt guide (ai.google.dev/gemma/docs/core/prompt-structure,
# "System instructions").
FORMATS: dict[str, ChatFormat] = {
    "gemma": _gemma("gemma", trims_system=True),
    "gemma3": _gemma("gemma3", trims_system=False),
    "llama3": _llama3("llama3", preamble="", other_stops=("<|end_of_text|>",), tools=HERMES),
    "llama3.1": _llama3(
        "llama3.1",
        preamble="Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n",
        tools=LLAMA,
        other_stops=("<|eom_id|>", "<|end_of_text|>"),
    ),
    "smollm2": _chatml(
        "smollm2", default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    ),
    "qwen2.5": _chatml(
        "qwen2.5", default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    ),
    "chatml": _chatml("chatml", default_system=""),
}


def named_format(name: str) -> ChatFormat:
    """The format of a name in `FORMATS`; ConfigError for another name."""
    if name not in FORMATS:
        raise ConfigError(f"chat format {name!r} is unknown; known: {', '.join(FORMATS)}")
    return FORMATS[name]
