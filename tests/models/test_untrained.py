"""Rows that a base model never trained: found, given the mean of the others, and nothing else touched."""

from pathlib import Path

import pytest
import torch

from hanlin.models.tensorfile import read_header
from hanlin.models.untrained import initialise_rows, untrained_in, untrained_rows
from hanlin.models.weights import save_model
from tiny import VOCAB, tiny_model

CONTROL = [3, 7, 11, 20]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_zero_and_nearly_zero_and_equal_rows_are_found(family: str, dtype: torch.dtype):
    model = tiny_model(family).to(dtype)
    assert untrained_in(model, CONTROL) == {}
    weight = model.embed.weight.data
    weight[3], weight[7] = 0, weight[40] * 1e-6
    assert untrained_in(model, CONTROL) == {"embed_tokens": [3, 7]}
    weight[11], weight[20] = weight[41], weight[41]
    assert untrained_in(model, CONTROL) == {"embed_tokens": CONTROL}
    assert untrained_in(model, [41]) == untrained_in(model, []) == untrained_in(model, [10**6]) == {}


def test_a_head_of_its_own_is_looked_at_too():
    model = tiny_model("llama")
    assert model.unembed is not None
    model.unembed.weight.data[7] = 0
    assert untrained_in(model, CONTROL) == {"lm_head": [7]}


def test_rows_become_the_mean_of_the_trained_ones_and_others_stay():
    model = tiny_model("llama")
    assert model.unembed is not None
    for weight in (model.embed.weight.data, model.unembed.weight.data):
        weight[[3, 7, 50]] = 0  # 50 is untrained too, and nobody asks for it
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    initialise_rows(model, untrained_in(model, CONTROL))
    assert torch.equal(state, torch.get_rng_state())
    assert untrained_in(model, [3]) == {}
    others = [row for row in range(VOCAB) if row not in (3, 7, 50)]
    for name, parameter in model.named_parameters():
        if name in ("embed.weight", "unembed.weight"):
            mean_D = before[name][others].double().mean(dim=0).float()
            torch.testing.assert_close(parameter[[3, 7]].detach(), mean_D.expand(2, -1), rtol=1e-6, atol=1e-7)
            assert torch.equal(parameter[[*others, 50]], before[name][[*others, 50]])
        else:
            assert torch.equal(parameter, before[name])


def test_rows_are_read_from_a_file_alone(tmp_path: Path):
    model = tiny_model("llama")
    model.embed.weight.data[7] = 0
    for dtype in ("float32", "bfloat16"):
        save_model(model, tmp_path, dtype=dtype)
        stored = read_header(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
        expected = model.embed.weight.detach().to(stored.dtype)
        assert torch.equal(stored.rows([5, 0, VOCAB - 1]), expected[[5, 0, VOCAB - 1]])
        assert untrained_rows(stored.rows, VOCAB, CONTROL) == [7]
