"""Files of rows in another form, with an account of what did not come along."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hanlin.curation.rows import value_of_row
from hanlin.curation.shards import Row, check_writable, line_of, read_rows, write_file, write_rows
from hanlin.data.forms import Form, convert_row
from hanlin.data.messages import BadRow
from hanlin.errors import DataError


@dataclass(slots=True)
class LeftOut:
    """Rows that could not be used: how many for each reason, where the first is, and a line about each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    lines: list[bytes] = field(default_factory=list)

    def add(self, row: Row, reason: str, detail: str = "") -> None:
        """One more row; `detail` may hold its text, and goes to the file alone."""
        self.counts[reason] += 1
        self.first.setdefault(reason, row.place)
        self.lines.append(line_of({"file": row.file, "row": row.number, "reason": reason, "detail": detail}))

    def summary(self) -> list[str]:
        """A line for each reason, the commonest first; no text of a row."""
        return [f"{count:,} × {reason}, first in {self.first[reason]}" for reason, count in self.counts.most_common()]

    def why(self, files: Sequence[Path]) -> str:
        """Why not one row of `files` could be used: the commonest reasons, or which files hold none."""
        names = ", ".join(map(str, files[:3])) + (" …" if len(files) > 3 else "")
        return "; ".join(self.summary()[:3]) or f"{names}: there are no rows"

    def write(self, beside: Path) -> Path | None:
        """Write the lines to OUTPUT.set-aside.jsonl; None where there are none."""
        if not self.lines:
            return None
        path = beside.with_name(f"{beside.name}.set-aside.jsonl")
        write_file(path, self.lines)
        return path


@dataclass(slots=True)
class Conversion:
    """What became of the rows. `lost` counts columns and fields of messages for which the form has no place."""

    read: int = 0
    written: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    left_out: LeftOut = field(default_factory=LeftOut)
    set_aside: Path | None = None


def convert_files(files: Sequence[Path], output: Path, form: Form) -> Conversion:
    """Write every row of `files` to `output` in another form. Raises DataError where no row can be."""
    done = Conversion()
    check_writable(output)
    write_rows(output, _converted(files, form, done))
    if not done.written:
        output.unlink()
        why = done.left_out.why(files)
        raise DataError(f"none of {done.read:,} rows can be written in the form {form}: {why}")
    done.set_aside = done.left_out.write(output)
    return done


def _converted(files: Sequence[Path], form: Form, done: Conversion) -> Iterator[bytes]:
    for row in read_rows(files):
        done.read += 1
        try:
            made = convert_row(value_of_row(row), row.place, form)
        except BadRow as bad:
            done.left_out.add(row, bad.reason, str(bad))
            continue
        done.lost.update(made.lost)
        done.written += 1
        yield json.dumps(made.row, ensure_ascii=False).encode("utf-8", "backslashreplace")
