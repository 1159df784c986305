"""The cache: what a step reads, snapshots, going back. What it holds is tested through the engine."""

import random
from dataclasses import replace

import pytest
import torch

from hanlin.generation import Engine, Request, Sampling
from hanlin.generation.attention import _read
from hanlin.generation.cache import Extent, KeyValueCache
from hanlin.generation.decoder import Decoder, can_pack
from hanlin.generation.lists import split
from hanlin.models.config import ModelConfig
from hanlin.models.transformer import Transformer
from tiny import CONFIGS, VOCAB, tiny_model


def new_cache(config: ModelConfig, num_slots: int) -> KeyValueCache:
    return KeyValueCache(
        config,
        num_slots=num_slots,
        max_length=2000,
        key_dtype=torch.float32,
        value_dtype=torch.float32,
        device=torch.device("cpu"),
    )


def cost_of(reads: list[int], runs: list[tuple[int, int]], cost: float) -> float:
    return sum((stop - start) * max(reads[start:stop]) for start, stop in runs) + cost * (len(runs) - 1)


def test_rows_are_split_where_it_pays():
    assert split([300, 300, 40, 40], 100) == [(0, 2), (2, 4)]
    assert split([300, 300, 40, 40], 1000) == [(0, 4)]
    assert split([40, 40, 300], 50) == [(0, 2), (2, 3)]
    assert split([500, 500, 200, 200, 30, 30, 30], 10) == [(0, 2), (2, 4), (4, 7)]
    assert split([7], 0) == [(0, 1)]
    assert split([64] * 9, 0) == [(0, 9)]


@pytest.mark.parametrize("seed", range(20))
def test_a_split_covers_the_rows_and_never_costs_more_than_none(seed):
    source = random.Random(seed)
    reads = [32 * source.randint(1, 20) for _ in range(source.randint(1, 12))]
    reads = sorted(reads, reverse=True) if seed % 2 else reads
    cost = source.choice([0, 50, 300])
    runs = split(reads, cost)
    assert [row for start, stop in runs for row in range(start, stop)] == list(range(len(reads)))
    assert cost_of(reads, runs, cost) <= cost_of(reads, [(0, len(reads))], cost)
    one_cut = [[(0, cut), (cut, len(reads))] for cut in range(1, len(reads))]
    assert all(cost_of(reads, runs, cost) <= cost_of(reads, other, cost) for other in one_cut)


def wide_config(family: str) -> ModelConfig:
    """Heads of a real size, so that parts pay."""
    return replace(CONFIGS[family], width=48, num_heads=6, num_kv_heads=3, head_dim=64, query_scale=0.125)


def test_lists_read_enough_for_every_row_and_last():
    """Rows come in any order: neighbours in a list are those of about the same length."""
    cache = new_cache(wide_config("llama"), 6)
    cache.place([0, 1, 2, 3, 4], [20, 600, 100, 580, 90])
    changes, lists = 0, None
    for _ in range(100):
        cache.advance(5)
        before, lists = lists, cache.lists(5)
        changes += lists is not before
        by_length = sorted(cache.lengths[:5], reverse=True)
        assert all(by_length[part.start] <= part.length < by_length[part.start] + 32 for part in lists.parts)
        assert [row for part in lists.parts for row in range(part.start, part.stop)] == list(range(5))
    assert 1 < len(lists.parts) < 5
    assert changes < 20
    cache.move(4, 0)
    assert [cache.lists(number).num_rows for number in (4, 1, 2)] == [4, 1, 2]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_lists_read_what_the_views_do(family):
    """Rows out of order, of very different lengths, in full layers and in rings."""
    config = wide_config(family)
    cache = new_cache(config, 5)
    source = torch.Generator().manual_seed(0)
    lengths = [3, 1500, 40, 1490, 1]
    places = cache.place(range(5), lengths)
    for layer, window in enumerate(config.windows):
        k_TKH, v_TKH = (torch.randn(sum(lengths), 3, 64, generator=source) for _ in range(2))
        cache.store(layer, k_TKH, v_TKH, places[window])
    positions_B = torch.tensor([length - 1 for length in lengths])
    extent, lists = Extent(5, 1600), cache.lists(5)
    assert len(lists.parts) > 1
    for layer, window in enumerate(config.windows):
        q_BQH = torch.randn(5, 6, 64, generator=source)
        k_XHC, v_XCH = cache.views(extent)[layer]
        read_XGH = _read(q_BQH.view(15, 2, 64), k_XHC, v_XCH, cache.mask(extent, window, positions_B), config)
        read_BX = lists.read(window, q_BQH, *cache.flat(layer), lists.masks(window, positions_B))
        torch.testing.assert_close(read_BX, read_XGH.view(5, -1))


