"""Rendering: what each family's text is, what is refused, and that reading back is the inverse of writing."""

import random
from dataclasses import replace

import pytest

from hanlin.errors import TemplateError
from hanlin.text.chat import FORMATS, ChatFormat
from hanlin.types import Message
from tiny_text import as_dicts, random_messages, write_directory

TALK = [
    Message("system", " 请用中文。 "),
    Message("user", "  你是谁？\n"),
    Message("assistant", "\u3000我是助手。🙂 "),
    Message("user", "{{ x }}"),
    Message("assistant", "好"),
]
GEMMA_TAIL = (
    "你是谁？<end_of_turn>\n<start_of_turn>model\n我是助手。🙂<end_of_turn>\n"
    "<start_of_turn>user\n{{ x }}<end_of_turn>\n<start_of_turn>model\n好<end_of_turn>\n"
)
LLAMA_TAIL = (
    "<|start_header_id|>user<|end_header_id|>\n\n你是谁？<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n我是助手。🙂<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{{ x }}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n好<|eot_id|>"
)
CHATML_TAIL = (
    "<|im_start|>user\n  你是谁？\n<|im_end|>\n<|im_start|>assistant\n\u3000我是助手。🙂 <|im_end|>\n"
    "<|im_start|>user\n{{ x }}<|im_end|>\n<|im_start|>assistant\n好<|im_end|>\n"
)
LLAMA_SYSTEM = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
RENDERED = {
    "gemma": "<bos><start_of_turn>user\n请用中文。\n\n" + GEMMA_TAIL,
    "gemma3": "<bos><start_of_turn>user\n 请用中文。 \n\n" + GEMMA_TAIL,
    "llama3": LLAMA_SYSTEM + "请用中文。<|eot_id|>" + LLAMA_TAIL,
    "llama3.1": LLAMA_SYSTEM
    + "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n请用中文。<|eot_id|>"
    + LLAMA_TAIL,
    "smollm2": "<|im_start|>system\n 请用中文。 <|im_end|>\n" + CHATML_TAIL,
    "qwen2.5": "<|im_start|>system\n 请用中文。 <|im_end|>\n" + CHATML_TAIL,
    "chatml": "<|im_start|>system\n 请用中文。 <|im_end|>\n" + CHATML_TAIL,
}
formats = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())


@formats
def test_text_of_each_family(format: ChatFormat):
    assert format.text(TALK) == RENDERED[format.name]


def test_without_system_text_each_family_says_its_own():
    starts = {name: format.text([Message("user", "hi")]).split("hi")[0] for name, format in FORMATS.items()}
    qwen, smol = FORMATS["qwen2.5"].default_system, FORMATS["smollm2"].default_system
    assert qwen == "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    assert smol == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    user = "<|start_header_id|>user<|end_header_id|>\n\n"
    assert starts == {
        "gemma": "<bos><start_of_turn>user\n",
        "gemma3": "<bos><start_of_turn>user\n",
        "llama3": f"<|begin_of_text|>{user}",
        "llama3.1": f"{LLAMA_SYSTEM}{dates}<|eot_id|>{user}",
        "smollm2": f"<|im_start|>system\n{smol}<|im_end|>\n<|im_start|>user\n",
        "qwen2.5": f"<|im_start|>system\n{qwen}<|im_end|>\n<|im_start|>user\n",
        "chatml": "<|im_start|>user\n",
    }


def test_date_and_default_system_text_are_values():
    format = replace(FORMATS["llama3.1"], date="01 Jan 2025", default_system="Be brief.")
    assert "Today Date: 01 Jan 2025\n\nBe brief.<|eot_id|>" in format.text([Message("user", "hi")])
    folded = replace(FORMATS["gemma"], default_system="Be brief.")
    assert folded.text([Message("user", "hi")]).startswith("<bos><start_of_turn>user\nBe brief.\n\nhi<end_of_turn>")


@formats
def test_spans_join_to_text_and_only_answers_are_scored(format: ChatFormat):
    spans = list(format.spans(TALK))
    assert "".join(text for text, _ in spans) == format.text(TALK)
    answers = [format.answer(message.content) for message in TALK if message.role == "assistant"]
    assert [text for text, kind in spans if kind == "answer"] == answers
    assert [text for text, kind in spans if kind == "stop"] == [format.stop] * 2
    assert all(text for text, _ in spans)


