"""The format chosen for a checkpoint, and what the audit says of templates that agree, differ, refuse or break."""

from dataclasses import replace
from pathlib import Path

import pytest

from hanlin.errors import TemplateError
from hanlin.text.audit import PROBES, audit, choose_format, side_by_side
from hanlin.text.chat import FORMATS, ChatFormat
from hanlin.text.tokenizer import Tokenizer
from tiny_text import write_directory, write_gemma_gguf

formats = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
    "'<|im_start|>system\nYou are a "
    "helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' "
    "+ message"
    "['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set "
    "content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)  # the launch version: the header comes whether it was asked for or not
LLAMA3_UNTRIMMED = (
    "{% set system_message = 'You are a helpful assistant.' %}{% if messages[0]['role'] == 'system' %}{% set "
    "system_message"
    " = messages[0]['content'] %}{% endif %}{{ '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n' + "
    "system_message + '<|eot_id|>' }}{% for message in messages %}{% set content = message['content'] %}{% if message["
    "'role'] == 'user' %}{{ '<|start_header_id|>user<|end_header_id|>\n\n' + content + '<|eot_id|><|start_header_id|>"
    "assistant<|end_header_id|>\n\n' }}{% elif message['role'] == 'assistant' %}{{ content + '<|eot_id|>' }}{% endif %}"
    "{% endfor %}"
)  # what LLaMA-Factory writes for its template "llama3"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def tiny(path: Path, name: str, template: str | None) -> Tokenizer:
    return Tokenizer.from_directory(write_directory(path, name, template=template))


@formats
def test_without_a_template_the_control_pieces_decide(format: ChatFormat, tmp_path: Path):
    tokenizer = tiny(tmp_path, format.name, None)
    assert choose_format(tokenizer) == format
    found = audit(format, tokenizer)
    assert found.clean
    assert found.missing_template
    assert format.name in found.notice


def test_a_gemma_gguf_is_gemma3(tmp_path: Path):
    tokenizer = Tokenizer.from_gguf(write_gemma_gguf(tmp_path / "x.gguf"))
    assert choose_format(tokenizer) == FORMATS["gemma3"]


@formats
def test_every_format_agrees_with_its_own_jinja(format: ChatFormat, tmp_path: Path):
    tokenizer = tiny(tmp_path, format.name, format.jinja())
    assert choose_format(tokenizer) == format
    found = audit(format, tokenizer)
    assert (found.clean, found.missing_template, found.notice, found.skipped) == (True, False, "", ())
    assert found.num_compared == len(PROBES) - (0 if format.audits_answers else 1)


@pytest.mark.parametrize(
    ("pieces", "template", "expected"),
    [
        ("smollm2", CHATML, replace(FORMATS["smollm2"], default_system="")),
        ("qwen2.5", CHATML, replace(FORMATS["qwen2.5"], default_system="")),
        ("chatml", QWEN2, replace(FORMATS["chatml"], default_system="You are a helpful assistant.")),
        ("llama3", LLAMA3, FORMATS["llama3"]),
        ("llama3.1", LLAMA3, FORMATS["llama3"]),
        (
            "llama3",
            LLAMA3_UNTRIMMED,
            replace(FORMATS["llama3"], trims=False, trims_system=False, default_system="You are a helpful assistant."),
        ),
        ("llama3", FORMATS["llama3.1"].jinja(), FORMATS["llama3.1"]),
        ("gemma3", FORMATS["gemma"].jinja(), FORMATS["gemma"]),
        ("gemma", NO_SYSTEM + FORMATS["gemma"].jinja(), FORMATS["gemma"]),
    ],
)
def test_the_template_decides_between_candidates(pieces: str, template: str, expected: ChatFormat, tmp_path: Path):
    tokenizer = tiny(tmp_path, pieces, template)
    assert choose_format(tokenizer) == expected
    assert audit(expected, tokenizer).clean


def test_the_date_is_a_value(tmp_path: Path):
    by_string = FORMATS["llama3.1"].jinja()
    given = "date_string if date_string is defined else '26 Jul 2024'"
    by_clock = by_string.replace(given, "strftime_now('%d %b %Y')")
    assert by_clock != by_string
    for template in (by_string, by_clock):
        tokenizer = tiny(tmp_path, "llama3.1", template)
        assert choose_format(tokenizer, date="01 Jan 2025") == replace(FORMATS["llama3.1"], date="01 Jan 2025")
        assert audit(FORMATS["llama3.1"], tokenizer, date="02 Feb 2025").clean
    fixed = tiny(tmp_path, "llama3.1", by_string.replace(given, "'03 Mar 2023'"))
    assert not audit(FORMATS["llama3.1"], fixed).clean


