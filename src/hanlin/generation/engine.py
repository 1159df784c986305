"""`Engine(model)` answers requests: many at once with refilled slots, or one as a stream.

Prompts of different lengths are read as one packed stream without padding; then every running request gets one token a
step. When one ends, the last row takes its slot and a waiting request is read in, so a step never computes dead rows.
Each call has its own cache, freed when it
ends or when its generator is closed: closing between tokens is how a caller interrupts.

Stop ids end an answer and are not part of it. Stop strings need a tokenizer; text that might be the beginning of one is
held back until that is decided.
"""

import random
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from hanlin.errors import ConfigError, DataError
from hanlin.generation.cache import KeyValueCache
from hanlin.generation.decoder import Decoder, can_pack
from hanlin.generation.sampling import Draw, Sampling, sample
from hanlin.generation.stops import HoldBack
from hanlin.models.transformer import Transformer
from hanlin.text.tokenizer import Tokenizer

PREFILL_TOKENS = 4096  # of several prompts read in one pass; a longer one is read alone


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt's ids (BOS and all: nothing is added) and how to go on from them."""

    ids: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: Sequence[int] = ()
    stop_strings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer. `ids` are without the stop token, which is `stop_id`; `text` is "" where no tokenizer was given.

    After a stop string `ids` hold the tokens that spell it, `text` ends before it. "length": `max_tokens` or the
    context is full.
    """

    ids: list[int]
    text: str
    finish_reason: Literal["stop", "length"]
    num_prompt_tokens: int
    stop_id: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One step of one request: the new id (None for a stop token), the text that is now certain, and at the end the
    completion.
    """

    request: int
    id: int | None
    text: str
    completion: Completion | None


class Engine:
    """Generates with a model. Weights are read once, here: make a new engine after training on (`Decoder` says what it
    costs).

    `dtype` is what matmuls run in (default the model's), `pack` lays the weights out for the CPU (default where that
    helps; False saves a copy of them), `num_slots` is how many requests run at once.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        *,
        num_slots: int = 16,
        dtype: torch.dtype | None = None,
        pack: bool | None = None,
    ) -> None:
        if num_slots < 1:
            raise ConfigError(f"num_slots is {num_slots}; expected 1 or more")
        dtype = dtype or model.dtype
        with torch.inference_mode():
            self._decoder = Decoder(model, dtype=dtype, pack=can_pack(model.device, dtype) if pack is None else pack)
        self.config = model.config
        self.tokenizer = tokenizer
        self.num_slots = num_slots

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of many requests, in their order.

        Raises DataError for a prompt that is empty, leaves no room in the context, or has an id that the model lacks.
        """
        done: dict[int, Completion] = {}
        for event in self.events(requests, self.tokenizer):
            if event.completion is not None:
                done[event.request] = event.completion
        return [done[number] for number in range(len(requests))]

    def stream(self, request: Request) -> Iterator[int]:
        """The ids of one answer as they come, without the stop token. Close the generator to interrupt."""
        for event in self.events([request], self.tokenizer):
            if event.id is not None:
                yield event.id

    def events(self, requests: Sequence[Request], tokenizer: Tokenizer | None = None) -> Iterator[Event]:
        """What happens, request by request and step by step: the base of `generate`, `stream` and `stream_text`."""
        for number, request in enumerate(requests):
            self._check(number, request, tokenizer)
        return self._events(requests, tokenizer)

    def _events(self, requests: Sequence[Request], tokenizer: Tokenizer | None) -> Iterator[Event]:
        waiting = deque(_Answer(n, request, self.config.max_length, tokenizer) for n, request in enumerate(requests))
        if not waiting:
            return
        cache = self._decoder.new_cache(
            num_slots=min(self.num_slots, len(waiting)), max_length=max(answer.room for answer in waiting)
        )
        running: list[_Answer] = []
        while waiting or running:
            fresh = self._admit(waiting, cache.num_slots - len(running))
            with torch.inference_mode():
                if fresh:
                    slots = range(len(running), len(running) + len(fresh))
                    running += fresh
                    logits_BV = self._decoder.prefill(cache, slots, [answer.request.ids for answer in fresh])
                    stepped = fresh
                else:
                    logits_BV = self._decoder.step(cache, [answer.ids[-1] for answer in running])
                    stepped = list(running)
                tokens = sample(logits_BV, [answer.draw for answer in stepped])
                events = [answer.push(token) for answer, token in zip(stepped, tokens, strict=True)]
                _retire(running, cache)
            yield from events

    @staticmethod
    def _admit(waiting: "deque[_Answer]", free: int) -> "list[_Answer]":
        """The next requests for the free slots, as many as one pass should read."""
        fresh: list[_Answer] = []
        tokens = 0
        while waiting and len(fresh) < free:
            tokens += len(waiting[0].request.ids)
            if fresh and tokens > PREFILL_TOKENS:
                break
            fresh.append(waiting.popleft())
        return fresh

    def _check(self, number: int, request: Request, tokenizer: Tokenizer | None) -> None:
        size, longest = self.config.vocab_size, self.config.max_length
        if not request.ids:
            raise DataError(f"request {number} has an empty prompt; give at least one token (BOS, or a space)")
        if len(request.ids) >= longest:
            raise DataError(
                f"request {number} has a prompt of {len(request.ids)} tokens; the model holds {longest} with the "
                f"answer: shorten it"
            )
        wrong = next((id for id in request.ids if not 0 <= id < size), None)
        if wrong is not None:
            raise DataError(
                f"request {number} has token id {wrong}; the model has 0 to {size - 1}: is the tokenizer the model's?"
            )
        if request.stop_strings and tokenizer is None:
            raise ConfigError(f"request {number} has stop strings; give the engine a tokenizer, or use stop_ids")
        if not all(request.stop_strings):
            raise ConfigError(f"request {number} has an empty stop string; leave it out")


