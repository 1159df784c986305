"""Stop strings and streamed text: nothing of a stop string shows, nothing else is lost, characters come whole."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from hanlin.generation import Engine, Request, Sampling, stream_text
from hanlin.generation.stops import HoldBack
from hanlin.models.transformer import Transformer
from hanlin.text.tokenizer import Tokenizer
from tiny import CONFIGS


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """A tokenizer whose ids are the 256 bytes, in the order of byte-level BPE's alphabet."""
    directory: Path = tmp_path_factory.mktemp("bytes")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: id for id, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({}))
    return Tokenizer.from_directory(directory)


@torch.no_grad()
def reciter(tokenizer: Tokenizer, text: str) -> Engine:
    """An engine that goes on from any byte of `text` with the next one: the head maps each byte to its successor."""
    ids = tokenizer.encode(text)
    assert len(set(ids)) == len(ids), "give a text whose bytes are all different"
    config = replace(CONFIGS["smollm2"], vocab_size=256, width=256, tied_head=False, num_layers=1, windows=(None,))
    model = Transformer(config)
    model.initialize(std=0.0)
    model.embed.weight.copy_(torch.eye(256))
    assert model.unembed is not None
    for now, after in itertools.pairwise(ids):
        model.unembed.weight[after, now] = 1.0
    return Engine(model, tokenizer)


def greedy(tokenizer: Tokenizer, prompt: str, number: int, stops: tuple[str, ...] = ()) -> Request:
    return Request(tokenizer.encode(prompt), Sampling(temperature=0, max_tokens=number), stop_strings=stops)


def test_text_is_cut_before_a_stop_string(tokenizer):
    engine = reciter(tokenizer, "abcdefghijk")
    request = greedy(tokenizer, "a", 10, ("efg", "xyz"))
    completion = engine.generate([request])[0]
    assert (completion.text, completion.finish_reason) == ("bcd", "stop")
    assert tokenizer.decode(completion.ids) == "bcdefg"
    assert list(stream_text(engine, tokenizer, request)) == ["b", "c", "d"]


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_decided(tokenizer):
    engine = reciter(tokenizer, "abcdefghijk")
    pieces = [event.text for event in engine.events([greedy(tokenizer, "a", 6, ("cdeX",))], tokenizer)]
    assert pieces == ["b", "", "", "", "cdef", "g"]
    pieces = [event.text for event in engine.events([greedy(tokenizer, "a", 3, ("cdeX",))], tokenizer)]
    assert pieces == ["b", "", "cd"], "what was held back comes when the answer ends"


def test_a_stop_id_ends_the_text_without_showing(tokenizer):
    engine = reciter(tokenizer, "abcdef")
    request = replace(greedy(tokenizer, "a", 9, ("deX",)), stop_ids=tokenizer.encode("f"))
    returned = []

    def collect():
        returned.append((yield from stream_text(engine, tokenizer, request)))

    assert list(collect()) == ["b", "c", "de"]
    assert returned == engine.generate([request])
    assert returned[0].text == "bcde"


def test_characters_come_whole(tokenizer):
    text = "a龘🙂z"
    engine = reciter(tokenizer, text)
    number = len(tokenizer.encode(text)) - 1
    assert list(stream_text(engine, tokenizer, greedy(tokenizer, "a", number))) == ["龘", "🙂", "z"]
    assert list(stream_text(engine, tokenizer, greedy(tokenizer, "a", 5))) == ["龘", "�"], "cut by max_tokens"
    assert list(stream_text(engine, tokenizer, greedy(tokenizer, "a", number, ("🙂",)))) == ["龘"]


@pytest.mark.parametrize("seed", range(200))
def test_the_cut_does_not_depend_on_the_pieces(seed):
    source = random.Random(seed)
    text = "".join(source.choices("ab", k=14))
    stops = ["".join(source.choices("ab", k=source.randint(2, 5))) for _ in range(source.randint(1, 3))]
    # Letter by letter, the plain way: the first moment at which the text so far ends with a stop string.
    expected = text
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            expected = text[: end - max(map(len, ending))]
            break
    hold, pieces, rest = HoldBack(stops), [], text
    while rest:
        cut = source.randint(1, 5)
        pieces.append(hold.push(rest[:cut]))
        assert expected.startswith("".join(pieces)), "more was emitted than is certain"
        rest = rest[cut:]
    pieces.append(hold.finish())
    assert "".join(pieces) == expected
    assert hold.stopped == (expected != text)
