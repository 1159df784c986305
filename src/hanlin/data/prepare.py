"""From the [data] section of a recipe to encoded pairs: read, encode, fit to length, hold out, and say what was
dropped.

The held-out pairs are either files of their own or the first `held_out_pairs` of the training pairs in the order of a
fixed shuffle, so that they do not depend on the training seed.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field

from hanlin.config import Section
from hanlin.data.lengths import LengthReport, PromptFrame, fit_lengths
from hanlin.data.sources import RowReport, read_preferences
from hanlin.errors import ConfigError, DataError, TemplateError
from hanlin.text.chat import ChatFormat
from hanlin.text.encode import encode_pair, encode_prompt
from hanlin.text.tokenizer import Tokenizer
from hanlin.types import EncodedPair, Message, Preference

_HOLD_OUT_SEED = 20_260


class DataConfig(Section):
    """The [data] section: which pairs, how long, and what happens to those that do not fit."""

    train: tuple[str, ...]
    """Files (.json, .jsonl, .parquet), folders of them, or hub data sets ("org/name", "org/name:subset")."""
    held_out: tuple[str, ...] = ()
    """Pairs that are never trained on, for evaluation while training and after."""
    held_out_pairs: int = Field(default=0, ge=0)
    """Without `held_out`: how many of the training pairs to set aside instead."""
    max_length: int = Field(default=8192, gt=0)
    """Tokens of prompt plus the longer answer."""
    on_long: Literal["drop", "truncate_prompt", "error"] = "drop"
    on_bad_row: Literal["error", "skip"] = "error"
    shuffle: bool = True
    """False keeps the order of the files in every epoch."""


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Encoded pairs ready to train on, with the reports of what happened to the others: one of each for `train` and for
    `held_out` files.
    """

    train: list[EncodedPair]
    held_out: list[EncodedPair]
    rows: tuple[RowReport, ...]
    lengths: tuple[LengthReport, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the training pairs' ids in order: a resumed run must see the same data."""
        digest = hashlib.sha256()
        for pair in self.train:
            for ids in (pair.prompt, pair.chosen, pair.rejected):
                digest.update(np.array([len(ids), *ids], dtype=np.int32).tobytes())
        return digest.hexdigest()[:16]


def with_system(messages: Sequence[Message], system: str) -> tuple[Message, ...]:
    """The messages, opened by the system text unless they bring their own or it is empty."""
    if not system or (messages and messages[0].role == "system"):
        return tuple(messages)
    return (Message("system", system), *messages)


def encode_preferences(
    preferences: Sequence[Preference],
    format: ChatFormat,
    tokenizer: Tokenizer,
    *,
    system: str = "",
    on_bad_pair: Callable[[TemplateError], None] | None = None,
) -> list[EncodedPair]:
    """Encode every pair. One that the format cannot hold raises TemplateError naming it, or is left out where
    `on_bad_pair` takes the error.
    """
    encoded = []
    for preference in preferences:
        try:
            whole = replace(preference, prompt=with_system(preference.prompt, system))
            encoded.append(encode_pair(whole, format, tokenizer))
        except TemplateError as error:
            if on_bad_pair is None:
                raise
            on_bad_pair(error)
    return encoded


def prompt_frame(format: ChatFormat, tokenizer: Tokenizer, *, system: str = "") -> PromptFrame:
    """The tokens around a prompt's content, read off two prompts that differ in their content only."""
    one, other = (encode_prompt(with_system([Message("user", text)], system), format, tokenizer) for text in ("a", "b"))
    return PromptFrame.between(one, other, turn=tokenizer.id(format.opening))


def _with_refused(report: RowReport, refused: Sequence[TemplateError], format: ChatFormat) -> RowReport:
    reason = f"the {format.name} format cannot hold it"
    return replace(
        report,
        kept=report.kept - len(refused),
        reasons={**report.reasons, reason: len(refused)},
        examples={**report.examples, reason: tuple(str(error) for error in refused[:5])},
    )


def prepare_data(config: DataConfig, format: ChatFormat, tokenizer: Tokenizer, *, system: str = "") -> PreparedData:
    """Read, encode and fit everything that the [data] section names.

    Raises DataError, TemplateError or FetchError for data that cannot be used, ConfigError where the section
    contradicts itself.
    """
    if config.held_out and config.held_out_pairs:
        raise ConfigError("data.held_out and data.held_out_pairs are both given; keep one")

    frame = prompt_frame(format, tokenizer, system=system)
    rows, lengths = [], []

    def read(paths: tuple[str, ...]) -> list[EncodedPair]:
        preferences, report = read_preferences(paths, on_bad_row=config.on_bad_row)
        refused: list[TemplateError] = []
        on_bad_pair = refused.append if config.on_bad_row == "skip" else None
        encoded = encode_preferences(preferences, format, tokenizer, system=system, on_bad_pair=on_bad_pair)
        if refused:
            report = _with_refused(report, refused, format)
            if not encoded:
                raise DataError(f"none of {len(refused)} pairs fits the {format.name} format; first {refused[0]}")
        fitted, fit = fit_lengths(encoded, max_length=config.max_length, on_long=config.on_long, frame=frame)
        rows.append(report)
        lengths.append(fit)
        return fitted

    train = read(config.train)
    held_out: list[EncodedPair] = []
    if config.held_out:
        held_out = read(config.held_out)
    elif config.held_out_pairs:
        if config.held_out_pairs >= len(train):
            raise ConfigError(
                f"data.held_out_pairs = {config.held_out_pairs} leaves none of {len(train)} pairs to train on"
            )
        order = np.random.default_rng(_HOLD_OUT_SEED).permutation(len(train))
        apart = set(order[: config.held_out_pairs].tolist())
        held_out = [pair for index, pair in enumerate(train) if index in apart]
        train = [pair for index, pair in enumerate(train) if index not in apart]
    return PreparedData(train, held_out, tuple(rows), tuple(lengths))
