"""How tools are declared, called and answered in text, and how a call is read back.

A `ToolFormat` is data, as the `ChatFormat` that holds it. Two are known: `LLAMA`, what Llama 3.1's and 3.2's own
template writes, and `HERMES`, what Qwen2.5's own template writes and what we write for families without one (Gemma,
SmolLM2, ChatML, Llama 3): JSON between `<tool_call>` and `</tool_call>`.

Surprises: Llama declares tools in the first user turn, makes one call an answer without any text beside it, calls
arguments "parameters" and quotes results as JSON strings; with `HERMES` the results that follow one another share a
user turn. Nothing of this is a control piece: what a model writes in the wrong form is its text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hanlin.errors import TemplateError
from hanlin.types import ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """One way to write tools.

    Attributes:
        place: where they are declared: at the end of the system text, or at the start of the first user turn.
        opening, entry, closing: the declaration; `entry` is written for each tool, its JSON in place of `{tool}`.
        indent: of that JSON; None writes it on one line.
        environment: what the system turn begins with where there are tools.
        call: an answer's call, its JSON in place of `{call}`.
        arguments: what that JSON calls them.
        alone: an answer is text or exactly one call, never both.
        result_role: the role of the turn that brings results.
        result: what a tool answered, in place of `{result}`.
        quotes_results: as a JSON string, and each in a turn of its own.
    """

    place: Literal["system", "user"]
    opening: str
    entry: str
    closing: str
    indent: int | None = None
    environment: str = ""
    call: str
    arguments: str
    alone: bool = False
    result_role: str
    result: str
    quotes_results: bool = False

    def declare(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """The text that says which tools there are."""
        entries = (self.entry.replace("{tool}", _json(tool, "tool", indent=self.indent)) for tool in tools)
        return self.opening + "".join(entries) + self.closing

    def write(self, content: str, calls: Sequence[ToolCall]) -> str:
        """An answer's text and its calls.

        Raises:
            TemplateError: the form holds one call without text and this is more, or a call cannot be written.
        """
        if self.alone and (content or len(calls) > 1):
            what = f"{len(calls)} calls" if len(calls) > 1 else f"a call of {calls[0].name} and text"
            raise TemplateError(f"one answer has {what}; this format holds one call without text: make them two turns")
        written = [content] if content else []
        return "\n".join([*written, *(self.call.replace("{call}", self._call(call)) for call in calls)])

    def read(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """The inverse of `write`: an answer's text before its calls, and the calls with which it ends.

        A call that is not whole and well-formed to the end of the text makes no calls at all: it is text.
        """
        opening, closing = self.call.split("{call}")
        if not opening:
            call, end = self._read_call(text, 0)
            return ("", (call,)) if call is not None and not text[end:].strip() else (text, ())
        start = text.find(opening)
        while start >= 0:
            if calls := self._read_run(text, start, opening, closing):
                return text[:start].removesuffix("\n"), calls
            start = text.find(opening, start + 1)
        return text, ()

    def answered(self, content: str) -> str:
        """What a tool answered, as it stands in its turn."""
        return self.result.replace("{result}", _json(content, "result") if self.quotes_results else content)

    def _call(self, call: ToolCall) -> str:
        if not call.name or _json(call.name, "name") != f'"{call.name}"':
            raise TemplateError(f"a call's function is named {call.name!r}; expected a name without quotes or newlines")
        return f'{{"name": "{call.name}", "{self.arguments}": {_json(call.arguments, call.name)}}}'

    def _read_run(self, text: str, start: int, opening: str, closing: str) -> tuple[ToolCall, ...]:
        """Calls from `start` to the end of the text; () where anything else stands there."""
        calls: list[ToolCall] = []
        while start < len(text):
            if not text.startswith(opening, start):
                return ()
            call, end = self._read_call(text, start + len(opening))
            if call is None or not text.startswith(closing, end):
                return ()
            calls.append(call)
            start = _skip_space(text, end + len(closing))
        return tuple(calls)

    def _read_call(self, text: str, start: int) -> tuple[ToolCall | None, int]:
        try:
            found, end = json.JSONDecoder().raw_decode(text, _skip_space(text, start))
        except (ValueError, RecursionError):
            return None, start
        if not isinstance(found, dict) or found.keys() != {"name", self.arguments}:
            return None, start
        name, arguments = found["name"], found[self.arguments]
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None, start
        return ToolCall(name, arguments), end


def _skip_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _json(value: object, what: str, *, indent: int | None = None) -> str:
    """JSON as transformers' `tojson` writes it: keys in their order, no escapes for what is not ASCII."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise TemplateError(f"{what} cannot be written as JSON ({error}); expected plain JSON values") from None


def function(name: str, description: str, **parameters: dict[str, Any]) -> dict[str, Any]:
    """The declaration of a tool whose parameters, JSON schemas by name, are all required."""
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def read_declarations(value: object) -> tuple[dict[str, Any], ...]:
    """The tools of a row, as the list or the JSON text in which data sets hold them, each `{"type": "function",
    "function": {name, description, parameters}}`: a bare function is put into that form.

    Raises:
        TemplateError: it is neither, or a tool has no name.
    """
    if isinstance(value, str):
        value = _parsed(value, "tools") if value.strip() else []
    if value in (None, {}):
        return ()
    if not isinstance(value, list | tuple):
        raise TemplateError(f"tools are {_shown(value)}; expected a list of functions, or JSON text of one")
    return tuple(_declaration(tool, f"tools[{index}]") for index, tool in enumerate(value))


def _declaration(tool: Any, where: str) -> dict[str, Any]:
    if isinstance(tool, str):
        tool = _parsed(tool, where)
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise TemplateError(f"{where} is {_shown(tool)}; expected a function with a name")
    return tool if "function" in tool else {"type": "function", "function": tool}


def read_calls(value: object) -> tuple[ToolCall, ...]:
    """The calls of a message: a list or one, as JSON text or parsed, each {name, arguments} or OpenAI's
    {"function": {name, arguments}}, where arguments may be JSON text too.

    Raises:
        TemplateError: a call cannot be understood.
    """
    if isinstance(value, str):
        value = _parsed(value, "the call")
    return tuple(_read_call(one) for one in (value if isinstance(value, list | tuple) else [value]))


def _read_call(value: Any) -> ToolCall:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise TemplateError(f"a call is {_shown(value)}; expected an object with name and arguments")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"the arguments of {function['name']}") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise TemplateError(f"the arguments of {function['name']} are {_shown(arguments)}; expected a JSON object")
    return ToolCall(function["name"], arguments)


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"{what}: {_shown(text)} is not JSON ({error}); mend or remove the row") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} …"


# Source: the chat template of Qwen2.5-Instruct. Nous Research's Hermes models brought the tags into use.
HERMES = ToolFormat(
    place="system",
    opening=(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
    ),
    entry="\n{tool}",
    closing=(
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call>"
    ),
    call="<tool_call>\n{call}\n</tool_call>",
    arguments="arguments",
    result_role="user",
    result="<tool_response>\n{result}\n</tool_response>",
)
# Source: the chat template of Llama-3.1- and Llama-3.2-Instruct (tools_in_user_message, its default).
LLAMA = ToolFormat(
    place="user",
    opening=(
        "Given the following functions, please respond with a JSON for a function call with its proper arguments "
        'that best answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": '
        "dictionary of argument name and its value}.Do not use variables.\n\n"
    ),
    entry="{tool}\n\n",
    closing="",
    indent=4,
    environment="Environment: ipython\n",
    call="{call}",
    arguments="parameters",
    alone=True,
    result_role="ipython",
    result="{result}",
    quotes_results=True,
)
