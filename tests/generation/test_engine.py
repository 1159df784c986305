"""The laws of generation: cached = uncached, alone = in any batch and slot; stopping, limits, errors."""

import random

import pytest
import torch

from hanlin.errors import ConfigError, DataError, HanlinError
from hanlin.generation import Completion, Engine, Request, Sampling
from hanlin.generation.decoder import Decoder, can_pack
from hanlin.models.transformer import Transformer
from hanlin.models.weights import load_model, save_model
from tiny import CONFIGS, VOCAB, tiny_model

GREEDY = Sampling(temperature=0, max_tokens=12)


def random_ids(number: int, *, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(VOCAB) for _ in range(number)]


def uncached_greedy(model: Transformer, ids: list[int], number: int) -> list[int]:
    answer: list[int] = []
    for _ in range(number):
        answer.append(int(model.logits(torch.tensor(ids + answer))[-1].argmax()))
    return answer


def assert_logits_equal(mine: torch.Tensor, expected: torch.Tensor) -> None:
    assert ((mine - expected).abs() <= 1e-4 * expected.abs().clamp(min=1)).all()


@torch.inference_mode()
def drive(model: Transformer, sequences: list[list[int]], prompts: list[int], *, pack: bool = False) -> None:
    """Reads a prompt of each sequence, feeds the rest token by token, and compares every row with `model.logits`."""
    decoder = Decoder(model, dtype=model.dtype, pack=pack)
    expected = [model.logits(torch.tensor(ids)) for ids in sequences]
    cache = decoder.new_cache(num_slots=len(sequences), max_length=max(map(len, sequences)))
    starts = [ids[:length] for ids, length in zip(sequences, prompts, strict=True)]
    logits_BV = decoder.prefill(cache, range(len(sequences)), starts)
    for row, length in enumerate(prompts):
        assert_logits_equal(logits_BV[row], expected[row][length - 1])
    for step in range(min(len(ids) - n for ids, n in zip(sequences, prompts, strict=True))):
        logits_BV = decoder.step(cache, [ids[n + step] for ids, n in zip(sequences, prompts, strict=True)])
        for row, length in enumerate(prompts):
            assert_logits_equal(logits_BV[row], expected[row][length + step])


@pytest.mark.parametrize("family", CONFIGS)
def test_cached_equals_uncached(family):
    """Windows are 5 tokens: prompts are shorter and longer than that, and decoding goes far beyond three of them."""
    lengths = (1, 4, 5, 6, 23)
    drive(tiny_model(family), [random_ids(n + 90, seed=n) for n in lengths], list(lengths))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_refilled_slot_sees_nothing_of_the_last_request(family):
    model = tiny_model(family)
    decoder = Decoder(model, dtype=model.dtype, pack=False)
    first, second, other = random_ids(40, seed=1), random_ids(30, seed=2), random_ids(60, seed=3)
    with torch.inference_mode():
        cache = decoder.new_cache(num_slots=3, max_length=200)
        decoder.prefill(cache, range(3), [other[:3], first, other[:20]])
        cache.move(2, 1)  # the first request ended: the last row takes its slot, the last slot is free
        logits_BV = decoder.prefill(cache, [2], [second[:2]])
        assert_logits_equal(logits_BV[0], model.logits(torch.tensor(second[:2]))[-1])
        for step in range(25):
            logits_BV = decoder.step(cache, [other[3 + step], other[20 + step], second[2 + step]])
            for row, ids in enumerate((other[: 4 + step], other[: 21 + step], second[: 3 + step])):
                assert_logits_equal(logits_BV[row], model.logits(torch.tensor(ids))[-1])


def test_generation_equals_an_uncached_loop_in_few_slots():
    model = tiny_model("gemma3")
    prompts = [random_ids(n, seed=n) for n in (3, 30, 1, 9, 14, 2, 7)]
    requests = [Request(ids, Sampling(temperature=0, max_tokens=5 + 9 * (n % 3))) for n, ids in enumerate(prompts)]
    for num_slots in (1, 3, 16):
        done = Engine(model, num_slots=num_slots).generate(requests)
        for request, completion in zip(requests, done, strict=True):
            assert completion.ids == uncached_greedy(model, list(request.ids), request.sampling.max_tokens)
            assert completion.finish_reason == "length"
            assert completion.num_prompt_tokens == len(request.ids)


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_a_seed_gives_the_same_tokens_in_any_batch_and_slot(family):
    model = tiny_model(family, std=0.1)
    requests = [
        Request(random_ids(n, seed=n), Sampling(temperature=1.2, top_p=0.95, min_p=0.01, max_tokens=20 + n, seed=7 * n))
        for n in (1, 12, 5, 20, 3, 8)
    ]
    alone = [Engine(model).generate([request])[0] for request in requests]
    assert len({tuple(completion.ids[:8]) for completion in alone}) == len(alone)
    assert Engine(model, num_slots=2).generate(requests) == alone
    assert Engine(model, num_slots=4).generate(requests[::-1]) == alone[::-1]
    assert [list(Engine(model).stream(request)) for request in requests] == [completion.ids for completion in alone]


def test_packed_bfloat16_rows_do_not_depend_on_the_batch():
    if not can_pack(torch.device("cpu"), torch.bfloat16):
        pytest.skip("this CPU has no bf16 kernels")
    model = tiny_model("gemma3", std=0.1).bfloat16()
    requests = [
        Request(random_ids(n, seed=n), Sampling(temperature=1.0, max_tokens=24, seed=n)) for n in (1, 12, 5, 20, 3)
    ]
    engine = Engine(model, num_slots=3)
    assert engine.generate(requests) == [engine.generate([request])[0] for request in requests]


