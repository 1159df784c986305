"""The Jinja chat template that says the same as a `ChatFormat`, for checkpoints that bring none.

It is written from the format's fields, so that transformers, vLLM and whoever else reads a saved model put turns and
tools together as we do (tests/text/test_chat.py and test_tools.py render both).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hanlin.text.chat import ChatFormat
    from hanlin.text.tools import ToolFormat

_ALTERNATION = """\
    {%- if not follows %}
        {%- if (message['role'] in ['user', 'tool']) != (state.turn % 2 == 0) %}
            {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
        {%- endif %}
        {%- set state.turn = state.turn + 1 %}
    {%- endif %}"""
_ROLES = """\
    {%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('Unknown role: ' + message['role']) }}
    {%- endif %}
    {%- set follows = message['role'] == 'tool' and not loop.first and turns[loop.index0 - 1]['role'] == 'tool' %}
    {%- set followed = message['role'] == 'tool' and not loop.last and turns[loop.index0 + 1]['role'] == 'tool' %}"""


def write_template(format: "ChatFormat") -> str:
    """A Jinja template that transformers renders as `format.text` does; `date_string` overrides the date where the
    format has one.
    """
    return "\n".join(line for line in _lines(format) if line) + "\n"


def _lines(format: "ChatFormat") -> Iterator[str]:
    trim, trim_system = " | trim" if format.trims else "", " | trim" if format.trims_system else ""
    default = format.default_system.strip() if format.trims_system else format.default_system
    yield f"{{{{- {_quote(format.bos)} }}}}" if format.bos else ""
    if format.preamble:
        yield f"{{%- set date = date_string if date_string is defined else {_quote(format.date)} %}}"
    yield "{%- if messages[0]['role'] == 'system' %}"
    yield f"    {{%- set system = messages[0]['content']{trim_system} %}}"
    yield "    {%- set turns = messages[1:] %}"
    yield "{%- else %}"
    yield f"    {{%- set system = {_quote(default)} %}}"
    yield "    {%- set turns = messages %}"
    yield "{%- endif %}"
    yield "{%- set state = namespace(tools='', turn=0) %}"
    yield from _declaration(format.tools)
    if not format.folds_system:
        yield from _system(format)
    yield "{%- for message in turns %}"
    yield _ROLES
    yield _ALTERNATION if format.alternates else ""
    yield f"    {{%- set content = (message['content'] or ''){trim} %}}"
    yield "    {%- if message['role'] == 'tool' %}"
    yield from _result(format)
    yield "    {%- else %}"
    yield from _turn(format)
    yield "    {%- endif %}"
    yield "{%- endfor %}"
    yield "{%- if add_generation_prompt %}"
    yield f"    {{{{- {_header(format, 'assistant')} }}}}"
    yield "{%- endif %}"


def _declaration(tools: "ToolFormat") -> Iterator[str]:
    before, after = tools.entry.split("{tool}")
    indent = "" if tools.indent is None else f"(indent={tools.indent})"
    yield "{%- if tools %}"
    yield f"    {{%- set state.tools = {_quote(tools.opening)} %}}"
    yield "    {%- for tool in tools %}"
    entry = f"{_quote(before)} + (tool | tojson{indent}) + {_quote(after)}"
    yield f"        {{%- set state.tools = state.tools + {entry} %}}"
    yield "    {%- endfor %}"
    yield f"    {{%- set state.tools = state.tools + {_quote(tools.closing)} %}}"
    if tools.place == "system":
        yield "    {%- set system = (system + '\\n\\n' if system else '') + state.tools %}"
    yield "{%- endif %}"


def _system(format: "ChatFormat") -> Iterator[str]:
    text = "system"
    if format.preamble:
        text = _quote(format.preamble).replace("{date}", "' + date + '") + " + system"
    if format.tools.environment:
        text = f"({_quote(format.tools.environment)} if tools else '') + {text}"
    turn = f"{{{{- {_header(format, 'system')} + {text} + {_quote(format.stop + format.gap)} }}}}"
    yield turn if format.preamble else f"{{%- if system %}}\n    {turn}\n{{%- endif %}}"


def _result(format: "ChatFormat") -> Iterator[str]:
    before, after = format.tools.result.split("{result}")
    header, stop = _header(format, format.tools.result_role), _quote(format.stop + format.gap)
    if format.tools.quotes_results:
        yield f"        {{{{- {header} + (message['content'] | tojson) + {stop} }}}}"
        return
    yield f"        {{{{- '\\n' if follows else {header} }}}}"
    yield f"        {{{{- {_quote(before)} + message['content'] + {_quote(after)} }}}}"
    yield f"        {{{{- '' if followed else {stop} }}}}"


def _turn(format: "ChatFormat") -> Iterator[str]:
    tools = format.tools
    before, after = tools.call.split("{call}")
    role = f"({_quote(format.assistant)} if message['role'] == 'assistant' else message['role'])"
    opening, gap = _quote(format.opening), _quote(format.closing + format.header_gap)
    yield f"        {{{{- {opening} + {role} + {gap} }}}}"
    if format.folds_system:
        yield "        {{- system + '\\n\\n' if loop.first and system else '' }}"
    if tools.place == "user":
        yield "        {{- state.tools if loop.first else '' }}"
    yield "        {%- set calls = message['tool_calls'] if message['tool_calls'] else [] %}"
    if tools.alone:
        yield "        {%- if calls | length > 1 %}"
        yield "            {{- raise_exception('An answer holds one tool call') }}"
        yield "        {%- endif %}"
        yield "        {{- '' if calls else content }}"
    else:
        yield "        {{- content }}"
    yield "        {%- for call in calls %}"
    yield "            {%- set call = call['function'] if call['function'] is defined else call %}"
    if not tools.alone:
        yield "            {{- '\\n' if content or not loop.first else '' }}"
    name = _quote(f'{before}{{"name": "')
    arguments = "(call['arguments'] if call['arguments'] is string else call['arguments'] | tojson)"
    middle = _quote(f'", "{tools.arguments}": ')
    yield f"            {{{{- {name} + call['name'] + {middle} + {arguments} + {_quote('}' + after)} }}}}"
    yield "        {%- endfor %}"
    yield f"        {{{{- {_quote(format.stop + format.gap)} }}}}"


def _header(format: "ChatFormat", role: str) -> str:
    return _quote("".join(text for text, _ in format.header(role)))


def _quote(text: str) -> str:
    """A Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
