"""`Engine(model)` answers requests: many at once with refilled slots, or one as a stream.

Prompts of different lengths are read as one packed stream without padding, equal ones that follow one another once;
then every running request gets one token a step. When some have ended, the last rows take their slots and waiting
requests are read in, so a step never computes dead rows. Each call has its own cache, freed when it ends or when its
generator is closed: closing between tokens is how a caller interrupts. Two exceptions: the turns of a conversation
share one, and on CUDA the last one is kept, because steps are replayed from graphs that know its addresses.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hanlin.errors import ConfigError
from hanlin.generation.answers import Answer, Completion, Event, Request
from hanlin.generation.cache import KeyValueCache
from hanlin.generation.decoder import Decoder, can_pack
from hanlin.generation.graphs import GraphedSteps, row_bucket
from hanlin.generation.prompts import PromptReader
from hanlin.generation.sampling import sample
from hanlin.models.transformer import Transformer
from hanlin.text.tokenizer import Tokenizer

PREFILL_TOKENS = 4096  # of several prompts read in one pass; a longer one is read alone


@dataclass(slots=True, eq=False)
class _Lane:
    """A cache, the step that goes with it, and the tokens that slot 0 holds from an earlier turn."""

    cache: KeyValueCache
    step: Callable[[Sequence[int]], Tensor]
    held: Sequence[int] = ()


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
        num_slots: int = 32,
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
        self._graphed = model.device.type == "cuda"
        self._idle: _Lane | None = None

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The completions of many requests, in their order.

        Raises DataError for a prompt that is empty, leaves no room in the context, or has an id that the model lacks.
        """
        done: dict[int, Completion] = {}
        for event in self.events(requests, self.tokenizer):
            if event.completion is not None:
                done[event.request] = event.completion
        return [done[number] for number in range(len(requests))]

    def generate_groups(self, requests: Sequence[Request], num_answers: int) -> list[list[Completion]]:
        """`num_answers` completions of each request (`Request.group` says with which seeds); a prompt is read once."""
        done = self.generate([member for request in requests for member in request.group(num_answers)])
        return [done[start : start + num_answers] for start in range(0, len(done), num_answers)]

    def stream(self, request: Request) -> Iterator[int]:
        """The ids of one answer as they come, without the stop token. Close the generator to interrupt."""
        for event in self.events([request], self.tokenizer):
            if event.id is not None:
                yield event.id

    def events(self, requests: Sequence[Request], tokenizer: Tokenizer | None = None) -> Iterator[Event]:
        """What happens, request by request and step by step: the base of `generate`, `stream` and `stream_text`."""
        answers = [Answer(number, request, self.config, tokenizer) for number, request in enumerate(requests)]
        return self._events(answers, in_conversation=False) if answers else iter(())

    def converse(self, request: Request, tokenizer: Tokenizer | None = None) -> Iterator[Event]:
        """`events` of one turn of a conversation: its cache is kept for the next turn, which reads only what is new in
        its prompt. Logits are then those of a fresh start up to rounding.
        """
        return self._events([Answer(0, request, self.config, tokenizer)], in_conversation=True)

    def _events(self, answers: Sequence[Answer], *, in_conversation: bool) -> Iterator[Event]:
        lane = self._take_lane(answers, in_conversation)
        waiting, running = deque(answers), list[Answer]()
        reader = PromptReader(self._decoder, lane.cache)
        intact = False
        try:
            while waiting or running:
                intact = False
                fresh = self._admit(waiting, lane.cache.num_slots - len(running))
                with torch.inference_mode():
                    if fresh:
                        following = waiting[0].prompt if waiting else None
                        if lane.held:
                            logits_BV = reader.go_on(lane.held, fresh[0].prompt)
                        else:
                            logits_BV = reader.read(len(running), [answer.prompt for answer in fresh], following)
                        running += fresh
                        stepped = fresh
                    else:
                        logits_BV = lane.step([answer.ids[-1] for answer in running])
                        stepped = list(running)
                    tokens = sample(logits_BV, [answer.draw for answer in stepped])
                    events = [answer.push(token) for answer, token in zip(stepped, tokens, strict=True)]
                    _retire(running, lane.cache)
                intact = True
                yield from events
        finally:
            if intact and (in_conversation or self._graphed):
                first = answers[0]
                lane.held = (*first.prompt, *first.ids)[: lane.cache.lengths[0]] if in_conversation else ()
                self._idle = lane

    def _take_lane(self, answers: Sequence[Answer], in_conversation: bool) -> _Lane:
        """The lane that was kept, where it fits; else a new one."""
        num_slots, max_length = min(self.num_slots, len(answers)), max(answer.room for answer in answers)
        if self._graphed:
            num_slots = row_bucket(num_slots, self.num_slots)
        if in_conversation or self._graphed:
            max_length = self.config.max_length
            lane, self._idle = self._idle, None
            if lane is not None and lane.cache.num_slots == num_slots:
                lane.held = lane.held if in_conversation else ()
                return lane
        cache = self._decoder.new_cache(num_slots=num_slots, max_length=max_length)
        return _Lane(cache, GraphedSteps(self._decoder, cache) if self._graphed else partial(self._decoder.step, cache))

    @staticmethod
    def _admit(waiting: deque[Answer], free: int) -> list[Answer]:
        """The next requests for the free slots, as many as one pass should read."""
        fresh: list[Answer] = []
        tokens = 0
        while waiting and len(fresh) < free:
            prompt = waiting[0].prompt
            if not fresh or prompt != fresh[-1].prompt:
                tokens += len(prompt)
            if fresh and tokens > PREFILL_TOKENS:
                break
            fresh.append(waiting.popleft())
        return fresh


def _retire(running: list[Answer], cache: KeyValueCache) -> None:
    """Let the last rows take the slots of ended answers."""
    for slot in reversed(range(len(running))):
        if running[slot].ended:
            last = running.pop()
            if slot < len(running):
                running[slot] = last
                cache.move(len(running), slot)


def stream_text(
    engine: Engine, tokenizer: Tokenizer, request: Request, *, in_conversation: bool = False
) -> Generator[str, None, Completion]:
    """The answer's text as it becomes certain: whole characters, nothing of a stop string. Returns the completion
    (`yield from`). `in_conversation`: by `Engine.converse`.
    """
    for event in engine.converse(request, tokenizer) if in_conversation else engine.events([request], tokenizer):
        if event.text:
            yield event.text
        if event.completion is not None:
            return event.completion
    raise AssertionError("the last event carries the completion")