@formats
def test_a_prompt_is_a_prefix_of_its_training_text_and_parse_reads_the_rest(format: ChatFormat):
    rng = random.Random(3)
    for _ in range(50):
        messages = random_messages(rng)
        prompt, text = format.text(messages[:-1], generation_prompt=True), format.text(messages)
        assert text.startswith(prompt)
        content = messages[-1].content
        read = format.parse(text[len(prompt) :])
        assert read == Message("assistant", content.strip() if format.trims else content)
        header = "".join(span for span, _ in format.header("assistant"))
        assert format.parse(header + text[len(prompt) :]) == read


@formats
def test_parse_ends_at_whichever_stop_comes_first(format: ChatFormat):
    for stop in format.stops:
        assert format.parse(f"好{stop}more{format.stop}").content == "好"
    assert format.parse("never ends").content == "never ends"


def test_stops():
    assert {name: set(format.stops) for name, format in FORMATS.items()} == {
        "gemma": {"<eos>", "<end_of_turn>"},
        "gemma3": {"<eos>", "<end_of_turn>"},
        "llama3": {"<|end_of_text|>", "<|eot_id|>"},
        "llama3.1": {"<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"},
        "smollm2": {"<|im_end|>", "<|endoftext|>"},
        "qwen2.5": {"<|im_end|>", "<|endoftext|>"},
        "chatml": {"<|im_end|>", "<|endoftext|>"},
    }
    assert all(format.stops[0] == format.stop for format in FORMATS.values())


@formats
@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "no messages"),
        ([Message("user", "")], "turn 1 (user) is empty"),
        ([Message("user", "hi"), Message("assistant", " \u3000\n")], "turn 2 (assistant) is empty"),
        ([Message("system", ""), Message("user", "hi")], "turn 1 (system) is empty"),
        ([Message("user", "hi"), Message("ipython", "42")], "turn 2 has the role 'ipython'"),
    ],
)
def test_what_no_family_can_hold_is_refused(format: ChatFormat, messages: list[Message], words: str):
    with pytest.raises(TemplateError) as caught:
        format.text(messages)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gemma", "gemma3"])
@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ("ua a", "turn 3 has the role 'assistant'"),
        ("uu", "turn 2 has the role 'user'"),
        ("a", "turn 1 has the role 'assistant'"),
        ("sa", "turn 2 has the role 'assistant'"),
        ("suas", "turn 4 has the role 'system'"),
        ("s", "only system text"),
    ],
)
def test_gemma_turns_must_alternate(name: str, roles: str, words: str):
    names = {"u": "user", "a": "assistant", "s": "system"}
    with pytest.raises(TemplateError, match=words):
        FORMATS[name].text([Message(names[role], "x") for role in roles.replace(" ", "")])


def test_an_empty_answer_is_refused():
    with pytest.raises(TemplateError, match="answer is empty"):
        FORMATS["chatml"].answer("  \n")


@formats
@pytest.mark.parametrize("default_system", [None, "It's \\ a {{ test }}\n你好"])
def test_transformers_renders_our_jinja_equally(format: ChatFormat, default_system: str | None, tmp_path):
    from jinja2.exceptions import TemplateError as JinjaError
    from transformers import AutoTokenizer

    if default_system is not None:
        format = replace(format, default_system=default_system)
    write_directory(tmp_path, format.name, template=format.jinja())
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(5)
    for _ in range(40):
        answered = rng.random() < 0.5
        messages = random_messages(rng, answered=answered)
        expected = theirs.apply_chat_template(as_dicts(messages), tokenize=False, add_generation_prompt=not answered)
        assert format.text(messages, generation_prompt=not answered) == expected
    with pytest.raises(JinjaError, match="Unknown role"):
        theirs.apply_chat_template([{"role": "ipython", "content": "x"}], tokenize=False)
    if format.alternates:
        with pytest.raises(JinjaError, match="alternate"):
            theirs.apply_chat_template([{"role": "user", "content": "x"}] * 2, tokenize=False)
