"""From the [data] section to documents for pre-training: one source for each entry of data.train, on disk, held-out
documents apart.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hanlin.data.corpus import Corpus, Cut, Joined, open_corpus, outside
from hanlin.data.lengths import LengthReport
from hanlin.data.prepare import DataConfig, PreparedData, check_held_out, held_out_places, settings_of
from hanlin.errors import ConfigError
from hanlin.text.chat import ChatFormat
from hanlin.text.tokenizer import Tokenizer

_LOOKED_AT = 256  # pieces whose lengths stand for all
_log = logging.getLogger(__name__)


def prepare_documents(
    config: DataConfig,
    format: ChatFormat,
    tokenizer: Tokenizer,
    *,
    system: str = "",
    cache: Path | None = None,
    on_note: Callable[[str], None] = _log.warning,
) -> PreparedData:
    """Open every source, encoding it if need be; `system` is for conversations and no matter here.

    A token file is kept whatever its size: in the folder "documents" beside `cache`. Raises DataError for data that
    cannot be used, ConfigError where the section contradicts itself.
    """
    check_held_out(config)
    if config.max_length < 2:
        raise ConfigError("data.max_length = 1: a piece of one token predicts nothing")
    end = tokenizer.id(format.other_stops[-1]) if format.other_stops else None
    begin = tokenizer.id(format.bos) if format.bos else None
    cut = Cut(begin=begin, end=end, max_length=config.max_length)

    def opened(paths: Sequence[str]) -> tuple[Corpus, str]:
        return open_corpus(
            paths,
            cut,
            tokenizer,
            on_bad_row=config.on_bad_row,
            cache=None if cache is None else cache.with_name("documents"),
            settings=settings_of(config, format, tokenizer, system=""),
            on_note=on_note,
        )

    sources = [opened([path]) for path in config.train]
    corpora = [corpus for corpus, _ in sources]
    held_out: Sequence[Any] = []
    kept: list[Sequence[Any]] = [*corpora]
    if config.held_out:
        sources.append(opened(config.held_out))
        held_out = sources[-1][0]
    elif config.held_out_pairs:
        kept, held_out = _set_aside(corpora, config.held_out_pairs)
    names = [name for _, name in sources[: len(corpora)]]
    key = hashlib.sha256(repr((names, config.held_out_pairs)).encode()).hexdigest()[:16]
    train = Joined([(one, 0, len(one)) for one in kept])
    places = range(0, len(train), max(1, len(train) // _LOOKED_AT))
    return PreparedData(
        train,
        held_out,
        tuple(corpus.rows for corpus, _ in sources),
        tuple(_lengths(corpus, config.max_length) for corpus, _ in sources),
        sizes=tuple(map(len, kept)),
        sample=[_longest(corpora), *(train[place] for place in places)],
        key=key,
    )


def _set_aside(corpora: Sequence[Corpus], number: int) -> tuple[list[Sequence[Any]], Joined]:
    """What is left of each source without `number` documents, and the pieces of these."""
    total = sum(len(corpus.documents) for corpus in corpora)
    apart = sorted(held_out_places(total, number, noun="documents"))
    kept: list[Sequence[Any]] = []
    taken: list[tuple[Sequence[Any], int, int]] = []
    first = 0
    for corpus in corpora:
        own = [one - first for one in apart if first <= one < first + len(corpus.documents)]
        runs = corpus.runs_of(own)
        kept.append(Joined(outside(corpus, runs)))
        taken += [(corpus, start, stop) for start, stop in runs]
        first += len(corpus.documents)
    if not all(map(len, kept)):
        raise ConfigError(f"data.held_out_pairs = {number} leaves nothing of one of the sources to train on")
    return kept, Joined(taken)


def _longest(corpora: Sequence[Corpus]) -> Any:
    best = max(corpora, key=lambda corpus: int(corpus.pieces["length"].max()))
    return best[int(best.pieces["length"].argmax())]


def _lengths(corpus: Corpus, max_length: int) -> LengthReport:
    """A report in pieces: nothing is dropped for its length."""
    number = len(corpus)
    return LengthReport(max_length=max_length, pairs=number, kept=number, noun="pieces of documents")
