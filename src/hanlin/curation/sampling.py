"""Which rows: a few by chance, or two parts that share nothing, to train on and to measure with.

Rows that say nearly the same, or answer nearly the same prompt, go to one part together: a held-out row that the model
has seen measures its memory. Both draws depend on the seed and the rows alone.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hanlin.curation.conversion import LeftOut
from hanlin.curation.duplicates import Gathering, similar_groups
from hanlin.curation.fingerprints import check_extras
from hanlin.curation.rows import Slot, slots_of, without_system
from hanlin.curation.shards import Row, check_writable, read_rows, write_rows
from hanlin.data.messages import BadRow
from hanlin.errors import ConfigError, DataError


def sample_rows(files: Sequence[Path], number: int, *, seed: int = 0) -> list[Row]:
    """`number` rows by chance (all where there are fewer), in their order; what cannot be read takes part.

    Raises ConfigError, and DataError where there is none.
    """
    if number < 1:
        raise ConfigError(f"-n {number} should be 1 or more")
    draw = random.Random(seed)
    kept: list[tuple[int, Row]] = []
    for index, row in enumerate(read_rows(files)):
        if len(kept) < number:
            kept.append((index, row))
        elif (place := draw.randrange(index + 1)) < number:
            kept[place] = (index, row)
    if not kept:
        raise DataError(LeftOut().why(files))
    return [row for _, row in sorted(kept, key=lambda item: item[0])]


@dataclass(slots=True)
class Split:
    """What a split did. `groups` of rows stay together; `largest` is the number of rows in the largest."""

    train: int
    held_out: int
    groups: int
    largest: int
    paths: tuple[Path, Path]
    left_out: LeftOut = field(default_factory=LeftOut)
    set_aside: Path | None = None


def split_rows(
    files: Sequence[Path], directory: Path, *, held_out: float, seed: int = 0, threshold: float = 0.7
) -> Split:
    """Write `directory`/train.jsonl and held-out.jsonl, each row byte for byte as it was read, in the order of reading.

    `held_out` is a share below 1 or a number of rows; a group that is larger than what is still wanted stays in
    training. Raises ConfigError, DataError.
    """
    check_extras()
    if held_out <= 0 or (held_out >= 1 and held_out != int(held_out)):
        raise ConfigError(f"--held-out {held_out:g} should be a share such as 0.05, or a number of rows such as 200")
    directory.mkdir(parents=True, exist_ok=True)
    paths = (directory / "train.jsonl", directory / "held-out.jsonl")
    for path in paths:
        check_writable(path)
    left_out = LeftOut()
    with Gathering(("prompt", "pair"), directory) as gathered:
        digests = _fingerprint(files, left_out, gathered)
        wanted = int(held_out) if held_out >= 1 else round(held_out * len(digests))
        if not 0 < wanted < len(digests):
            raise ConfigError(f"--held-out {held_out:g} of {len(digests):,} rows leaves one part empty; choose another")
        groups = similar_groups(gathered.prints(), keys=("prompt", "pair"), threshold=threshold)
    apart = choose_groups(groups.tolist(), digests, wanted, seed=seed)
    if not apart:
        raise DataError(f"all {len(digests):,} rows are near-duplicates of one another: nothing can be held out")
    for path, is_apart in zip(paths, (False, True), strict=True):
        rows = enumerate(row for row in read_rows(files) if _is_good(row))
        write_rows(path, (row.raw for index, row in rows if (index in apart) is is_apart))
    sizes = np.bincount(groups)
    done = Split(len(digests) - len(apart), len(apart), int((sizes > 0).sum()), int(sizes.max()), paths, left_out)
    done.set_aside = left_out.write(directory / "split")
    return done


def _good_slots(row: Row) -> list[Slot]:
    """The texts by which rows are compared, without the system text, which many rows share. Raises BadRow."""
    kind, slots, _ = slots_of(row)
    return without_system(row.value, kind, slots)


def _is_good(row: Row) -> bool:
    try:
        _good_slots(row)
    except BadRow:
        return False
    return True


def _fingerprint(files: Sequence[Path], left_out: LeftOut, gathered: Gathering) -> list[bytes]:
    """Gather the good rows; a digest of each."""
    digests: list[bytes] = []
    for row in read_rows(files):
        try:
            gathered.add(_good_slots(row))
        except BadRow as bad:
            left_out.add(row, bad.reason)
            continue
        digests.append(hashlib.blake2b(row.raw, digest_size=16).digest())
    if not digests:
        raise DataError(f"no row can be read: {left_out.why(files)}")
    return digests


def choose_groups(groups: Sequence[int], digests: Sequence[bytes], wanted: int, *, seed: int) -> set[int]:
    """Rows of whole groups, at most `wanted` of them: groups come in an order that their rows and the seed decide,
    wherever in the files they stand, and one that is too large for what is still wanted is passed over.
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(int(group), []).append(row)

    def turn(rows: list[int]) -> bytes:
        first = min(digests[row] for row in rows)
        return hashlib.blake2b(first, digest_size=16, salt=seed.to_bytes(16, "little", signed=True)).digest()

    apart: set[int] = set()
    for rows in sorted(members.values(), key=turn):
        if len(apart) + len(rows) <= wanted:
            apart.update(rows)
        if len(apart) == wanted:
            break
    return apart
