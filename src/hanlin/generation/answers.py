"""What is asked of an engine and what comes back: `Request`, `Event`, `Completion`; `Answer` is a request on its way.

Stop ids end an answer and are not part of it. Stop strings need a tokenizer; text that might be the beginning of one is
held back until that is decided.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from hanlin.errors import ConfigError, DataError
from hanlin.generation.sampling import Draw, Sampling, derived_seed
from hanlin.generation.stops import HoldBack
from hanlin.models.config import ModelConfig
from hanlin.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt's ids (BOS and all: nothing is added) and how to go on from them."""

    ids: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: Sequence[int] = ()
    stop_strings: Sequence[str] = ()

    def group(self, num_answers: int) -> "list[Request]":
        """As many requests for the same prompt, the first of them this one.

        The others have seeds of their own, which follow from this one's and their number; where there is no seed, each
        draws its own. Raises ConfigError when `num_answers` is below 1.
        """
        if num_answers < 1:
            raise ConfigError(f"num_answers is {num_answers}; expected 1 or more")
        seed = self.sampling.seed
        if seed is None:
            return [self] * num_answers
        others = [replace(self.sampling, seed=derived_seed(seed, number)) for number in range(1, num_answers)]
        return [self, *(replace(self, sampling=sampling) for sampling in others)]


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


class Answer:
    """A request on its way. Raises DataError or ConfigError for one that cannot be answered, naming its `number`."""

    def __init__(self, number: int, request: Request, config: ModelConfig, tokenizer: Tokenizer | None) -> None:
        _check(number, request, config, tokenizer)
        self.number = number
        self.prompt = tuple(request.ids)
        self.ids: list[int] = []
        self.ended = False
        self.room = min(len(self.prompt) + request.sampling.max_tokens, config.max_length)
        self.draw = Draw(request.sampling, random.Random(request.sampling.seed))
        if request.sampling.repetition_penalty != 1:
            self.draw.seen = set(self.prompt)
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
        if len(self.prompt) + len(self.ids) >= self.room:
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
        completion = Completion(self.ids, "".join(self._texts), reason, len(self.prompt), stop_id)
        return Event(self.number, id, text, completion)


def _check(number: int, request: Request, config: ModelConfig, tokenizer: Tokenizer | None) -> None:
    size, longest = config.vocab_size, config.max_length
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
