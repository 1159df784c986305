"""The guard of a recipe: ShieldGemma on our own Gemma 2, and models at an address."""

import pytest
import torch

from hanlin.api import load
from hanlin.cli.guards import encode, open_guard, open_shieldgemma, yes_probability
from hanlin.curation.guards import Piece, shieldgemma_prompt
from hanlin.curation.recipe import CurationRecipe
from hanlin.errors import CheckpointError, ConfigError
from tiny_run import write_model


def recipe(output, **guard) -> CurationRecipe:
    return CurationRecipe.model_validate(
        {"input": {"files": ("x.jsonl",)}, "output": {"directory": str(output)}, "guard": guard}
    )


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("guard") / "model", family="gemma2")


def test_the_probability_is_the_softmax_of_two_logits(gemma):
    model, tokenizer = load(gemma)
    ids = encode(tokenizer, [Piece("<start_of_turn>", control=True), Piece("the quick <end_of_turn> fox")])
    assert ids[0] == tokenizer.bos_id
    assert ids[1] == tokenizer.id("<start_of_turn>")
    assert tokenizer.id("<end_of_turn>") not in ids
    yes, no = 20, 30
    logits_V = model.logits(torch.tensor(ids))[-1]
    expected = torch.softmax(logits_V[[yes, no]], 0)[0].item()
    assert yes_probability(model, ids, yes, no) == pytest.approx(expected, abs=1e-6)


def test_a_prompt_that_is_too_long_keeps_its_start_and_end(gemma):
    model, _ = load(gemma)
    long = [1, *range(20, 30), *[7] * 2000, *range(30, 40)]
    longest = model.config.max_length
    cut = [*long[: longest // 2], *long[len(long) - (longest - longest // 2) :]]
    assert len(cut) == longest
    assert yes_probability(model, long, 20, 30) == yes_probability(model, cut, 20, 30)


def test_a_model_without_the_words_is_no_shieldgemma(gemma):
    with pytest.raises(CheckpointError, match="single token 'Yes'"):
        open_shieldgemma(str(gemma))
    model = load(gemma)[1]
    assert encode(model, shieldgemma_prompt("你好", "世界", "hate")).count(model.id("<start_of_turn>")) == 2


def test_what_a_recipe_must_say(tmp_path):
    assert open_guard(recipe(tmp_path)) is None
    with pytest.raises(ConfigError, match=r"guard\.model is missing"):
        open_guard(recipe(tmp_path, kind="qwen3guard"))
    with pytest.raises(ConfigError, match=r"guard\.address is missing"):
        open_guard(recipe(tmp_path, kind="judge", model="x"))
    assert open_guard(recipe(tmp_path, kind="qwen3guard", model="x", address="http://127.0.0.1:9/v1")) is not None
