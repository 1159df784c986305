"""What a conversation remembers: a question and its answer, and how the answer came."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question as the user asked it and as the model saw it, and the answer. `role` is "tool" where the question is
    what a called tool answered.
    """

    question: str
    sent: str
    answer: str
    role: str = "user"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one question. `ended` is "stop", "length" or "interrupted"."""

    text: str
    num_tokens: int
    ended: str
    seconds_to_first: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first, which also has to read the prompt."""
        rest = self.seconds - self.seconds_to_first
        return (self.num_tokens - 1) / rest if self.num_tokens > 1 and rest > 0 else 0.0
