"""A model that is divided over ranks: what each reads of it, how it is put together to sample, and RLHF so."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hanlin
from hanlin.models.transformer import Transformer
from hanlin.models.weights import load_model, save_model
from hanlin.text.tokenizer import Tokenizer
from tiny import CONFIGS
from tiny_objectives import recipe_of
from tiny_ranks import assemble_ranks, assert_alike, load_ranks, numbers, resumable, train_ranks
from tiny_run import write_model, write_recipe
from tiny_text import write_directory

# Loading -----------------------------------------------------------------------------------------------------------

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of 54 MB in eight layers."""
    folder = tmp_path_factory.mktemp("large")
    write_directory(folder / "model", "smollm2")
    sizes = {"num_layers": 8, "windows": (None,) * 8, "width": 512, "ffn_width": 1024}
    model = Transformer(replace(CONFIGS["smollm2"], vocab_size=Tokenizer.open(folder / "model").size, **sizes))
    model.initialize()
    save_model(model, folder / "model", dtype="float32")
    return folder


LOADED: dict[str, dict[str, Any]] = {
    "all weights": {},
    "a reward model": {"objective": {"kind": "reward"}},
    "adapters": {"lora": {"rank": 2}},
}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own numbers are asked for")
@pytest.mark.parametrize("name", LOADED)
def test_a_sharded_rank_reads_its_rows_alone_and_never_has_more(large: Path, tmp_path: Path, name: str):
    recipe = write_recipe(tmp_path, **LOADED[name])
    model = large / "model"
    whole = (model / "model.safetensors").stat().st_size
    for loaded in load_ranks(recipe, 4, "parallel.shard=full", model=model):
        assert whole / 4 < loaded["own"] + MEGABYTE < whole / 4 + 4 * MEGABYTE
        assert loaded["read"] < loaded["own"] + MEGABYTE
        assert loaded["peak"] < loaded["own"] + 8 * MEGABYTE
    for loaded in load_ranks(recipe, 2, "parallel.shard=none", model=model):  # what it would be else: the test can fail
        assert min(loaded["read"], loaded["peak"], loaded["own"]) > 0.9 * whole


def with_an_adapter(folder: Path) -> Path:
    (folder / "first").mkdir()
    run = hanlin.train(write_recipe(folder / "first", lora={"rank": 2}))
    return write_recipe(folder, model={"path": str(run / "adapter")})


def with_untrained_rows(folder: Path) -> Path:
    """Of the embedding and of the head, on one rank or another."""
    model = load_model(write_model(folder / "model", family="llama"))
    stop = Tokenizer.open(folder / "model").control["<|eot_id|>"]
    assert model.unembed is not None
    for weight in (model.embed.weight, model.unembed.weight):
        weight.data[stop] = 0
    save_model(model, folder / "model", dtype="float32")
    return write_recipe(folder)


def with_four_bits(folder: Path) -> Path:
    pytest.importorskip("bitsandbytes")
    return write_recipe(folder, model={"quantization": "nf4"}, lora={"rank": 2})


SOURCES: list[Any] = [
    with_untrained_rows,
    pytest.param(with_an_adapter, marks=pytest.mark.slow),
    pytest.param(with_four_bits, marks=pytest.mark.slow),
    pytest.param(lambda folder: recipe_of(folder, "distillation"), id="with_a_teacher", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("make", SOURCES)
def test_what_is_more_than_read_is_alike_where_it_is_sharded(tmp_path: Path, make: Callable[[Path], Path]):
    recipe = make(tmp_path)
    train_ranks(recipe, 2, "parallel.shard=full")
    one = hanlin.train(recipe, overrides=[f"output.directory={tmp_path / 'one'}"])
    assert_alike(one, tmp_path / "run")


# Sampling ----------------------------------------------------------------------------------------------------------

TWICE = {"objective": {"updates": 2, "clip": 0.2}}
RLHF: dict[str, tuple[str, int, str, dict[str, Any]]] = {  # family, ranks, how they share the model, sections
    "whole": ("smollm2", 2, "parallel.shard=none", {}),
    "sharded": ("llama", 2, "parallel.shard=full", {}),
    "sharded, more ranks than prompts": ("smollm2", 4, "parallel.shard=full", TWICE),
    "sharded adapters": ("smollm2", 2, "parallel.shard=full", {"lora": {"rank": 2}}),
    "a team with one key/value head": ("gemma", 2, "parallel.tensor=2", {}),
    "two teams with adapters": ("smollm2", 4, "parallel.tensor=2", {"lora": {"rank": 2}}),
}


def rlhf_recipe(folder: Path, **changes: dict[str, Any]) -> Path:
    """Three prompts a step, one of them longer; a reward model and a function judge their answers."""
    if not (folder / "judge").exists():
        hanlin.train(recipe_of(folder, "reward", output={"directory": str(folder / "judge")}))
    objective = {"kind": "rlhf", "rewards": [str(folder / "judge"), "chinese"], "max_tokens": 8, "answers": 2}
    training = {"steps": 4, "batch_pairs": 3, "evaluate_every": 1, "save_every": 2, "keep_last": 9}
    given: dict[str, dict[str, Any]] = {"objective": {**objective, "cut_limit": 1.0}, "training": training}
    for section, values in changes.items():
        given[section] = {**given.get(section, {}), **values}
    return write_recipe(folder, name="rlhf.toml", **given)


@pytest.mark.parametrize("name", RLHF)
def test_rlhf_on_several_ranks(tmp_path: Path, name: str):
    """Answers belong to prompts, not to ranks: they are sampled from the whole model, however it is divided."""
    family, size, shared, sections = RLHF[name]
    write_model(tmp_path / "model", family=family)
    recipe = rlhf_recipe(tmp_path, **sections)
    train_ranks(recipe, size, shared)
    one = hanlin.train(recipe, overrides=[f"output.directory={tmp_path / 'one'}"])
    assert_alike(one, tmp_path / "run")
    assert numbers(tmp_path / "run")[1]["kl"] == 0  # the untouched policy


@pytest.mark.parametrize(("size", "shared"), [(1, []), (2, ["parallel.shard=none"]), (4, ["parallel.shard=full"])])
def test_rlhf_is_resumed_with_another_number_of_ranks(tmp_path: Path, size: int, shared: list[str]):
    recipe = rlhf_recipe(tmp_path)
    train_ranks(recipe, 2, "parallel.shard=full")
    run, place = resumable(tmp_path, "run", tmp_path / "again", step=2)
    if size == 1:
        hanlin.train(run, overrides=[place, "parallel.shard=auto"], resume=True)
    else:
        train_ranks(run, size, place, *shared, resume=True)
    assert_alike(tmp_path / "run", tmp_path / "again" / "run")


ASSEMBLED: dict[str, tuple[int, str, dict[str, Any]]] = {  # ranks, how they share the model, sections
    "sharded": (4, "parallel.shard=full", {}),
    "sharded adapters": (2, "parallel.shard=full", {"lora": {"rank": 2}, "model": {"dtype": "bfloat16"}}),
    "a team with adapters": (2, "parallel.tensor=2", {"lora": {"rank": 2}}),
}


@pytest.mark.parametrize("name", ASSEMBLED)
def test_what_samples_is_the_whole_model_bit_for_bit(tmp_path: Path, name: str):
    """In bf16 products, adapters merged, on every rank."""
    size, shared, sections = ASSEMBLED[name]
    sections = {**sections, "model": {**sections.get("model", {}), "compute": "bfloat16"}}
    assert assemble_ranks(write_recipe(tmp_path, **sections), size, shared) == [0] * size