def test_default_system_text_is_given_as_an_explicit_message(tmp_path: Path):
    tokenizer = tiny(tmp_path, "qwen2.5", CHATML)
    assert audit(FORMATS["qwen2.5"], tokenizer).clean
    assert audit(replace(FORMATS["llama3"], default_system="你是助手。"), tiny(tmp_path, "llama3", LLAMA3)).clean


def test_refused_probes_are_skipped_and_named(tmp_path: Path):
    tokenizer = tiny(tmp_path, "gemma", NO_SYSTEM + FORMATS["gemma"].jinja())
    found = audit(FORMATS["gemma"], tokenizer)
    assert found.clean
    assert len(found.skipped) == sum(messages[0].role == "system" for messages in PROBES.values())
    assert all("System role not supported" in reason for reason in found.skipped)


def test_a_template_that_refuses_everything_is_not_clean(tmp_path: Path):
    found = audit(FORMATS["chatml"], tiny(tmp_path, "chatml", "{{ raise_exception('closed') }}"))
    assert not found.clean
    assert "refuses every conversation" in found.differences[0].theirs


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for %}", "cannot be parsed, line 1"),
        ("{{ messages[0].content.nothing.more }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "Range too big"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    ],
)
def test_a_broken_template_is_a_difference_and_no_traceback(template: str, words: str, tmp_path: Path):
    tokenizer = tiny(tmp_path, "chatml", template)
    found = audit(choose_format(tokenizer), tokenizer)
    assert not found.clean
    assert words in found.differences[0].theirs
    assert "chatml" in found.notice


def test_trimming_and_a_missing_newline_are_found(tmp_path: Path):
    trimmed = replace(FORMATS["chatml"], trims=True, trims_system=True)
    found = audit(trimmed, tiny(tmp_path, "chatml", CHATML))
    assert {difference.probe for difference in found.differences} == {
        "white space at the ends",
        "full-width space at the ends",
        "system text with white space at the ends",
    }
    without = tiny(tmp_path, "chatml", CHATML.replace("'<|im_end|>' + '\n'", "'<|im_end|>'"))
    assert len(audit(FORMATS["chatml"], without).differences) == len(PROBES)


def test_templates_with_generation_blocks_and_loop_controls(tmp_path: Path):
    marked = CHATML.replace("{{'<|im_start|>'", "{% if false %}{% break %}{% endif %}{% generation %}{{'<|im_start|>'")
    marked = marked.replace("{% endfor %}", "{% endgeneration %}{% endfor %}")
    assert audit(FORMATS["chatml"], tiny(tmp_path, "chatml", marked)).clean


def test_unknown_control_pieces_are_refused(tmp_path: Path):
    tokenizer = tiny(tmp_path, "chatml", None)
    tokenizer.save(tmp_path, chat_template=None)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("<|im_", "<|other_"), encoding="utf-8")
    with pytest.raises(TemplateError, match="no chat format we know"):
        choose_format(Tokenizer.from_directory(tmp_path))


def test_side_by_side_shows_both_texts_line_by_line(tmp_path: Path):
    template = CHATML.replace("message['content']", "(message['content'] | trim)")
    found = audit(FORMATS["chatml"], tiny(tmp_path, "chatml", template))
    difference = next(one for one in found.differences if one.probe == "full-width space at the ends")
    text = side_by_side(difference, width=60)
    rows = text.split("\n")
    assert "ours (full-width space at the ends)" in rows[0]
    marked = [row for row in rows if "≠" in row]
    assert any("□段首缩进" in row and row.endswith("段首缩进<|im_end|>⏎") for row in marked)
    assert any("|" in row and "<|im_start|>user⏎" in row for row in rows if row not in marked)


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "expected", "missing"),
    [
        ("gemma", "gemma", True),
        ("gemma2", "gemma", True),
        ("gemma3", "gemma3", False),
        ("llama3", "llama3", False),
        ("llama3_1", "llama3", False),
        ("llama3_2", "llama3.1", False),
        ("qwen2_5", "qwen2.5", False),
    ],
)
def test_real_checkpoints_audit_clean(name: str, expected: str, missing: bool, assets: Path):
    tokenizer = Tokenizer.from_directory(assets / "tokenizers" / name)
    format = choose_format(tokenizer)
    found = audit(format, tokenizer)
    assert (format, found.clean, found.missing_template) == (FORMATS[expected], True, missing)


@pytest.mark.assets
def test_real_gguf_files_audit_clean(assets: Path):
    smollm = Tokenizer.from_gguf(assets / "smollm2-135m-instruct.gguf")
    assert choose_format(smollm) == FORMATS["smollm2"]
    assert audit(FORMATS["smollm2"], smollm).num_compared == len(PROBES)
    gemma = Tokenizer.from_gguf(assets / "gemma-3-270m.gguf")
    assert choose_format(gemma) == FORMATS["gemma3"]
    assert audit(FORMATS["gemma3"], gemma).missing_template
