"""Streams of 32,768 tokens: the longest context of the families. Same numbers as transformers', in memory that grows
with the tokens alone.
"""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

from hanlin.data.pack import pack_pairs, pack_tokens
from hanlin.models.transformer import Transformer
from hanlin.models.weights import save_model
from hanlin.objectives.likelihood import batch_logprobs
from hanlin.types import EncodedPair, Tokens
from tiny import CONFIGS, VOCAB

LENGTH = 32_768


def model_of(family: str) -> Transformer:
    """Two layers: what is long is the stream."""
    config = CONFIGS[family]
    model = Transformer(replace(config, num_layers=2, windows=config.windows[1:], max_length=LENGTH))
    model.initialize(std=0.3, seed=0)
    return model


def random_ids(number: int, *, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(VOCAB, (number,), generator=torch.Generator().manual_seed(seed)).tolist())


def resident(key: str) -> int:
    """Bytes of memory that this process has ("VmRSS"), or the most that it had since the last reset ("VmHWM")."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


@pytest.mark.slow
def test_a_long_text_has_the_likelihood_and_the_gradient_that_transformers_gives_it(tmp_path: Path):
    model = model_of("smollm2")
    save_model(model, tmp_path, dtype="float32")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    ids = random_ids(LENGTH)
    batch = pack_tokens([Tokens(ids, (False, *[True] * (LENGTH - 1)), id="long")])
    mine = batch_logprobs(model, batch)
    mine.sum().backward()
    row = torch.tensor([ids])
    logits = reference(row).logits[0, :-1]
    theirs = -F.cross_entropy(logits, row[0, 1:], reduction="none")
    theirs.sum().backward()
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)  # angles of 32,768 are 0.002 apart in fp32
    gradient, expected = model.embed.weight.grad, reference.get_input_embeddings().weight.grad
    assert gradient is not None
    assert (gradient - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "llama"])
def test_a_long_pair_is_its_two_rows_and_takes_no_square_of_memory(family: str):
    model, half = model_of(family), LENGTH // 2
    pair = EncodedPair(random_ids(half), random_ids(half // 2, seed=1), random_ids(half // 2, seed=2), id="long")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = resident("VmRSS")
    logp_N = batch_logprobs(model, pack_pairs([pair]))
    logp_N.sum().backward()
    assert resident("VmHWM") - before < LENGTH**2 / 2  # bytes: not even half a mask of a byte each
    with torch.no_grad():
        apart = batch_logprobs(model, pack_pairs([pair], share=False))
    torch.testing.assert_close(logp_N, apart, rtol=1e-4, atol=1e-4)
