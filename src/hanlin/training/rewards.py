"""What an answer is worth: built-in measures, a user's own Python functions, and reward models.

A name in `objective.rewards` is looked up in this order: a built-in, a directory (a reward model), "module:function".
A module is looked for in the folder that the program runs in, too; importing it runs its code.
"""

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from hanlin.data.budget import streams
from hanlin.data.groups import Group, Prompt, by_answer, pack_group_ends
from hanlin.errors import ConfigError, TrainingError
from hanlin.models.adapters import text_place
from hanlin.models.reward import load_reward_model, rewards
from hanlin.models.weights import open_checkpoint
from hanlin.objectives.likelihood import batch_hidden
from hanlin.text.audit import choose_format
from hanlin.text.chat import ChatFormat
from hanlin.text.encode import encode_answer, encode_prompt
from hanlin.text.language import language_of, latin_license, measure
from hanlin.text.tokenizer import Tokenizer
from hanlin.types import Batch, Message

RewardFunction = Callable[[Sequence[Message], str], float]


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt and the texts of the answers to it."""

    prompt: Prompt
    texts: tuple[str, ...]


class Judge(Protocol):
    """The reward of every answer, prompt by prompt."""

    def __call__(self, answered: Sequence[Answered], /) -> list[list[float]]: ...


def chinese(messages: Sequence[Message], answer: str) -> float:
    """How Chinese the answer to a Chinese question is: the share of Han characters in all that is in a language, a word
    in Latin letters counting as one character. Code, names, numbers and the question's own Latin terms do not count. 0
    for other questions and for empty answers.
    """
    question = messages[-1].content
    if measure(question).language != "zh":
        return 0.0
    found = measure(answer, latin_license(question))
    total = found.han + found.kana + found.other + found.words
    return found.han / total if total else 0.0


def same_language(messages: Sequence[Message], answer: str) -> float:
    """1 for an answer in the language of the question, without ordinary words of another; else 0."""
    return float(language_of(answer) == measure(messages[-1].content).language)


BUILT_IN: dict[str, RewardFunction] = {"chinese": chinese, "language": same_language}


def check_rewards(names: Sequence[str]) -> None:
    """Raise ConfigError for a name that stands for nothing, or for a directory that is no reward model."""
    for name in names:
        if find_function(name) is None and open_checkpoint(Path(name)).score is None:
            raise ConfigError(
                f"objective.rewards has {name}, which is a language model: train a reward model with "
                'objective.kind = "reward"'
            )


def find_function(name: str) -> RewardFunction | None:
    """The function of this name; None for a directory. Raises ConfigError where there is neither."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if Path(name).is_dir():
        return None
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError(
            f"objective.rewards has {name!r}, which is no built-in ({', '.join(BUILT_IN)}) and no directory of a "
            'reward model; a Python function is written "module:function"'
        )
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = vars(importlib.import_module(module)).get(attribute)
    except Exception as error:
        raise ConfigError(f"objective.rewards has {name!r}, and {module} cannot be imported: {_said(error)}") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ConfigError(f"objective.rewards has {name!r}, and {module} has no function {attribute}")
    return cast(RewardFunction, found)


def open_judge(name: str, *, device: torch.device, tokens_per_pass: int, on_note: Callable[[str], None]) -> Judge:
    """What gives the reward of this name. A reward model is read here, once, in the dtype that it is stored in."""
    function = find_function(name)
    if function is not None:
        return _by_function(name, function)
    model = load_reward_model(name, device=device, on_note=on_note)
    tokenizer = Tokenizer.open(text_place(Path(name)))
    format = choose_format(tokenizer)

    def read(batch: Batch) -> Tensor:
        batch = batch.to(model.device)
        return rewards(model, batch_hidden(model, batch).index_select(0, batch.predictor_N))

    @torch.no_grad()
    def judge(answered: Sequence[Answered]) -> list[list[float]]:
        groups = [_encoded(one, format, tokenizer) for one in answered]
        found = by_answer(groups, streams(groups, pack_group_ends, max_tokens=tokens_per_pass), read)
        return [found[number] for number in range(len(groups))]

    return judge


def _encoded(answered: Answered, format: ChatFormat, tokenizer: Tokenizer) -> Group:
    """In the reward model's own tokens. An answer without text is its stop alone, which no training text is."""
    prompt = tuple(encode_prompt(answered.prompt.messages, format, tokenizer))
    stop = (tokenizer.control[format.stop],)
    answers = (encode_answer(text, format, tokenizer) if text.strip() else stop for text in answered.texts)
    return Group(prompt, tuple(answers), id=answered.prompt.id)


def _by_function(name: str, function: RewardFunction) -> Judge:
    def judge(answered: Sequence[Answered]) -> list[list[float]]:
        return [[_called(name, function, one.prompt, text) for text in one.texts] for one in answered]

    return judge


def _called(name: str, function: RewardFunction, prompt: Prompt, text: str) -> float:
    """The function is the user's: whatever goes wrong in it is told with the prompt that it happened on."""
    try:
        value = float(function(prompt.messages, text))
    except Exception as error:
        raise TrainingError(f"reward {name} failed on an answer to {prompt.id}: {_said(error)}") from error
    if not math.isfinite(value):
        raise TrainingError(f"reward {name} gave {value} for an answer to {prompt.id}; expected a finite number")
    return value


def _said(error: Exception) -> str:
    """A user's own error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
