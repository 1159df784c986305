"""`hanlin chat`: options to a conversation, mistakes to one error each, pipes in and out."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from hanlin.api import as_messages, load, read_answer, stream
from hanlin.cli.app import app
from hanlin.errors import CheckpointError, ConfigError, FetchError, HanlinError
from hanlin.models.adapters import save_adapter
from hanlin.models.lora import LoraConfig, adapted, add_lora
from hanlin.models.transformer import Transformer
from hanlin.models.weights import save_model
from hanlin.serving.presets import PRESETS
from hanlin.text.chat import FORMATS
from hanlin.text.tokenizer import Tokenizer
from hanlin.types import Message, ToolCall
from tiny import CONFIGS
from tiny_text import write_directory


@pytest.fixture(autouse=True)
def _quiet_logging() -> Iterator[None]:
    """The commands set up logging for a process of their own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = write_directory(tmp_path_factory.mktemp("chat"), "gemma", template=FORMATS["gemma"].jinja())
    made = Transformer(replace(CONFIGS["gemma"], vocab_size=Tokenizer.open(folder).size))
    made.initialize(std=0.3)
    save_model(made, folder, dtype="float32")
    return folder


def chat(*arguments: object, typed: str | bytes = "") -> Result:
    return CliRunner().invoke(app, ["chat", *map(str, arguments)], input=typed)


def test_one_prompt_equals_the_public_stream(model):
    result = chat(model, "--prompt", "你好", "--seed", 3, "--max-tokens", 9, "--temperature", 1, "--system", "请用中文")
    opened, tokenizer = load(model)
    messages = as_messages([{"role": "system", "content": "请用中文"}, {"role": "user", "content": "你好"}])
    expected = "".join(stream(opened, tokenizer, messages, seed=3, max_tokens=9, temperature=1))
    assert result.stdout.removesuffix("\n") == expected.removesuffix("\n")
    assert result.exit_code == 0
    assert chat(model, "--prompt", "-", "--seed", 3, "--max-tokens", 9, typed="你好").stdout


def test_a_conversation_from_a_pipe(model, tmp_path):
    saved = tmp_path / "talk.jsonl"
    result = chat(model, "--max-tokens", 4, "--stats", typed=f"你好\n/params seed=1\nhi\n/save {saved}\n")
    assert result.exit_code == 0
    assert saved.read_text(encoding="utf-8").count('"role"') == 4
    assert result.stderr.count("tokens/s") == 2
    assert "tokens/s" not in result.stdout


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (["--preset", "few"], ConfigError, "few-shot"),
        (["--format", "alpaca"], ConfigError, "llama3.1"),
        (["--temperature", "-1"], ConfigError, "temperature is -1"),
        (["--dtype", "int8"], CheckpointError, "bfloat16"),
        (["--device", "abacus"], ConfigError, 'use "auto" or "cpu"'),
        (["--format", "llama3"], HanlinError, "<|begin_of_text|>"),
        (["--prompt", " "], ConfigError, "--prompt is empty"),
        (["--preset", "raw", "--system", "x"], ConfigError, "no system text"),
    ],
)
def test_a_wrong_option_is_one_error(model, options, error, said):
    result = chat(model, "--prompt", "hi", *options)
    assert isinstance(result.exception, error)
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)


def test_no_model_and_no_utf8(model, tmp_path):
    assert isinstance(chat(tmp_path / "nothing").exception, FetchError)
    result = chat(model, typed="你好".encode("gb18030"))
    assert "not UTF-8" in str(result.exception)


def test_a_base_model_gets_a_notice(model, tmp_path):
    folder = write_directory(tmp_path / "base", "gemma")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((model / name).read_bytes())
    assert "no chat template" in chat(folder, "--prompt", "hi", "--max-tokens", 2).stderr
    assert "no chat template" not in chat(folder, "--prompt", "hi", "--max-tokens", 2, "--preset", "raw").stderr
    assert "no chat template" not in chat(model, "--prompt", "hi", "--max-tokens", 2).stderr


def test_help_names_every_preset():
    printed = chat("--help").stdout
    assert all(name in printed for name in PRESETS)


@pytest.mark.assets
def test_the_real_smollm2_answers(assets):
    result = chat(
        assets / "smollm2-135m-instruct.gguf", "--prompt", "What is the capital of Germany?", "--temperature", 0
    )
    assert "Berlin" in result.stdout  # of France it says Paris by 0.08, less than bf16 tells apart
    assert "bfloat16" in result.stderr


def test_tools_are_declared_from_a_file(model, tmp_path):
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "weather", "parameters": {}}]', encoding="utf-8")
    options = ["--prompt", "你好", "--seed", 3, "--max-tokens", 9, "--temperature", 1]
    said = chat(model, *options, "--tools", tools)
    assert said.exit_code == 0
    opened, tokenizer = load(model)
    weather = [{"name": "weather", "parameters": {}}]
    declared = stream(opened, tokenizer, "你好", tools=weather, seed=3, max_tokens=9, temperature=1)
    assert said.stdout.removesuffix("\n") == "".join(declared).removesuffix("\n")
    assert said.stdout != chat(model, *options).stdout


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ("{", [], "is not JSON"),
        ("[]", [], "declares no function"),
        ('[{"description": "x"}]', [], "expected a function with a name"),
        ('[{"name": "f"}]', ["--preset", "raw"], "asked in turns"),
    ],
)
def test_tools_that_cannot_be_declared_are_one_error(model, tmp_path, content, options, told):
    tools = tmp_path / "tools.json"
    tools.write_text(content, encoding="utf-8")
    result = chat(model, "--prompt", "hi", "--tools", tools, *options)
    assert isinstance(result.exception, HanlinError)
    assert told in str(result.exception)
    assert "cannot be read" in str(chat(model, "--prompt", "hi", "--tools", tmp_path / "none.json").exception)


def test_calls_are_read_from_an_answer_and_given_back(model):
    opened, tokenizer = load(model)
    text = '好。\n<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>'
    answer = read_answer(opened, tokenizer, text)
    assert answer == Message("assistant", "好。", (ToolCall("weather", {"city": "北京"}),))
    function = {"name": "weather", "arguments": '{"city": "北京"}'}
    given = [{"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}]
    assert as_messages(given) == [Message("assistant", "", answer.tool_calls)]


def test_an_adapter_whose_base_has_moved(model, tmp_path):
    opened, _ = load(model, dtype="float32")
    config = LoraConfig(rank=2)
    add_lora(opened, config, seed=0)
    with torch.no_grad():
        for linear in adapted(opened).values():
            linear.up.normal_(generator=torch.Generator().manual_seed(1))
    save_adapter(opened, tmp_path / "adapter", config, base="/gone/away")
    options = ["--prompt", "hi", "--max-tokens", 6, "--temperature", 0]
    lost = chat(tmp_path / "adapter", *options)
    assert isinstance(lost.exception, FetchError)
    found = chat(tmp_path / "adapter", *options, "--base", model)
    assert found.exit_code == 0
    merged, tokenizer = load(tmp_path / "adapter", base=model)
    ids = torch.tensor(tokenizer.encode("你好"))
    torch.testing.assert_close(merged.logits(ids), opened.logits(ids), rtol=1e-4, atol=1e-4)
    assert "is no adapter" in str(chat(model, *options, "--base", model).exception)