class _Answer:
    """A request on its way."""

    def __init__(self, number: int, request: Request, max_length: int, tokenizer: Tokenizer | None) -> None:
        self.number = number
        self.request = request
        self.ids: list[int] = []
        self.ended = False
        self.room = min(len(request.ids) + request.sampling.max_tokens, max_length)
        self.draw = Draw(request.sampling, random.Random(request.sampling.seed))
        if request.sampling.repetition_penalty != 1:
            self.draw.seen = set(request.ids)
        self._stop_ids = frozenset(request.stop_ids)
        self._decoder = None if tokenizer is None else tokenizer.stream()
        self._hold = HoldBack(request.stop_strings)
        self._texts: list[str] = []

    def push(self, token: int) -> Event:
        """Take the token that was sampled."""
        if token in self._stop_ids:
            return self._end(None, self._flush(""), "stop", stop_id=token)
        self.ids.append(token)
        if isinstance(self.draw.seen, set):
            self.draw.seen.add(token)
        text = "" if self._decoder is None else self._hold.push(self._decoder.push(token))
        if self._hold.stopped:
            return self._end(token, text, "stop")
        if len(self.request.ids) + len(self.ids) >= self.room:
            text = self._flush(text)
            return self._end(token, text, "stop" if self._hold.stopped else "length")
        self._texts.append(text)
        return Event(self.number, token, text, None)

    def _flush(self, text: str) -> str:
        """`text` and what the decoder and the hold-back still have."""
        rest = "" if self._decoder is None else self._decoder.finish()
        return text + self._hold.push(rest) + self._hold.finish()

    def _end(self, id: int | None, text: str, reason: Literal["stop", "length"], stop_id: int | None = None) -> Event:
        self.ended = True
        self._texts.append(text)
        completion = Completion(self.ids, "".join(self._texts), reason, len(self.request.ids), stop_id)
        return Event(self.number, id, text, completion)


def _retire(running: list[_Answer], cache: KeyValueCache) -> None:
    """Free the slots of ended answers; the last rows take their places."""
    for slot in reversed(range(len(running))):
        if running[slot].ended:
            last = running.pop()
            if slot < len(running):
                running[slot] = last
                cache.move(len(running), slot)
            else:
                cache.clear(slot)


def stream_text(engine: Engine, tokenizer: Tokenizer, request: Request) -> Generator[str, None, Completion]:
    """The answer's text as it becomes certain: whole characters, nothing of a stop string. Returns the completion
    (`yield from`).
    """
    for event in engine.events([request], tokenizer):
        if event.text:
            yield event.text
        if event.completion is not None:
            return event.completion
    raise AssertionError("the last event carries the completion")