def test_packing_changes_rounding_only():
    if not can_pack(torch.device("cpu"), torch.bfloat16):
        pytest.skip("this CPU has no bf16 kernels")
    prompts = [random_ids(9, seed=seed) for seed in range(24)]
    for family in ("gemma2", "gemma3", "qwen2"):
        model, exact = tiny_model(family).bfloat16(), tiny_model(family)
        exact.load_state_dict(model.state_dict())
        with torch.inference_mode():
            truth, theirs = (torch.stack([m.logits(torch.tensor(ids))[-1] for ids in prompts]) for m in (exact, model))
            for pack in (True, False):
                decoder = Decoder(model, dtype=torch.bfloat16, pack=pack)
                mine = decoder.prefill(decoder.new_cache(num_slots=24, max_length=9), range(24), prompts)
                assert (mine - truth).norm() <= 1.1 * (theirs - truth).norm()


def test_packing_in_float32_is_exact():
    drive(tiny_model("qwen2"), [random_ids(30, seed=n) for n in range(3)], [2, 9, 17], pack=True)


def test_the_head_is_the_models_head():
    for family in ("gemma2", "llama"):
        model = tiny_model(family)
        hidden_ND = 50 * torch.randn(6, model.config.width, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            logits_NV = Decoder(model, dtype=torch.float32, pack=False).head(hidden_ND)
        torch.testing.assert_close(logits_NV, model.head(hidden_ND), rtol=1e-5, atol=1e-5)
        if model.config.logit_cap:
            assert logits_NV.abs().max() <= model.config.logit_cap


def test_weights_of_the_compute_dtype_are_shared():
    model = tiny_model("llama")
    engine = Engine(model, pack=False)
    before = engine.generate([Request([1, 2], GREEDY)])
    with torch.no_grad():
        model.blocks[0].mlp.down.weight.mul_(-3)
    assert engine.generate([Request([1, 2], GREEDY)]) != before


def test_the_cache_grows_with_what_is_used():
    model = tiny_model("gemma2")
    decoder = Decoder(model, dtype=torch.float32, pack=False)
    cache = decoder.new_cache(num_slots=2, max_length=10_000)
    assert cache.num_bytes == 0
    cache.place([0], [70])
    config = model.config
    entries = sum(140 if window is None else window for window in config.windows)
    assert cache.num_bytes == 2 * 2 * config.num_kv_heads * config.head_dim * 4 * entries
    cache.place([0], [1])
    assert [cache.capacity(window) for window in config.windows] == [5, 140, 5]


def test_stop_ids_end_an_answer_and_are_not_part_of_it():
    model = tiny_model("smollm2")
    whole = uncached_greedy(model, [5, 6, 7], 12)
    stop = next(id for n, id in enumerate(whole) if n > 2 and id not in whole[:n])
    cut = whole[: whole.index(stop)]
    completion = Engine(model).generate([Request([5, 6, 7], GREEDY, stop_ids=(stop, 96))])[0]
    assert completion == Completion(cut, "", "stop", 3, stop)
    assert list(Engine(model).stream(Request([5, 6, 7], GREEDY, stop_ids=(stop,)))) == cut
    first = Engine(model).generate([Request([5, 6, 7], GREEDY, stop_ids=(whole[0],))])[0]
    assert (first.ids, first.finish_reason) == ([], "stop")


def test_a_full_context_ends_the_answer():
    model = tiny_model("smollm2")
    longest = model.config.max_length
    prompt = random_ids(longest - 3, seed=0)
    completion = Engine(model).generate([Request(prompt, GREEDY)])[0]
    assert len(completion.ids) == 3
    assert completion.finish_reason == "length"


def test_a_stream_can_be_closed_between_tokens():
    engine = Engine(tiny_model("smollm2"))
    stream = engine.stream(Request([1], GREEDY))
    next(stream)
    stream.close()
    assert len(engine.generate([Request([1], GREEDY)])[0].ids) == 12


def test_nothing_asked_nothing_done():
    assert Engine(tiny_model("smollm2")).generate([]) == []


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (Request([]), DataError, "empty prompt"),
        (Request([1] * 512), DataError, "512 tokens"),
        (Request([1, VOCAB]), DataError, f"token id {VOCAB}"),
        (Request([1], stop_strings=("x",)), ConfigError, "tokenizer"),
    ],
)
def test_a_users_mistakes_are_named(request_, error, words):
    engine = Engine(tiny_model("smollm2"))
    with pytest.raises(error, match=words):
        engine.generate([Request([1], GREEDY), request_])
    with pytest.raises(HanlinError):
        list(engine.stream(request_))


def test_greedy_answers_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = tiny_model("gemma3")
    save_model(model, tmp_path, dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    prompts = [random_ids(n, seed=n) for n in (2, 7, 17)]
    mine = Engine(model).generate([Request(ids, Sampling(temperature=0, max_tokens=20)) for ids in prompts])
    for ids, completion in zip(prompts, mine, strict=True):
        ids_1T = torch.tensor([ids])
        out_1T = theirs.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=20, do_sample=False, pad_token_id=0
        )
        assert completion.ids == out_1T[0, len(ids) :].tolist()


@pytest.mark.assets
def test_the_real_smollm2_decodes_as_it_reads(assets):
    model = load_model(assets / "smollm2-135m-instruct.gguf", dtype="float32")
    source = random.Random(0)
    sequences = [[source.randrange(49152) for _ in range(n)] for n in (40, 31, 60)]
    drive(model, sequences, [10, 1, 30])
