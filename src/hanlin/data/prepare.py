"""From the [data] section of a recipe to encoded pairs: read, encode, fit to length, hold out, and say what was
dropped.

The held-out pairs are either files of their own or the first `held_out_pairs` of the training pairs in the order of a
fixed shuffle, so that they do not depend on the training seed. A row so large that it cannot fit, whatever its ids are,
is dropped before it is encoded: ten megabytes take many seconds.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import tokenizers
from pydantic import Field

from hanlin.config import Section
from hanlin.data.cache import EncodedFiles, remembered
from hanlin.data.conversations import CONVERSATIONS
from hanlin.data.lengths import (
    ANSWER_TOO_LONG,
    NUM_EXAMPLES,
    TOO_LONG,
    LengthReport,
    PromptFrame,
    fit_lengths,
    fit_tokens,
)
from hanlin.data.sources import RowReport, read_files, read_preferences
from hanlin.errors import ConfigError, DataError, TemplateError
from hanlin.text.chat import ChatFormat
from hanlin.text.encode import encode_conversation, encode_pair, encode_prompt
from hanlin.text.tokenizer import Tokenizer
from hanlin.text.vocabulary import fingerprint, longest_run
from hanlin.types import Conversation, EncodedPair, Message, Preference, Tokens

R = TypeVar("R")
X = TypeVar("X")

_HOLD_OUT_SEED = 20_260
# Characters for each token of the limit from which it is worth asking whether a row can fit at all: no vocabulary that
# we know has a longest piece of fewer.
_SUSPICIOUS = 16
_log = logging.getLogger(__name__)

Encode = Callable[[tuple[str, ...]], EncodedFiles]  # of the data files that some paths stand for


class DataConfig(Section):
    """The [data] section: which examples, how long, and what happens to those that do not fit."""

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
    cache: bool = True
    """Keep encoded pairs in the cache directory ($HANLIN_CACHE, else ~/.cache/hanlin): another run with these files,
    this tokenizer and these settings starts at once. Files under a megabyte are not worth it.
    """


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Encoded examples ready to train on, with the reports of what happened to the others: one of each for `train` and
    for `held_out` files.

    Where `train` is several sources on disk, end to end, `sizes` are theirs, `sample` is a few examples that stand for
    all (the longest is among them), and `key` names the content.
    """

    train: Sequence[Any]
    held_out: Sequence[Any]
    rows: tuple[RowReport, ...]
    lengths: tuple[LengthReport, ...]
    sizes: tuple[int, ...] = ()
    sample: Sequence[Any] = ()
    key: str = ""

    @property
    def typical(self) -> Sequence[Any]:
        """Examples to read lengths from."""
        return self.sample or self.train

    @property
    def fingerprint(self) -> str:
        """Hash of the training examples' ids in order: a resumed run must see the same data."""
        if self.key:
            return self.key
        digest = hashlib.sha256()
        for example in self.train:
            for ids in example.parts:
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

    def encode(preference: Preference) -> EncodedPair:
        whole = replace(preference, prompt=with_system(preference.prompt, system))
        return encode_pair(whole, format, tokenizer)

    return encode_each(preferences, encode, on_bad_pair)


def encode_each(
    rows: Iterable[R], encode: Callable[[R], X], on_bad_row: Callable[[TemplateError], None] | None
) -> list[X]:
    """Every row encoded. One that the format cannot hold raises TemplateError, or is left out where `on_bad_row` takes
    the error.
    """
    encoded: list[X] = []
    for row in rows:
        try:
            encoded.append(encode(row))
        except TemplateError as error:
            if on_bad_row is None:
                raise
            on_bad_row(error)
    return encoded


def prompt_frame(format: ChatFormat, tokenizer: Tokenizer, *, system: str = "") -> PromptFrame:
    """The tokens around a prompt's content, read off two prompts that differ in their content only."""
    one, other = (encode_prompt(with_system([Message("user", text)], system), format, tokenizer) for text in ("a", "b"))
    return PromptFrame.between(one, other, turn=tokenizer.id(format.opening))


def with_refused(
    report: RowReport, refused: Sequence[TemplateError], format: ChatFormat, *, is_any_left: bool, noun: str
) -> RowReport:
    """The report with the rows that the chat format could not hold. Raises DataError where these are all."""
    if not refused:
        return report
    if not is_any_left:
        raise DataError(f"none of {len(refused)} {noun} fits the {format.name} format; first {refused[0]}")
    reason = f"the {format.name} format cannot hold it"
    return replace(
        report,
        kept=report.kept - len(refused),
        reasons={**report.reasons, reason: len(refused)},
        examples={**report.examples, reason: tuple(str(error) for error in refused[:5])},
    )


