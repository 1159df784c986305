"""Tools: declared, called and answered as the families' own templates do, read back unchanged, and encoded so that a
prompt stays a prefix.
"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hanlin.errors import TemplateError
from hanlin.text.audit import TOOL_PROBES, TOOLS, audit_tools, choose_format, render
from hanlin.text.chat import FORMATS, ChatFormat
from hanlin.text.encode import encode_conversation, encode_prompt
from hanlin.text.tokenizer import Tokenizer
from hanlin.text.tools import HERMES, function, read_calls, read_declarations
from hanlin.types import Conversation, Message, ToolCall
from tiny_text import random_text, write_directory

formats = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())
CALL = ToolCall("weather", {"city": "北京", "days": 2})
OTHER = ToolCall("add", {"numbers": [1, 2.5], "as": {"text": "1", "n": 1}})
HERMES_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京", "days": 2}}\n</tool_call>'


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(5 if depth > 2 else 7)
    if kind == 5:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind == 6:
        return {random_text(rng, 2): random_value(rng, depth + 1) for _ in range(rng.randrange(3))}
    return [random_text(rng, 4), rng.randrange(-9, 10**12), rng.uniform(-9, 9), rng.random() < 0.5, None][kind]


def random_call(rng: random.Random) -> ToolCall:
    name = rng.choice(["weather", "get_news", "查询", "a.b-c"])
    return ToolCall(name, {random_text(rng, 2): random_value(rng) for _ in range(rng.randrange(4))})


def random_conversation(rng: random.Random, *, alone: bool) -> tuple[list[Message], list[dict[str, Any]]]:
    """Rounds of question, calls and results, and answer; `alone`: one call an answer and no text beside it."""
    messages = [Message("system", random_text(rng))] if rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 3)):
        messages.append(Message("user", random_text(rng)))
        for _ in range(rng.randrange(3)):
            calls = tuple(random_call(rng) for _ in range(1 if alone else rng.randint(1, 3)))
            messages.append(Message("assistant", "" if alone or rng.random() < 0.5 else random_text(rng), calls))
            messages += [Message("tool", rng.choice(["", random_text(rng), '{"a": "值"}'])) for _ in calls]
        messages.append(Message("assistant", random_text(rng)))
    tools = [function(f"f{i}", random_text(rng), x={"type": "string"}) for i in range(rng.randint(1, 3))]
    return messages, tools


def trimmed(message: Message, format: ChatFormat) -> Message:
    return replace(message, content=message.content.strip()) if format.trims else message


def test_hermes_text():
    text = FORMATS["smollm2"].text(
        [
            Message("system", "Be brief."),
            Message("user", "天气？"),
            Message("assistant", "查一下。", (CALL, OTHER)),
            Message("tool", "晴"),
            Message("tool", "3.5"),
            Message("assistant", "晴，3.5。"),
        ],
        tools=[{"name": "weather"}],
    )
    before, after = text.split('<tools>\n{"name": "weather"}\n</tools>')
    assert before.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call")
    assert after.split("</tool_call><|im_end|>\n", 1)[1] == (
        f"<|im_start|>user\n天气？<|im_end|>\n<|im_start|>assistant\n查一下。\n{HERMES_CALL}\n"
        '<tool_call>\n{"name": "add", "arguments": {"numbers": [1, 2.5], "as": {"text": "1", "n": 1}}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n晴\n</tool_response>\n<tool_response>\n3.5\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n晴，3.5。<|im_end|>\n"
    )


def test_families_without_a_system_turn_declare_tools_in_the_first_user_turn():
    text = FORMATS["gemma"].text([Message("user", "天气？")], generation_prompt=True, tools=[{"name": "weather"}])
    assert text.startswith("<bos><start_of_turn>user\n# Tools\n\n")
    assert text.endswith("</tool_call>\n\n天气？<end_of_turn>\n<start_of_turn>model\n")


def test_llama_text():
    text = FORMATS["llama3.1"].text(
        [Message("user", " 天气？"), Message("assistant", "", (CALL,)), Message("tool", '{"a": "晴"}')],
        generation_prompt=True,
        tools=[{"name": "weather"}],
    )
    assert (
        "\n\nEnvironment: ipython\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>" in text
    )
    assert '{\n    "name": "weather"\n}\n\n天气？<|eot_id|>' in text
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert text.endswith(
        header + '{"name": "weather", "parameters": {"city": "北京", "days": 2}}<|eot_id|>'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"{\\"a\\": \\"晴\\"}"<|eot_id|>' + header
    )


@formats
def test_answers_read_back_are_the_answers_written(format: ChatFormat):
    rng = random.Random(7)
    for _ in range(60):
        messages, tools = random_conversation(rng, alone=format.tools.alone)
        for number, message in enumerate(messages):
            if message.role == "assistant":
                prompt = format.text(messages[:number], generation_prompt=True, tools=tools)
                text = format.text(messages[: number + 1], tools=tools)
                assert text.startswith(prompt)
                assert format.parse(text[len(prompt) :]) == trimmed(message, format)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (HERMES_CALL, "", (CALL,)),
        (f"好\n\n{HERMES_CALL}\n\n {HERMES_CALL}\n", "好\n", (CALL, CALL)),
        (f"the tag <tool_call> is\n{HERMES_CALL}", "the tag <tool_call> is", (CALL,)),
        (HERMES_CALL.replace("北京", "</tool_call>"), "", (ToolCall("weather", {"city": "</tool_call>", "days": 2}),)),
        (HERMES_CALL[:-1], None, ()),  # cut off
        (HERMES_CALL + "!", None, ()),
        (HERMES_CALL.replace("}}", "}"), None, ()),
        (HERMES_CALL.replace('"name"', '"named"'), None, ()),
        (HERMES_CALL.replace('"weather"', "3"), None, ()),
        ("<tool_call>", None, ()),
        ("<tool_call>" + "[" * 100_000, None, ()),
    ],
)
def test_what_is_read_as_a_call(text: str, content: str | None, calls: tuple[ToolCall, ...]):
    assert HERMES.read(text) == (text if content is None else content, calls)


def test_llama_reads_a_call_only_where_it_is_the_whole_answer():
    format = FORMATS["llama3.1"]
    text = '{"name": "weather", "parameters": {"city": "北京", "days": 2}}'
    assert format.parse(text + "<|eot_id|>") == Message("assistant", "", (CALL,))
    for other in (text + " ok", "ok " + text, text[:-1], '{"name": "weather"}', "3", text.replace("param", "p")):
        assert format.parse(other) == Message("assistant", other)


@pytest.mark.parametrize(
    ("name", "messages", "words"),
    [
        ("llama3.1", [Message("user", "x"), Message("assistant", "text", (CALL,))], "a call of weather and text"),
        ("llama3.1", [Message("user", "x"), Message("assistant", "", (CALL, CALL))], "2 calls"),
        ("llama3.1", [Message("assistant", "x")], "no user turn to declare them in"),
        ("chatml", [Message("user", "x"), Message("tool", "x")], "turn 2 is what a tool answered"),
        ("chatml", [Message("user", "x", (CALL,))], "only the assistant may"),
        ("chatml", [Message("user", "x"), Message("assistant", "", (ToolCall('"', {}),))], "without quotes"),
        ("chatml", [Message("user", "x"), Message("assistant", "", (ToolCall("f", {"x": {1}}),))], "JSON"),
        ("chatml", [Message("user", "x"), Message("assistant", "", (ToolCall("f", {"x": float("nan")}),))], "JSON"),
        ("gemma", [Message("user", "x"), Message("assistant", "", (CALL,)), Message("user", "x"), Message("user", "y")],
         "turn 4 has the role 'user'"),
        ("gemma", [Message("user", "x"), Message("assistant", "", (CALL,)), Message("tool", "x"), Message("tool", "x"),
                   Message("user", "y")], "turn 5 has the role 'user'"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(name: str, messages: list[Message], words: str):
    with pytest.raises(TemplateError) as caught:
        FORMATS[name].text(messages, tools=[{"name": "weather"}])
    assert words in str(caught.value)


@formats
def test_transformers_renders_our_jinja_equally(format: ChatFormat, tmp_path: Path):
    from transformers import AutoTokenizer

    write_directory(tmp_path, format.name, template=format.jinja())
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(11)
    for _ in range(40):
        messages, tools = random_conversation(rng, alone=format.tools.alone)
        if rng.random() < 0.5:
            messages.pop()
        dicts: list[dict[str, Any]] = []
        for message in messages:
            dicts.append({"role": message.role, "content": message.content})
            if message.tool_calls:
                called = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
                dicts[-1]["tool_calls"] = [{"type": "function", "function": one} for one in called]
        asked = messages[-1].role != "assistant"
        expected = theirs.apply_chat_template(dicts, tools=tools, tokenize=False, add_generation_prompt=asked)
        assert format.text(messages, generation_prompt=asked, tools=tools) == expected


@formats
def test_a_prompt_is_a_prefix_in_ids_and_only_answers_are_scored(format: ChatFormat, tmp_path: Path):
    tokenizer = Tokenizer.from_directory(write_directory(tmp_path, format.name))
    rng = random.Random(13)
    for _ in range(30):
        messages, tools = random_conversation(rng, alone=format.tools.alone)
        prompt = encode_prompt(messages[:-1], format, tokenizer, tools=tools)
        conversation = Conversation(tuple(messages), tools=tuple(tools))
        last, every = (encode_conversation(conversation, format, tokenizer, score=s) for s in ("last", "every"))
        assert list(last.ids[: len(prompt)]) == prompt
        assert not any(last.scored[: len(prompt)])
        scored = tokenizer.decode(
            [id for id, is_scored in zip(every.ids, every.scored, strict=True) if is_scored], keep_control=True
        )
        answers = (format.answer(m.content, m.tool_calls) for m in messages if m.role == "assistant")
        assert scored == "".join(answer + format.stop for answer in answers)


@formats
def test_our_own_template_audits_clean_with_tools(format: ChatFormat, tmp_path: Path):
    tokenizer = Tokenizer.from_directory(write_directory(tmp_path, format.name, template=format.jinja()))
    found = audit_tools(format, tokenizer)
    assert (found.clean, found.missing_template) == (True, False)
    assert found.num_compared >= (4 if format.tools.alone else len(TOOL_PROBES))


def test_a_template_without_tools_and_one_with_others_are_told_apart(tmp_path: Path):
    plain = FORMATS["chatml"].jinja().replace("{%- if tools %}", "{%- if false %}")
    tokenizer = Tokenizer.from_directory(write_directory(tmp_path, "chatml", template=plain))
    assert audit_tools(FORMATS["chatml"], tokenizer).missing_template
    other = FORMATS["chatml"].jinja().replace("<tool_call>", "<call>")
    tokenizer = Tokenizer.from_directory(write_directory(tmp_path, "chatml", template=other))
    assert not audit_tools(FORMATS["chatml"], tokenizer).clean


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "compared"), [("gemma3", 0), ("llama3", 0), ("llama3_1", 0), ("llama3_2", 5), ("qwen2_5", 7)]
)
def test_real_templates_write_tools_as_we_do(name: str, compared: int, assets: Path):
    tokenizer = Tokenizer.from_directory(assets / "tokenizers" / name)
    found = audit_tools(choose_format(tokenizer), tokenizer)
    assert (found.clean, found.num_compared, found.missing_template) == (True, compared, compared == 0)


@pytest.mark.assets
@pytest.mark.parametrize("name", ["llama3_2", "qwen2_5"])
def test_real_templates_write_random_conversations_as_we_do(name: str, assets: Path):
    tokenizer = Tokenizer.from_directory(assets / "tokenizers" / name)
    format, template, rng = choose_format(tokenizer), tokenizer.chat_template, random.Random(17)
    assert template is not None
    for _ in range(100):
        messages, tools = random_conversation(rng, alone=format.tools.alone)
        theirs = render(template, messages, tokenizer, generation_prompt=False, date=format.date, tools=tools)
        assert format.text(messages, tools=tools) == theirs


def test_declarations_in_the_forms_of_data_sets():
    bare, whole = {"name": "f"}, {"type": "function", "function": {"name": "f"}}
    for given in ([bare], [whole], json.dumps([bare]), json.dumps([whole]), [json.dumps(bare)]):
        assert read_declarations(given) == (whole,)
    assert [read_declarations(nothing) for nothing in ([], "[]", "", " ", None, {})] == [()] * 6
    for wrong in ("{", 3, [3], [{}], [{"name": 3}]):
        with pytest.raises(TemplateError):
            read_declarations(wrong)


def test_calls_in_the_forms_of_data_sets():
    plain = {"name": "weather", "arguments": {"city": "北京", "days": 2}}
    as_text = {"name": "weather", "arguments": json.dumps(plain["arguments"])}
    for given in (plain, json.dumps(plain), [plain], as_text, {"id": "1", "type": "function", "function": as_text}):
        assert read_calls(given) == (CALL,)
    assert read_calls({"name": "now", "arguments": ""}) == (ToolCall("now", {}),)
    assert read_calls([plain, plain]) == (CALL, CALL)
    for wrong in ("{", 3, {"arguments": {}}, {"name": "f", "arguments": [1]}, {"name": "f", "arguments": "[1]"}):
        with pytest.raises(TemplateError):
            read_calls(wrong)


def test_probes_hold_what_they_promise():
    assert len(TOOLS) == 2
    assert {message.role for messages in TOOL_PROBES.values() for message in messages} == {
        "system", "user", "assistant", "tool"
    }  # fmt: skip
