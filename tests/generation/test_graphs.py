"""CUDA graphs of steps: the sizes of buckets here, on any machine; that replaying equals running, on a GPU."""

import random

import pytest
import torch

from hanlin.generation import Engine, Request, Sampling
from hanlin.generation.cache import Extent
from hanlin.generation.decoder import Decoder
from hanlin.generation.graphs import GraphedSteps, entry_bucket, row_bucket
from tiny import CONFIGS, VOCAB, tiny_model


def test_a_bucket_of_rows_is_big_enough_and_there_are_few():
    for num_slots in (1, 3, 8, 16, 20, 128):
        buckets = [row_bucket(rows, num_slots) for rows in range(1, num_slots + 1)]
        assert all(rows <= bucket <= num_slots for rows, bucket in enumerate(buckets, 1))
        assert buckets == sorted(buckets)
        assert len(set(buckets)) <= 4 + num_slots // 8
        assert buckets[-1] == num_slots
    assert [row_bucket(rows, 64) for rows in (1, 2, 3, 5, 8, 9, 17, 64)] == [1, 2, 4, 8, 8, 16, 24, 64]


def test_a_bucket_of_entries_is_big_enough_and_there_are_few():
    for entries in (10, 256, 300, 4096):
        buckets = [entry_bucket(length, entries) for length in range(1, entries + 1)]
        assert all(length <= bucket <= entries for length, bucket in enumerate(buckets, 1))
        assert buckets == sorted(buckets)
        assert len(set(buckets)) <= 5
    assert [entry_bucket(length, 4096) for length in (1, 256, 257, 513, 4096)] == [256, 256, 512, 1024, 4096]


@pytest.mark.parametrize("family", CONFIGS)
def test_a_step_in_a_bucket_is_the_step_itself(family):
    """What a graph holds, run without one: padded rows and entries that are not used change nothing."""
    model = tiny_model(family)
    decoder = Decoder(model, dtype=torch.float32, pack=False)
    source = random.Random(0)
    sequences = [[source.randrange(VOCAB) for _ in range(length + 30)] for length in (3, 40, 11)]
    with torch.inference_mode():
        cache = decoder.new_cache(num_slots=8, max_length=300)
        decoder.prefill(cache, range(3), [ids[:-30] for ids in sequences])
        for step in range(30):
            positions = cache.advance(3)
            bucket = row_bucket(3, 8), entry_bucket(max(positions) + 1, cache.entries)
            tokens_B = torch.tensor([*(ids[len(ids) - 30 + step] for ids in sequences), 0])
            extent = Extent(*bucket)
            logits_BV = decoder.step_logits(cache, tokens_B, torch.tensor([*positions, 0]), extent)
            for row, ids in enumerate(sequences):
                expected_V = model.logits(torch.tensor(ids[: len(ids) - 29 + step]))[-1]
                torch.testing.assert_close(logits_BV[row], expected_V, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", CONFIGS)
def test_replayed_steps_are_the_steps(family):
    """Through changes of bucket and growth of the cache, in both directions."""
    model = tiny_model(family).cuda()
    decoder = Decoder(model, dtype=torch.float32, pack=False)
    source = random.Random(0)
    sequences = [[source.randrange(VOCAB) for _ in range(length + 260)] for length in (3, 40, 11)]
    with torch.inference_mode():
        graphed, plain = (decoder.new_cache(num_slots=5, max_length=400) for _ in range(2))
        steps = GraphedSteps(decoder, graphed)
        for cache in (graphed, plain):
            decoder.prefill(cache, range(3), [ids[:-260] for ids in sequences])
        for step in range(260):
            rows = 3 if step % 7 else 2
            tokens = [ids[len(ids) - 260 + step] for ids in sequences[:rows]]
            logits_BV, expected_BV = steps(tokens), decoder.step(plain, tokens)
            torch.testing.assert_close(logits_BV, expected_BV, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", CONFIGS)
def test_an_engine_on_a_gpu_says_what_one_on_a_cpu_says(family):
    """Greedy and sampled, refilled, as groups, and in turns; the graphs of the first call serve the second."""
    model = tiny_model(family)
    requests = [
        Request([(7 * n + k) % VOCAB for k in range(3 + 5 * n)], Sampling(temperature=n % 2, max_tokens=30, seed=n))
        for n in range(7)
    ]
    expected = Engine(model).generate_groups(requests, 2)
    engine = Engine(model.cuda(), num_slots=3)
    assert engine.generate_groups(requests, 2) == expected
    assert engine.generate_groups(requests, 2) == expected
    first = [event.id for event in engine.converse(requests[0])]
    assert first == expected[0][0].ids
