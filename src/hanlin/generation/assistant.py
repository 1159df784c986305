"""`Assistant`: messages in, an answer out. A model, its tokenizer and its chat format, bound to one engine.

Chat, evaluation and the public API all talk to models through this, so that a prompt is built, and an answer ended, in
one way.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

from hanlin.generation.engine import Completion, Engine, Request, stream_text
from hanlin.generation.sampling import Sampling
from hanlin.models.transformer import Transformer
from hanlin.text.chat import ChatFormat
from hanlin.text.encode import encode_prompt, stop_ids
from hanlin.text.tokenizer import Tokenizer
from hanlin.types import Message


class Assistant:
    """Answers conversations. Weights are read once, here: make a new one after training on."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        format: ChatFormat,
        *,
        extra_stops: Sequence[int] = (),
        num_slots: int = 32,
    ) -> None:
        """`extra_stops` are further ids that end an answer (generation_config's); `num_slots` answers run at once."""
        self.tokenizer = tokenizer
        self.format = format
        self.stop_ids = stop_ids(format, tokenizer, extra_stops)
        self.engine = Engine(model, tokenizer, num_slots=num_slots)

    def request(
        self, messages: Sequence[Message], sampling: Sampling, *, tools: Sequence[dict[str, Any]] = ()
    ) -> Request:
        """The request for an answer to `messages`, which end with a user turn or a tool's; `tools` are declared as a
        `Conversation` has them. Raises TemplateError where the format cannot hold them.
        """
        return Request(encode_prompt(messages, self.format, self.tokenizer, tools=tools), sampling, self.stop_ids)

    def stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        tools: Sequence[dict[str, Any]] = (),
        in_conversation: bool = False,
    ) -> Generator[str, None, Completion]:
        """The answer's text as it becomes certain; the generator returns the completion.

        `in_conversation`: one conversation is talked to turn by turn, and what the turns have in common is read once.
        """
        request = self.request(messages, sampling, tools=tools)
        return stream_text(self.engine, self.tokenizer, request, in_conversation=in_conversation)

    def continue_text(self, text: str, sampling: Sampling) -> Generator[str, None, Completion]:
        """Raw continuation of a text, as base models do: BOS where the family has one, no turns."""
        bos = self.tokenizer.control.get(self.format.bos) if self.format.bos else None
        ids = ([] if bos is None else [bos]) + self.tokenizer.encode(text)
        return stream_text(self.engine, self.tokenizer, Request(ids, sampling, self.stop_ids))

    def answer_all(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Completion]:
        """Answers to many conversations, in their order; `on_progress(done, total)` counts finished ones."""
        requests = [self.request(messages, sampling) for messages in conversations]
        done: dict[int, Completion] = {}
        for event in self.engine.events(requests, self.tokenizer):
            if event.completion is not None:
                done[event.request] = event.completion
                on_progress(len(done), len(requests))
        return [done[number] for number in range(len(requests))]
