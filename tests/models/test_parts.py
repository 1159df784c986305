"""Parts of a model: the table divides every family, parts put together are the whole, files are read by slices."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hanlin.errors import ConfigError
from hanlin.models.lora import LoraConfig, adapted, add_lora
from hanlin.models.parts import TABLE, WHOLE, Part, divide, fill, part_of
from hanlin.models.transformer import Transformer
from hanlin.models.weights import open_checkpoint, outline, save_model
from tiny import CONFIGS, tiny_model

MATRICES = {"query", "key", "value", "output", "gate", "up", "down"}


def joined(part: Part, name: str, tensors: list[Tensor]) -> Tensor:
    """The whole parameter of the parts' own."""
    axis = part.axis(name)
    if axis is not None:
        return torch.cat(tensors, axis)
    assert all(torch.equal(tensors[0], tensor) for tensor in tensors)
    return tensors[0]


def parts_of(model: Transformer, size: int) -> list[Part]:
    return [part_of(model.config, index, size) for index in range(size)]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("size", [2, 4])
def test_parts_are_read_from_files_and_are_the_whole_together(tmp_path: Path, family: str, size: int):
    model = tiny_model(family)
    save_model(model, tmp_path, dtype="float32")
    parts = parts_of(model, size)
    checkpoint = open_checkpoint(tmp_path)
    read = [outline(checkpoint, dtype="auto") for _ in parts]
    for part, one in zip(parts, read, strict=True):
        divide(one, part)
        fill(one, checkpoint.tensors, torch.device("cpu"), read=part.read)
    for name, tensor in model.named_parameters():
        assert torch.equal(joined(parts[0], name, [dict(one.named_parameters())[name].data for one in read]), tensor)
    for part, one in zip(parts, read, strict=True):
        assert (one.config.num_heads, one.config.ffn_width) == (4 // size, 40 // size)
        assert part.widened(one.config) == model.config
        divided = sum(parameter.numel() for parameter in one.parameters())
        assert divided < sum(parameter.numel() for parameter in model.parameters())


def test_every_matrix_of_a_layer_is_in_the_table():
    model = tiny_model("qwen2")
    add_lora(model, LoraConfig(rank=2), seed=0)
    names = {name.split(".", 2)[2] for name, _ in model.named_parameters() if name.startswith("blocks.")}
    assert {name for name in names if name.split(".")[1] in MATRICES} <= TABLE.keys()
    assert {name for name in names if name not in TABLE} == {"attention_norm.weight", "mlp_norm.weight"}


def test_adapters_of_parts_are_those_of_the_whole():
    model, config = tiny_model("smollm2"), LoraConfig(rank=3)
    parts = parts_of(model, 2)
    divided = [tiny_model("smollm2") for _ in parts]
    for part, one in zip(parts, divided, strict=True):
        divide(one, part)
        add_lora(one, config, seed=5, part=part)
    add_lora(model, config, seed=5)
    for name, whole in adapted(model).items():
        for half in ("down", "up"):
            found = [adapted(one)[name].get_parameter(half).data for one in divided]
            assert torch.equal(joined(parts[0], f"{name}.{half}", found), whole.get_parameter(half))


def test_each_query_head_keeps_its_key_value_head():
    config = replace(CONFIGS["llama"], num_heads=8, num_kv_heads=2)
    assert [part_of(config, index, 8).kv_head for index in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [part_of(config, index, 2).kv_head for index in range(2)] == [None, None]
    assert part_of(config, 0, 1) is WHOLE
    assert part_of(config, 3, 4).kind("blocks.0.attention.key.bias") == "partial"
    assert part_of(config, 1, 2).kind("blocks.0.attention.key.bias") == "rows"
    assert part_of(config, 1, 2).kind("embed.weight") is None
    assert WHOLE.kind("blocks.0.attention.key.bias") is None


@pytest.mark.parametrize(("change", "size"), [({"num_heads": 6}, 4), ({"ffn_width": 41}, 2), ({"num_kv_heads": 3}, 2)])
def test_what_cannot_be_divided_is_refused(change: dict[str, int], size: int):
    config = replace(CONFIGS["smollm2"], **({"num_heads": 12} | change))
    with pytest.raises(ConfigError, match=f"parallel.tensor = {size} does not divide this model.*it can be 1"):
        part_of(config, 0, size)
