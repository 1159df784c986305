"""`hanlin inspect` on tiny directories, whole and spoilt, and on the real GGUF files."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from hanlin.cli.app import app
from hanlin.cli.inspect import cache_bytes
from hanlin.errors import CheckpointError, FetchError
from hanlin.models.transformer import Transformer
from hanlin.models.weights import count_parameters, load_model, save_model, write_generation_config
from hanlin.text.chat import FORMATS
from hanlin.text.tokenizer import Tokenizer
from tiny import CONFIGS
from tiny_text import write_directory


@pytest.fixture(autouse=True)
def _quiet_logging() -> Iterator[None]:
    """The commands set up logging for a process of their own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def save_tiny(folder: Path, name: str, *, stops: tuple[int, ...] | None = None, rows: int | None = None) -> Path:
    """A tiny model directory of a family, with its own chat template."""
    write_directory(folder, {"gemma2": "gemma"}.get(name, name), template=FORMATS[FORMAT[name]].jinja())
    tokenizer = Tokenizer.from_directory(folder)
    model = Transformer(replace(CONFIGS[FAMILY[name]], vocab_size=rows or tokenizer.size))
    model.initialize()
    save_model(model, folder, dtype="float32")
    if stops is None:
        stops = tuple(sorted(id for piece in FORMATS[FORMAT[name]].stops if (id := tokenizer.id(piece)) is not None))
    write_generation_config(folder, eos_ids=stops)
    return folder


FAMILY = {"gemma2": "gemma2", "llama3": "llama", "chatml": "smollm2"}
FORMAT = {"gemma2": "gemma", "llama3": "llama3", "chatml": "chatml"}


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def report(path: Path) -> dict:
    result = inspect(path, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def warnings(path: Path) -> list[str]:
    return [problem["text"] for problem in report(path)["problems"]]


@pytest.mark.parametrize("name", FAMILY)
def test_a_good_directory(tmp_path, name):
    found = report(save_tiny(tmp_path / name, name))
    assert found["problems"] == []
    assert found["chat"]["template"] == "equal"
    assert found["chat"]["format"] == FORMAT[name]
    assert found["chat"]["tools"] == "equal"
    config = replace(CONFIGS[FAMILY[name]], vocab_size=found["tokens"]["rows"])
    assert found["parameters"] == count_parameters(config)
    assert found["stored_as"] == {"float32": found["parameters"]}
    assert found["memory_bytes"]["training_float32_adam"] == 16 * found["parameters"]
    assert (found["sizes"]["layers"], found["sizes"]["kv_heads"]) == (config.num_layers, config.num_kv_heads)
    printed = inspect(tmp_path / name).stdout
    assert "没有发现问题 nothing found" in printed
    assert f"{found['parameters']:,}" in printed


def test_windows_bound_the_cache():
    config = CONFIGS["gemma2"]  # windows 5, none, 5; 2 key/value heads of 16
    assert cache_bytes(config, 1000, num_bytes=2) == 2 * (5 + 1000 + 5) * 2 * 16 * 2


def test_a_missing_stop_is_a_warning(tmp_path):
    folder = save_tiny(tmp_path / "llama", "llama3", stops=(1,))
    (text,) = warnings(folder)
    assert text.startswith("generation_config.json stops at 1, not at 4 <|eot_id|>")
    assert '"eos_token_id": [1, 4]' in text
    (folder / "generation_config.json").unlink()
    assert warnings(folder)[0].startswith("config.json stops at nothing")


def test_a_bos_that_is_not_named_is_a_warning(tmp_path):
    folder = save_tiny(tmp_path / "gemma", "gemma2")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bos_token": None}))
    (text,) = warnings(folder)
    assert 'write "bos_token": "<bos>"' in text


def test_a_template_that_differs_is_shown_side_by_side(tmp_path):
    folder = save_tiny(tmp_path / "chatml", "chatml")
    file = folder / "tokenizer_config.json"
    template = FORMATS["chatml"].jinja().replace("<|im_end|>", "<|im_end|> ")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    found = report(folder)
    assert found["chat"]["template"] == "different"
    assert found["chat"]["differences"][0].keys() == {"probe", "ours", "theirs"}
    printed = inspect(folder).stdout
    assert "ours (one turn)" in printed
    assert "≠" in printed


def test_no_template_is_said(tmp_path):
    folder = save_tiny(tmp_path / "gemma", "gemma2")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": None}))
    assert report(folder)["chat"]["template"] == "missing"
    assert "none in the checkpoint" in inspect(folder).stdout


def test_float16_of_a_family_that_overflows_is_a_warning(tmp_path):
    folder = save_tiny(tmp_path / "gemma", "gemma2")
    model = Transformer(replace(CONFIGS["gemma2"], vocab_size=report(folder)["tokens"]["rows"]))
    model.initialize()
    save_model(model, folder, dtype=torch.float16)
    assert "float16, which overflows" in warnings(folder)[0]


def test_a_tokenizer_of_another_model_is_an_error_after_the_report(tmp_path):
    folder = save_tiny(tmp_path / "chatml", "chatml", rows=200)
    result = inspect(folder, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["tokens"]["rows"] == 200
    assert "do not belong together" in result.stderr
    assert "family" in inspect(folder).stdout


def test_a_missing_tokenizer_is_an_error_after_the_report(tmp_path):
    folder = save_tiny(tmp_path / "chatml", "chatml")
    (folder / "tokenizer.json").unlink()
    result = inspect(folder, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["chat"] is None
    assert "tokenizer.json is missing" in result.stderr


def test_what_is_no_model_is_a_plain_error(tmp_path):
    assert isinstance(inspect(tmp_path).exception, CheckpointError)
    assert isinstance(inspect(tmp_path / "nothing").exception, FetchError)


@pytest.mark.assets
@pytest.mark.parametrize(
    ("file", "family", "parameters", "stops"),
    [
        ("gemma-3-270m.gguf", "gemma3", 268_098_176, ["<eos>", "<end_of_turn>"]),
        ("smollm2-135m-instruct.gguf", "llama", 134_515_008, ["<|endoftext|>", "<|im_end|>"]),
    ],
)
def test_real_files(assets, file, family, parameters, stops):
    found = report(assets / file)
    assert (found["family"], found["parameters"]) == (family, parameters)
    assert [stop["piece"] for stop in found["tokens"]["stops"]] == stops
    assert found["problems"] == []
    assert found["chat"]["template"] == ("missing" if family == "gemma3" else "equal")


def test_help_lists_the_known_models():
    assert all(name in inspect("--help").stdout for name in ("gemma-3-270m", "smollm2"))


def test_untrained_rows_of_a_base_model_are_a_warning(tmp_path):
    folder = save_tiny(tmp_path / "llama", "llama3")
    model, tokenizer = load_model(folder), Tokenizer.from_directory(folder)
    for piece in ("<|eot_id|>", "<|start_header_id|>"):
        model.embed.weight.data[tokenizer.control[piece]] = 0
    save_model(model, folder, dtype="float32")
    texts = [text for text in warnings(folder) if "untrained" in text]
    assert texts[0].startswith("the embedding has untrained rows for <|start_header_id|>, <|eot_id|>, which")
    assert 'model.untrained_rows = "mean"' in texts[0]
    assert len(texts) == 1
