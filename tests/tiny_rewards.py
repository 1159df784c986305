"""Reward functions that a recipe can name ("tiny_rewards:letters"), good ones and bad ones."""

from collections.abc import Sequence

from hanlin.types import Message


def letters(messages: Sequence[Message], answer: str) -> float:
    """The share of an answer's characters that are ASCII letters; the prompt has to be there."""
    assert messages[-1].role == "user"
    return sum(character.isascii() and character.isalpha() for character in answer) / max(1, len(answer))


def length(messages: Sequence[Message], answer: str) -> float:
    """Longer is better."""
    return float(len(answer))


def broken(messages: Sequence[Message], answer: str) -> float:
    """Fails."""
    raise KeyError("score")


def nan(messages: Sequence[Message], answer: str) -> float:
    """No number."""
    return float("nan")


NOT_A_FUNCTION = 3
