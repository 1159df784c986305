"""GGUF files: every quantization equals `gguf.dequantize` in our layout; metadata, with what older files leave out."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from hanlin.errors import CheckpointError
from hanlin.models.config import ModelConfig, RopeScaling
from hanlin.models.families import config_from_hf
from hanlin.models.gguf import KINDS, GgufTensor
from hanlin.models.layers import rotary_frequencies
from hanlin.models.layouts import names_to_gguf
from hanlin.models.parts import read_slice
from hanlin.models.weights import count_parameters, load_model, open_checkpoint

Kind = gguf.GGMLQuantizationType
WIDTH, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 256, 512, 4, 2, 64, 300, 2


def config(arch: str, **more: Any) -> ModelConfig:
    return config_from_hf(
        {
            "model_type": {"gemma3": "gemma3_text"}.get(arch, arch),
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "intermediate_size": FFN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-6,
            "query_pre_attn_scalar": HEAD_DIM,
            "sliding_window": 512 if arch == "gemma3" else 4096,
            "tie_word_embeddings": True,
            **more,
        }
    )


def random_blocks(shape: tuple[int, ...], kind: Kind, generator: np.random.Generator) -> np.ndarray:
    """Stored data of a tensor: quantized where the package can, otherwise random bytes with small finite scales."""
    values = generator.normal(0, 0.1, shape).astype(np.float32)
    if kind not in (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K):
        return gguf.quantize(values, kind)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = generator.integers(0, 256, (shape[0], shape[1] // block, block_bytes), dtype=np.uint8)
    scales = generator.uniform(0.001, 0.01, (*raw.shape[:2], 2)).astype(np.float16).view(np.uint8)
    if kind == Kind.Q6_K:
        raw[..., -2:] = scales[..., :2]  # d stands at the end
    else:
        raw[..., :4] = scales  # d and dmin stand at the beginning
    return raw.reshape(shape[0], -1)


def write_gguf(
    path: Path,
    arch: str,
    kind: Kind = Kind.F32,
    *,
    drop: str = "",
    extra: dict[str, Any] | None = None,
    **metadata: Any,
) -> dict[str, np.ndarray]:
    """A small file of random tensors; returns what llama.cpp would compute with, float32 by our names."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    metadata.setdefault("feed_forward_length", FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_array("tokenizer.ggml.tokens", [f"piece {number}" for number in range(VOCAB)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * VOCAB)
    for key, value in metadata.items():
        add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        add[type(value)](f"{arch}.{key.replace('__', '.')}", value)
    shapes = open_shapes(config(arch))
    values: dict[str, np.ndarray] = {}
    for ours, name in names_to_gguf(config(arch)).items():
        if name == drop:
            continue
        matrix = len(shapes[ours]) == 2
        data = random_blocks(shapes[ours], kind, generator) if matrix else generator.normal(1, 0.1, shapes[ours])
        data = data if matrix else data.astype(np.float32)
        writer.add_tensor(name, data, raw_dtype=kind if matrix and data.dtype == np.uint8 else None)
        values[ours] = gguf.dequantize(data, kind) if matrix else data
    for name, data in (extra or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def open_shapes(model_config: ModelConfig) -> dict[str, tuple[int, ...]]:
    from hanlin.models.transformer import Transformer

    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Transformer(model_config).named_parameters()}


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of llama.cpp's `LlamaModel.permute` (convert_hf_to_gguf.py)."""
    return rows.reshape(heads, HEAD_DIM // 2, 2, WIDTH).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["gemma3", "llama"])
def test_tensors_equal_the_packages_own_dequantization(arch: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    values = write_gguf(path, arch, Kind[kind])
    model = load_model(path, dtype="float32")
    parameters = dict(model.named_parameters())
    assert parameters.keys() == values.keys()
    for name, expected in values.items():
        if arch == "llama" and name.endswith(("attention.query.weight", "attention.key.weight")):
            expected = unpermuted(expected, HEADS if "query" in name else KV_HEADS)
        if arch == "gemma3" and name.endswith("norm.weight"):
            expected = expected - np.float32(1)
        assert np.array_equal(parameters[name].detach().numpy(), expected), name


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("arch", ["gemma3", "llama"])
def test_rows_are_read_alone(arch: str, kind: str, tmp_path: Path) -> None:
    """Also those of a Llama's queries and keys that begin inside a head, for which all of the tensor is read."""
    write_gguf(tmp_path / "model.gguf", arch, Kind[kind])
    for name, stored in open_checkpoint(tmp_path / "model.gguf").tensors.items():
        whole = torch.empty(stored.shape)
        stored.copy_to(whole)
        for first, count in ((0, len(whole) // 2), (len(whole) // 2, len(whole) // 2), (3, 5)):
            rows = torch.empty(count, *whole.shape[1:])
            read_slice(stored, rows, 0, first)
            assert torch.equal(rows, whole[first : first + count]), name
            permuted = arch == "llama" and name.endswith(("query.weight", "key.weight"))
            assert (stored.part(first, count) is None) == (permuted and count == 5)


def test_dtype_auto_is_the_stored_one(tmp_path: Path) -> None:
    for kind, expected in (
        ("F32", torch.float32),
        ("F16", torch.float16),
        ("BF16", torch.bfloat16),
        ("Q8_0", torch.bfloat16),
    ):
        write_gguf(tmp_path / "model.gguf", "llama", Kind[kind])
        assert load_model(tmp_path / "model.gguf").dtype == expected


def test_metadata_of_the_kind_that_older_files_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for arch in ("gemma", "gemma2", "llama", "gemma3"):
        write_gguf(path, arch)
        assert open_checkpoint(path).config == config(arch)
    assert open_checkpoint(path).config.local_rope_theta == 10_000
    assert open_checkpoint(path).config.windows == (512, 512)


def test_metadata_that_newer_files_carry(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(
        path,
        "gemma3",
        rope__freq_base=500000.0,
        rope__freq_base_swa=20000.0,
        rope__scaling__type="linear",
        rope__scaling__factor=8.0,
        attention__sliding_window=32,
        attention__sliding_window_pattern=[True, False],
    )
    found = open_checkpoint(path).config
    assert (found.rope_theta, found.local_rope_theta) == (500_000, 20_000)
    assert found.rope_scaling == RopeScaling(kind="linear", factor=8.0)
    assert found.windows == (32, None)


def test_llama31_scaling_is_read_from_the_factors(tmp_path: Path) -> None:
    scaling = RopeScaling(kind="llama3", factor=32.0)
    factors = rotary_frequencies(HEAD_DIM, 500000.0, None) / rotary_frequencies(HEAD_DIM, 500000.0, scaling)
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", extra={"rope_freqs.weight": factors.numpy()}, rope__freq_base=500000.0)
    assert open_checkpoint(path).config.rope_scaling == scaling
    write_gguf(path, "llama", extra={"rope_freqs.weight": factors.numpy() ** 2}, rope__freq_base=500000.0)
    with pytest.raises(CheckpointError, match="rope_freqs"):
        open_checkpoint(path)


def test_untied_head_and_biases(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    generator = np.random.default_rng(1)
    head = generator.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    write_gguf(path, "qwen2", extra={"output.weight": head})
    model = load_model(path)
    assert model.unembed is not None
    assert np.array_equal(model.unembed.weight.detach().numpy(), head)
    assert model.config.qkv_bias


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"arch": "llama", "kind": Kind.Q5_1}, ["token_embd.weight", "Q5_1", "Q4_K"]),
        ({"arch": "llama", "drop": "blk.1.ffn_up.weight"}, ["blk.1.ffn_up.weight", "missing", "[512, 256]"]),
        ({"arch": "llama", "drop": "token_embd.weight"}, ["token_embd.weight", "missing"]),
        ({"arch": "llama", "extra": {"blk.0.attn_q.bias": np.zeros(256, np.float32)}}, ["blk.0.attn_q.bias", "[256]"]),
        ({"arch": "llama", "expert_count": 8}, ["num_experts", "8"]),
        ({"arch": "llama", "rope__scaling__type": "yarn"}, ["rope_type", "'yarn'"]),
        ({"arch": "llama", "rope__dimension_count": 32}, ["rotary", "64", "32"]),
    ],
)
def test_what_cannot_be_read_is_named(arguments: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, **arguments)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_layers_that_differ_are_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", "llama", feed_forward_length=[512, 256])
    with pytest.raises(CheckpointError, match=r"intermediate_size"):
        load_model(tmp_path / "model.gguf")


def test_unknown_architecture(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"'mamba'; supported: gemma"):
        load_model(path)


def test_every_cut_of_a_file_gives_one_clear_line(tmp_path: Path) -> None:
    whole, cut = tmp_path / "model.gguf", tmp_path / "cut.gguf"
    write_gguf(whole, "llama", Kind.Q8_0)
    data = whole.read_bytes()
    header = data.index(b"token_embd.weight")
    for size in [0, 3, 4, 8, 20, 24, 60, header // 2, header, header + 40, len(data) // 2, len(data) - 1]:
        cut.write_bytes(data[:size])
        with pytest.raises(CheckpointError) as caught:
            load_model(cut)
        assert str(cut) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "count"), [("gemma-3-270m.gguf", 268_098_176), ("smollm2-135m-instruct.gguf", 134_515_008)]
)
def test_real_files(name: str, count: int, assets: Path) -> None:
    found = open_checkpoint(assets / name)
    assert count_parameters(found.config) == count
    reader_values = {}
    with (assets / name).open("rb") as file:
        for ours in ("blocks.1.mlp.down.weight", "blocks.3.attention.value.weight"):
            stored = found.tensors[ours]
            assert isinstance(stored, GgufTensor)
            block, block_bytes = gguf.GGML_QUANT_SIZES[stored.kind]
            file.seek(stored.start)
            raw = np.frombuffer(file.read(int(np.prod(stored.shape)) // block * block_bytes), dtype=np.uint8)
            reader_values[ours] = gguf.dequantize(raw.reshape(stored.shape[0], -1), stored.kind)
    model = load_model(assets / name, dtype="float32")
    for ours, expected in reader_values.items():
        assert np.array_equal(dict(model.named_parameters())[ours].detach().numpy(), expected)


@pytest.mark.assets
@pytest.mark.parametrize(
    ("tokenizer", "name", "start", "worst_nll"),
    [("gemma3", "gemma-3-270m.gguf", [2], 3.5), ("", "smollm2-135m-instruct.gguf", [], 3.5)],
)
def test_real_models_predict_real_text(
    tokenizer: str, name: str, start: list[int], worst_nll: float, assets: Path
) -> None:
    """Weights in the wrong place or order give the loss of noise, about ln(vocabulary) = 11 to 12."""
    text = "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is Madrid."
    if tokenizer:
        import tokenizers

        ids = tokenizers.Tokenizer.from_file(str(assets / "tokenizers" / tokenizer / "tokenizer.json")).encode(text).ids
    else:
        capital_of = [378, 3575, 282]
        ids = [504, 3575, 282, 4649, 314, 7042, 30, *capital_of, 7158, 314, 7268, 30, *capital_of, 7476, 314, 28030, 30]
    ids = torch.tensor(ids if ids[:1] == start else [*start, *ids])
    model = load_model(assets / name, dtype="float32")
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model.logits(ids)[:-1], ids[1:], reduction="none")
    assert losses.mean() < worst_nll
    assert losses[-2] < 1.5  # "Madrid"