def _set_aside(
    preferences: Sequence[Preference], config: DataConfig, format: ChatFormat, tokenizer: Tokenizer, *, system: str
) -> tuple[list[Preference], dict[str, list[str]]]:
    """The preferences that may fit, and by reason, in words, those that cannot: counted in characters alone.

    Exact in one direction: what is set aside would not have fitted. Raises DataError where long pairs are errors.
    """
    large = [_num_characters(preference) > _SUSPICIOUS * config.max_length for preference in preferences]
    run = longest_run(tokenizer) if any(large) else None
    if run is None:
        return list(preferences), {}
    kept: list[Preference] = []
    aside: dict[str, list[str]] = {}
    for preference, is_large in zip(preferences, large, strict=True):
        prompt, answer = _least_tokens(preference, format, system=system, run=run) if is_large else (0, 0)
        if reason := _certain(preference.id, prompt, answer, config):
            aside.setdefault(reason, []).append(f"{preference.id} (at least {prompt + answer}, not encoded)")
        else:
            kept.append(preference)
    return kept, aside


def _num_characters(preference: Preference) -> int:
    longer = max(len(preference.chosen), len(preference.rejected))
    return sum(len(message.content) for message in preference.prompt) + longer


def _least_tokens(preference: Preference, format: ChatFormat, *, system: str, run: int) -> tuple[int, int]:
    """Lower bounds of the prompt's and the longer answer's tokens, none of which stands for more than `run` characters.

    (0, 0) for what the format cannot hold: encoding will say so.
    """
    try:
        spans = list(format.spans(with_system(preference.prompt, system), generation_prompt=True))
        answers = [format.answer(text) for text in (preference.chosen, preference.rejected)]
    except TemplateError:
        return 0, 0
    plain = sum(len(text) for text, kind in spans if kind in ("text", "answer"))
    controls = sum(kind in ("control", "stop") for _, kind in spans)
    return -(-plain // run) + controls, -(-max(map(len, answers)) // run) + 1


def _certain(name: str, prompt: int, answer: int, config: DataConfig) -> str:
    """Why a pair of at least so many tokens cannot stay; "" where it might."""
    if config.on_long == "truncate_prompt":
        return ANSWER_TOO_LONG if answer > config.max_length else ""
    if prompt + answer <= config.max_length:
        return ""
    if config.on_long == "error":
        raise DataError(
            f"pair {name} has at least {prompt + answer} tokens (prompt {prompt}, longer answer {answer}), more than "
            f'max_length = {config.max_length}; raise it, or set on_long = "drop" or "truncate_prompt"'
        )
    return TOO_LONG


def _with_aside(report: LengthReport, aside: dict[str, list[str]]) -> LengthReport:
    """The report with the pairs that were not encoded; its lengths are of the others."""
    dropped, examples = dict(report.dropped), dict(report.examples)
    for reason, named in aside.items():
        dropped[reason] = dropped.get(reason, 0) + len(named)
        examples[reason] = (*examples.get(reason, ()), *named)[:NUM_EXAMPLES]
    return replace(report, pairs=report.pairs + sum(map(len, aside.values())), dropped=dropped, examples=examples)


def encode_files(
    paths: Sequence[str], config: DataConfig, format: ChatFormat, tokenizer: Tokenizer, *, system: str
) -> EncodedFiles:
    """Read, encode and fit the pairs of some files, folders or hub data sets. Raises as `prepare_data`."""
    frame = prompt_frame(format, tokenizer, system=system)
    preferences, rows = read_preferences(paths, on_bad_row=config.on_bad_row)
    preferences, aside = _set_aside(preferences, config, format, tokenizer, system=system)
    refused: list[TemplateError] = []
    on_bad_pair = refused.append if config.on_bad_row == "skip" else None
    encoded = encode_preferences(preferences, format, tokenizer, system=system, on_bad_pair=on_bad_pair)
    rows = with_refused(rows, refused, format, is_any_left=bool(encoded or aside), noun="pairs")
    fitted, lengths = fit_lengths(encoded, max_length=config.max_length, on_long=config.on_long, frame=frame)
    lengths = _with_aside(lengths, aside)
    if aside and not fitted:
        why = "; ".join(line.strip() for line in lengths.lines())
        raise DataError(f"no pair is left of {why}; raise max_length or mend the data")
    return EncodedFiles(fitted, rows, lengths)


def prepare_data(
    config: DataConfig,
    format: ChatFormat,
    tokenizer: Tokenizer,
    *,
    system: str = "",
    cache: Path | None = None,
    on_note: Callable[[str], None] = _log.warning,
) -> PreparedData:
    """Read, encode and fit everything that the [data] section names; known files come from the folder `cache`.

    Raises DataError, TemplateError or FetchError for data that cannot be used, ConfigError where the section
    contradicts itself.
    """

    def encode(paths: tuple[str, ...]) -> EncodedFiles:
        return encode_files(paths, config, format, tokenizer, system=system)

    keep = Keep(cache, settings_of(config, format, tokenizer, system=system), on_note)
    return prepared(config, keep.reading(encode), noun="pairs")


@dataclass(frozen=True, slots=True)
class Keep:
    """Where encoded files are kept (None: nowhere), under which settings, and who is told of trouble there."""

    folder: Path | None
    settings: Callable[[], dict[str, object]]
    on_note: Callable[[str], None]

    def reading(self, encode: Encode) -> Encode:
        """`encode`, asked only for files that are not known."""

        def read(paths: tuple[str, ...]) -> EncodedFiles:
            if self.folder is None:
                return encode(paths)
            return remembered(self.folder, paths, self.settings, lambda: encode(paths), on_note=self.on_note)

        return read


def settings_of(
    config: DataConfig, format: ChatFormat, tokenizer: Tokenizer, *, system: str, **others: object
) -> Callable[[], dict[str, object]]:
    """All that encoding depends on besides the files and the code."""
    return lambda: {
        "format": asdict(format),
        "system": system,
        "data": config.model_dump(include={"max_length", "on_long", "on_bad_row"}),
        "tokenizer": fingerprint(tokenizer),
        "tokenizers": tokenizers.__version__,
        **others,
    }


def prepared(config: DataConfig, read: Encode, *, noun: str) -> PreparedData:
    """Training and held-out examples of the files that the section names."""
    check_held_out(config)
    files = [read(config.train)]
    train = list(files[0].examples)
    held_out: list[Any] = []
    if config.held_out:
        files.append(read(config.held_out))
        held_out = list(files[1].examples)
    elif config.held_out_pairs:
        apart = set(held_out_places(len(train), config.held_out_pairs, noun=noun))
        held_out = [example for index, example in enumerate(train) if index in apart]
        train = [example for index, example in enumerate(train) if index not in apart]
    return PreparedData(train, held_out, tuple(one.rows for one in files), tuple(one.lengths for one in files))


def check_held_out(config: DataConfig) -> None:
    """Raise ConfigError where the section says twice what is held out."""
    if config.held_out and config.held_out_pairs:
        raise ConfigError("data.held_out and data.held_out_pairs are both given; keep one")


def held_out_places(total: int, number: int, *, noun: str) -> list[int]:
    """Which `number` of `total` examples to set aside: always the same ones."""
    if number >= total:
        raise ConfigError(f"data.held_out_pairs = {number} leaves none of {total} {noun} to train on")
    return np.random.default_rng(_HOLD_OUT_SEED).permutation(total)[:number].tolist()


def prepare_conversations(
    config: DataConfig,
    format: ChatFormat,
    tokenizer: Tokenizer,
    *,
    score: Literal["every", "last"],
    system: str = "",
    cache: Path | None = None,
    on_note: Callable[[str], None] = _log.warning,
) -> PreparedData:
    """As `prepare_data`, for conversations, of which every or the last assistant turn is scored."""
    if config.on_long == "truncate_prompt" and score == "every":
        raise ConfigError(
            'data.on_long = "truncate_prompt" would cut turns that are scored; set objective.score = "last", or '
            'data.on_long = "drop"'
        )

    def encode(paths: tuple[str, ...]) -> EncodedFiles:
        return encode_conversations(paths, config, format, tokenizer, system=system, score=score)

    keep = Keep(cache, settings_of(config, format, tokenizer, system=system, score=score), on_note)
    return prepared(config, keep.reading(encode), noun="conversations")


def encode_conversations(
    paths: Sequence[str],
    config: DataConfig,
    format: ChatFormat,
    tokenizer: Tokenizer,
    *,
    system: str,
    score: Literal["every", "last"],
) -> EncodedFiles:
    """Read, encode and fit the conversations of some files, folders or hub data sets."""
    conversations, rows = read_files(paths, CONVERSATIONS, on_bad_row=config.on_bad_row)

    def encode(conversation: Conversation) -> Tokens:
        whole = replace(conversation, messages=with_system(conversation.messages, system))
        return encode_conversation(whole, format, tokenizer, score=score)

    refused: list[TemplateError] = []
    encoded = encode_each(conversations, encode, refused.append if config.on_bad_row == "skip" else None)
    rows = with_refused(rows, refused, format, is_any_left=bool(encoded), noun="conversations")
    frame = prompt_frame(format, tokenizer, system=system)
    fitted, lengths = fit_tokens(encoded, max_length=config.max_length, on_long=config.on_long, frame=frame)
    return EncodedFiles(fitted, rows, lengths)
