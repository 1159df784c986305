"""Hugging Face directories: every layout people have, exact round trips, one clear line for every kind of damage."""

import json
import os
import resource
import signal
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from hanlin.errors import CheckpointError
from hanlin.models.families import config_from_hf, config_to_hf
from hanlin.models.layouts import names_to_hf
from hanlin.models.transformer import Transformer
from hanlin.models.weights import load_model, open_checkpoint, save_model, save_tensors, write_generation_config

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
}


def random_model(model_type: str = "gemma3_text", **fields: Any) -> Transformer:
    model = Transformer(config_from_hf({"model_type": model_type, **SIZES, **fields}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


def hf_tensors(model: Transformer, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    names = names_to_hf(model.config)
    return {names[name]: parameter.detach().to(dtype).clone() for name, parameter in model.named_parameters()}


def write_directory(directory: Path, model: Transformer, tensors: dict[str, Tensor]) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_to_hf(model.config, "float32")))
    safetensors.torch.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def assert_same(model: Transformer, expected: Transformer, dtype: torch.dtype = torch.float32) -> None:
    found = dict(model.named_parameters())
    for name, parameter in expected.named_parameters():
        assert torch.equal(found[name], parameter.to(dtype)), name


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["gemma", "llama", "qwen2"])
def test_reads_what_the_safetensors_package_writes(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(model_type)
    write_directory(tmp_path, model, hf_tensors(model, dtype))
    loaded = load_model(tmp_path)
    assert loaded.dtype == dtype
    assert not loaded.training
    assert_same(loaded, model, dtype)
    assert_same(load_model(tmp_path, dtype="float32"), model.to(dtype), torch.float32)


@pytest.mark.parametrize("shard_bytes", [10**9, 5000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_saved_and_loaded_is_the_same(dtype: str, shard_bytes: int, tmp_path: Path) -> None:
    model = random_model("llama")
    tensors = {name: parameter.data for name, parameter in model.named_parameters()}
    save_tensors(model.config, tensors, tmp_path, dtype=dtype, shard_bytes=shard_bytes)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert_same(loaded, model, loaded.dtype)
    assert str(loaded.dtype) == f"torch.{dtype}"
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes == 5000)


def test_the_safetensors_package_reads_what_we_write(tmp_path: Path) -> None:
    model = random_model()
    save_model(model, tmp_path, dtype="bfloat16")
    expected = hf_tensors(model, torch.bfloat16)
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(expected)
        for name, tensor in expected.items():
            assert torch.equal(file.get_tensor(name), tensor)
    assert "lm_head.weight" not in expected


def test_large_tensors_pass_through_many_chunks(tmp_path: Path) -> None:
    model = random_model("llama", vocab_size=200_000, num_hidden_layers=1, tie_word_embeddings=True)
    save_model(model, tmp_path, dtype="float32")
    assert (tmp_path / "model.safetensors").stat().st_size > 50 * 4 * 2**15
    assert_same(load_model(tmp_path), model)
    assert_same(load_model(tmp_path, dtype="bfloat16"), model, torch.bfloat16)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_model_inside_a_model_with_vision(prefix: str, tmp_path: Path) -> None:
    model = random_model()
    tensors = {name.replace("model.", prefix, 1): tensor for name, tensor in hf_tensors(model).items()}
    outer = "" if prefix.startswith("language") else "model."
    tensors[f"{outer}vision_tower.vision_model.embeddings.patch_embedding.weight"] = torch.zeros(3)
    tensors[f"{outer}multi_modal_projector.mm_input_projection_weight"] = torch.zeros(3)
    write_directory(tmp_path, model, tensors)
    text = {key: value for key, value in config_to_hf(model.config, "float32").items() if key != "architectures"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    assert_same(load_model(tmp_path), model)


def test_head_saved_beside_a_tied_embedding(tmp_path: Path) -> None:
    model, notes = random_model(), []
    tensors = hf_tensors(model)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    write_directory(tmp_path, model, tensors)
    assert_same(load_model(tmp_path, on_note=notes.append), model)
    assert notes == []
    tensors["lm_head.weight"][3, 4] += 1
    write_directory(tmp_path, model, tensors)
    assert_same(load_model(tmp_path, on_note=notes.append), model)
    assert "lm_head.weight differs" in notes[0]


def test_shapes_names_and_missing_tensors_are_named(tmp_path: Path) -> None:
    model = random_model("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    good = hf_tensors(model)
    write_directory(tmp_path, model, good | {name: torch.zeros(23, 16)})
    assert f"tensor {name} has shape [23, 16]; expected [24, 16]" in refusal(tmp_path)
    write_directory(tmp_path, model, {key: value for key, value in good.items() if key != name})
    assert f"tensor {name} is missing; expected shape [24, 16]" in refusal(tmp_path)
    write_directory(tmp_path, model, good | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(24)})
    assert "tensor model.layers.0.self_attn.q_proj.bias of shape [24] is not part" in refusal(tmp_path)
    write_directory(tmp_path, model, {key: value for key, value in good.items() if key != "lm_head.weight"})
    assert "lm_head.weight is missing" in refusal(tmp_path)
    write_directory(tmp_path, model, good | {name: torch.zeros(24, 16, dtype=torch.int8)})
    assert "stored as I8" in refusal(tmp_path)


def test_float16_is_read_but_not_computed_where_it_overflows(tmp_path: Path) -> None:
    model, notes = random_model("gemma2"), []
    write_directory(tmp_path, model, hf_tensors(model, torch.float16))
    assert "compute in bfloat16 or float32" in refusal(tmp_path, dtype="float16")
    assert load_model(tmp_path, on_note=notes.append).dtype == torch.bfloat16
    assert "float16 overflows" in notes[0]
    assert_same(load_model(tmp_path, dtype="float32"), model.half(), torch.float32)
    assert "'int8'" in refusal(tmp_path, dtype="int8")


def test_what_is_no_model_directory(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none")
    assert "config.json is missing" in refusal(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert "expected a model directory or a .gguf file" in refusal(tmp_path / "notes.txt")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "names no base model" in refusal(tmp_path)
    for content, word in (("{", "not JSON"), ("[]", "expected a JSON object"), ("", "not JSON"), ("\xff", "not JSON")):
        (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
        assert word in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(random_model().config, "float32")))
    assert "neither model.safetensors nor" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert "only safetensors are read" in refusal(tmp_path)


def test_truncated_and_damaged_files(tmp_path: Path) -> None:
    model = random_model()
    write_directory(tmp_path, model, hf_tensors(model))
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    for size in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert str(path) in refusal(tmp_path)
    for header in (
        b"[]",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b"{" * 10,
        b"\xff\xff",
    ):
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
        assert str(path) in refusal(tmp_path)


def test_missing_shards_and_bad_indexes(tmp_path: Path) -> None:
    model = random_model("llama")
    tensors = {name: parameter.data for name, parameter in model.named_parameters()}
    save_tensors(model.config, tensors, tmp_path, dtype="float32", shard_bytes=5000)
    index = tmp_path / "model.safetensors.index.json"
    content = index.read_text()
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    shards[1].rename(tmp_path / "kept")
    assert f"{shards[1]} is missing" in refusal(tmp_path)
    (tmp_path / "kept").rename(shards[1])
    moved = content.replace(shards[0].name, shards[1].name, 1)
    index.write_text(moved)
    assert "tensor model.embed_tokens.weight is missing" in refusal(tmp_path)
    for bad in ("{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'):
        index.write_text(bad)
        assert "weight_map" in refusal(tmp_path)


def test_saving_again_leaves_no_stale_files(tmp_path: Path) -> None:
    model = random_model("llama")
    tensors = {name: parameter.data for name, parameter in model.named_parameters()}
    save_tensors(model.config, tensors, tmp_path, dtype="float32", shard_bytes=5000)
    (tmp_path / "tokenizer.json").touch()
    save_model(model, tmp_path, dtype="float32")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    save_tensors(model.config, tensors, tmp_path, dtype="float32", shard_bytes=5000)
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(load_model(tmp_path), model)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: the write fails in the middle with the same kind of error."""
    old, new = random_model(), random_model(vocab_size=5000)
    save_model(old, tmp_path, dtype="float32")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write the model to .*free some space"):
            save_model(new, tmp_path, dtype="float32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert_same(load_model(tmp_path), old)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write the model"):
        save_model(random_model(), tmp_path / "file" / "model")


def test_generation_config_holds_every_stop(tmp_path: Path) -> None:
    write_generation_config(tmp_path, eos_ids=(1, 106), bos_id=2, pad_id=0, temperature=0.6, top_p=0.9)
    raw = json.loads((tmp_path / "generation_config.json").read_text())
    assert raw["eos_token_id"] == [1, 106]
    assert (raw["bos_token_id"], raw["pad_token_id"]) == (2, 0)
    assert (raw["do_sample"], raw["temperature"], raw["top_p"]) == (True, 0.6, 0.9)


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    model = random_model()
    save_model(model, tmp_path, dtype="bfloat16")
    found = open_checkpoint(tmp_path)
    assert (found.config, found.dtype, found.notes) == (model.config, torch.bfloat16, ())
