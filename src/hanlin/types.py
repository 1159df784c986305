"""The nouns that pass between rooms. A reader who knows these knows the system.

Text before any model: `Message`, `Conversation`, `Document`, `Preference`. Encoded: `Tokens`, `EncodedPair`. Packed for
the model: `Segment`, `Batch`. Around a loss: `Counts`, `Loss`. Torch is imported for annotations only, so that reading
data stays light.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ROLES = ("system", "user", "assistant")  # of text; what a called tool answered is a "tool" turn


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The assistant asks for a function; `arguments` are plain JSON values by name."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: `role` is "system", "user", "assistant" or "tool" (what a called tool answered). `tool_calls` end an
    assistant's turn.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole dialogue that ends with an assistant turn; `tools` are the functions that it may call, each
    {"type": "function", "function": {name, description, parameters}}.
    """

    messages: tuple[Message, ...]
    id: str = ""
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text for pre-training."""

    text: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt and two answers to it. `prompt` ends with a user turn.

    `id` names the row in every message about it ("file.jsonl:12" where the data has no id of its own); `fault` says
    what is wrong with `rejected` and `category` what the pair is about, where the data says so.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    id: str = ""
    category: str = ""
    fault: str = ""


class Example(Protocol):
    """An encoded example of any kind: what the loop has to know of it."""

    @property
    def id(self) -> str: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_logical_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Tokens:
    """One encoded conversation or document and where the loss looks: `scored[i]` is true where `ids[i]` is a target."""

    ids: tuple[int, ...]
    scored: tuple[bool, ...]
    id: str = ""

    @property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """All that the model sees of it, as runs of numbers: what data is told apart by."""
        return self.ids, tuple(map(int, self.scored))

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_logical_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_positions(self) -> int:
        """Of the model's context that it takes."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """An encoded preference. Both answers end with the stop token and are scored whole; the prompt starts with BOS
    where the family has one.

    `shared` is the length of the run of tokens with which both answers begin alike (0 when they differ at once).
    `reference` is the log-probability of both answers under the starting model, where an objective asks for it.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    id: str = ""
    category: str = ""
    fault: str = ""
    reference: tuple[float, float] | None = None

    @property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """As of `Tokens`."""
        return self.prompt, self.chosen, self.rejected

    @property
    def shared(self) -> int:
        count = 0
        for one, other in zip(self.chosen, self.rejected, strict=False):
            if one != other:
                break
            count += 1
        return count

    @property
    def num_tokens(self) -> int:
        """Tokens that the packed stream stores: the prompt and the answers' common start once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected) - self.shared

    @property
    def num_logical_tokens(self) -> int:
        """Tokens of two separate rows, 2 P + C + R: the measure that does not depend on the implementation."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def num_positions(self) -> int:
        """As of `Tokens`: both answers begin where the prompt ends."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of the stream that sees itself causally and, where `prefix_length` > 0, all of one earlier run."""

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One packed stream of T tokens for every objective (see docs/notation.md).

    A preference pair is `[prompt | chosen | rejected]`; prompt (and the answers' common start) are stored once. The N
    scored tokens are a list
    of indices because one stream position may predict two different tokens: the last shared one predicts the first of
    each answer. Spans number the scored sequences; `chosen_P`, `rejected_P` and `prompt_P` name the spans of the P
    pairs. `prompt_P` is empty unless the likelihood term covers the prompt. Without pairs all three are empty.
    `ids_P` names each example for error messages.
    """

    tokens_T: Tensor  # int64
    positions_T: Tensor  # int64; restarts with every pair, rejected goes on from its prefix's end
    segments: tuple[Segment, ...]
    predictor_N: Tensor  # int64: the stream position whose hidden state predicts ...
    target_N: Tensor  # int64: ... this token id, ...
    span_N: Tensor  # int64: ... counted in this span
    num_spans: int
    chosen_P: Tensor
    rejected_P: Tensor
    prompt_P: Tensor
    ids_P: tuple[str, ...]
    num_logical_tokens: int = 0
    reference_S: Tensor | None = None  # fp32: each span's log-probability under the starting model
    advantage_S: Tensor | None = None  # fp32: how much better than expected each span's answer is
    old_S: Tensor | None = None  # fp32: each span's log-probability under the model that sampled it

    @property
    def num_tokens(self) -> int:
        """T, the length of the stream."""
        return len(self.tokens_T)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            tokens_T=self.tokens_T.to(device),
            positions_T=self.positions_T.to(device),
            predictor_N=self.predictor_N.to(device),
            target_N=self.target_N.to(device),
            span_N=self.span_N.to(device),
            chosen_P=self.chosen_P.to(device),
            rejected_P=self.rejected_P.to(device),
            prompt_P=self.prompt_P.to(device),
            reference_S=None if self.reference_S is None else self.reference_S.to(device),
            advantage_S=None if self.advantage_S is None else self.advantage_S.to(device),
            old_S=None if self.old_S is None else self.old_S.to(device),
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """What an optimizer step will score over all micro-batches and ranks; known before the first forward pass."""

    pairs: int = 0
    likelihood_tokens: int = 0
    answers: int = 0

    def __add__(self, other: Counts) -> Counts:
        tokens = self.likelihood_tokens + other.likelihood_tokens
        return Counts(self.pairs + other.pairs, tokens, self.answers + other.answers)


@dataclass(frozen=True, slots=True)
class Loss:
    """`total` is a partial sum already divided by the step's global counts: micro-batch losses just add. `terms` are
    for the log, likewise.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