def test_a_mask_shows_the_entries_of_a_rows_own_positions():
    cache = new_cache(CONFIGS["gemma2"], 3)
    cache.place([0, 1, 2], [3, 40, 5])
    positions_B = torch.tensor(cache.advance(3))
    for window, seen in ((None, [4, 41, 6]), (5, [4, 5, 5])):
        mask_X1C = cache.mask(Extent(3, 64), window, positions_B)
        assert mask_X1C.shape == (3 * CONFIGS["gemma2"].num_kv_heads, 1, 64 if window is None else 5)
        assert (mask_X1C == 0).sum(-1)[:, 0].tolist() == [n for n in seen for _ in range(2)]
        assert all((row[: int((row == 0).sum())] == 0).all() for row in mask_X1C[:, 0])


def test_a_snapshot_is_a_copy_that_outlives_its_slot():
    """Through growth of the cache too, and for rings that were not yet full."""
    model = tiny_model("gemma3")
    decoder = Decoder(model, dtype=torch.float32, pack=False)
    source = random.Random(0)
    ids = [source.randrange(VOCAB) for _ in range(200)]
    with torch.inference_mode():
        for length in (3, 30):
            cache = decoder.new_cache(num_slots=4, max_length=300)
            decoder.prefill(cache, [0], [ids[:length]])
            snapshot = cache.snapshot(0)
            decoder.prefill(cache, [0, 1], [ids[50:53], ids[60:200]])
            cache.restore(snapshot, [3, 2])
            assert cache.lengths == [3, 140, length, length]
            logits_BV = decoder.step(cache, [ids[53], 1, ids[length], ids[length]])
            expected_V = model.logits(torch.tensor(ids[: length + 1]))[-1]
            for row in (2, 3):
                torch.testing.assert_close(logits_BV[row], expected_V, rtol=1e-4, atol=1e-4)


def test_a_ring_that_has_wrapped_cannot_go_back():
    cache = new_cache(CONFIGS["gemma2"], 1)  # windows of 5
    cache.place([0], [5])
    assert cache.rewind(0, 2)
    assert cache.lengths == [2]
    cache.place([0], [4])
    assert not cache.rewind(0, 5)
    assert cache.lengths == [6]
    assert cache.rewind(0, 6)
    whole = new_cache(CONFIGS["llama"], 1)
    whole.place([0], [500])
    assert whole.rewind(0, 1)


@pytest.mark.parametrize("family", ["smollm2", "gemma3"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 1), (6, 3)])
def test_packed_rows_do_not_depend_on_what_others_read(family, num_heads, num_kv_heads):
    """Bit for bit, for lengths in many blocks, in groups and alone: MKL's fp32 products over C would not do that. (Nor
    are its products over H the same alone where six query heads share the only key head; no family has that.)
    """
    if not can_pack(torch.device("cpu"), torch.bfloat16):
        pytest.skip("this CPU has no bf16 kernels")
    config = replace(wide_config(family), num_heads=num_heads, num_kv_heads=num_kv_heads, windows=(None, None, 40))
    model = Transformer(config)
    model.initialize(std=0.2)
    decoder = Decoder(model.bfloat16(), dtype=torch.bfloat16, pack=True)
    source = random.Random(0)
    lengths = [630, 610, 600, 90, 33, 2, 3, 20, 8]
    sequences = [[source.randrange(VOCAB) for _ in range(length + 40)] for length in lengths]

    def feed(rows: list[int]) -> torch.Tensor:
        cache = decoder.new_cache(num_slots=len(rows), max_length=700)
        logits = [decoder.prefill(cache, range(len(rows)), [sequences[row][: lengths[row]] for row in rows])]
        for step in range(40):
            logits.append(decoder.step(cache, [sequences[row][lengths[row] + step] for row in rows]))
        assert len(cache.lists(len(rows)).parts) > 1 or len(rows) < 9
        return torch.stack(logits, 1)

    with torch.inference_mode():
        together = feed(list(range(9)))
        for row in range(9):
            assert torch.equal(feed([row])[0], together[row])
        assert torch.equal(feed([5, 0, 3]), together[[5, 0, 3]])


def test_sampled_answers_do_not_depend_on_groups():
    if not can_pack(torch.device("cpu"), torch.bfloat16):
        pytest.skip("this CPU has no bf16 kernels")
    model = Transformer(wide_config("qwen2"))
    model.initialize(std=0.1)
    source = random.Random(1)
    requests = [
        Request([source.randrange(VOCAB) for _ in range(length)], Sampling(temperature=1.0, max_tokens=30, seed=length))
        for length in (300, 4, 60, 280, 5, 6, 7, 150)
    ]
    engine = Engine(model.bfloat16(), num_slots=6)
    assert engine.generate(requests) == [engine.generate([request])[0] for request in requests]
