"""`hanlin evaluate` and `hanlin compare`: numbers about one model, or about two on the same items."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hanlin.cli.console import counting, downloading, out, show_logs
from hanlin.cli.shipped import shipped
from hanlin.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hanlin.evaluation.language import Reply
    from hanlin.evaluation.report import Row
    from hanlin.objectives.scores import PairScore
    from hanlin.types import EncodedPair

T = TypeVar("T")
SUITES = ("language", "pairs")
Suite = Annotated[str, typer.Option(help=f"{' or '.join(SUITES)}")]
Data = Annotated[
    Path | None,
    typer.Option(help="Prompts (language) or pairs (pairs), JSONL; the shipped held-out pairs when left out."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the numbers, and the replies, to this file.")]
Tokens = Annotated[int, typer.Option(help="Longest reply, in tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy, and repeatable.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]


def evaluate(
    model: Annotated[str, typer.Argument(help="Directory, run, .gguf, hub id or known name.")],
    suite: Suite = "language",
    data: Data = None,
    json_file: JsonFile = None,
    max_tokens: Tokens = 256,
    temperature: Temperature = 0.0,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Measure a model: language purity, or reward accuracy on pairs, with 95% intervals. 测量一个模型。"""
    from hanlin.evaluation.report import table

    measured = _measure(model, suite, data, max_tokens, temperature, dtype, device)
    rows = measured.rows()
    out.print(table(rows, title=f"{model} · {suite}", names=("value 数值", "")))
    _write(json_file, rows, {model: measured})


def compare(
    one: Annotated[str, typer.Argument(metavar="A", help="The first model.")],
    other: Annotated[str, typer.Argument(metavar="B", help="The second model.")],
    suite: Suite = "language",
    data: Data = None,
    json_file: JsonFile = None,
    max_tokens: Tokens = 256,
    temperature: Temperature = 0.0,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Put two models side by side on the same items, with paired 95% intervals. 在相同题目上比较两个模型。"""
    from hanlin.evaluation.report import table

    first = _measure(one, suite, data, max_tokens, temperature, dtype, device)
    second = _measure(other, suite, data, max_tokens, temperature, dtype, device)
    rows = first.rows(second)
    out.print(table(rows, title=f"A = {one} · B = {other}", names=("A", "B")))
    _write(json_file, rows, {one: first, other: second})


class Measured:
    """What one model did on one suite: replies, or scores of pairs."""

    def __init__(
        self,
        *,
        replies: "Sequence[Reply]" = (),
        pairs: "Sequence[EncodedPair]" = (),
        scores: "Sequence[PairScore]" = (),
    ) -> None:
        self.replies, self.pairs, self.scores = replies, pairs, scores

    def rows(self, after: "Measured | None" = None) -> "list[Row]":
        from hanlin.evaluation.pairs import pair_rows
        from hanlin.evaluation.report import language_rows

        if self.replies:
            return language_rows(self.replies, after.replies if after else None)
        return pair_rows(self.pairs, self.scores, after.scores if after else None)

    def items(self) -> list[dict[str, object]]:
        """The items, for a reader who wants to check."""
        if self.replies:
            return [{"id": reply.prompt.id, "text": reply.text, "ended": reply.ended} for reply in self.replies]
        return [
            {"id": pair.id, "chosen": score.chosen, "rejected": score.rejected, "log_odds": score.log_odds}
            for pair, score in zip(self.pairs, self.scores, strict=True)
        ]


def _measure(
    name: str, suite: str, data: Path | None, max_tokens: int, temperature: float, dtype: str, device: str
) -> Measured:
    if suite not in SUITES:
        raise ConfigError(f"--suite {suite!r} is unknown; known: {', '.join(SUITES)}")
    show_logs()
    from hanlin.api import assistant, load, locate
    from hanlin.data.pack import pack_all
    from hanlin.data.prepare import encode_preferences
    from hanlin.data.sources import read_preferences
    from hanlin.evaluation.prompts import read_prompts
    from hanlin.evaluation.replies import collect_replies
    from hanlin.generation.sampling import Sampling
    from hanlin.objectives.scores import score_pairs

    data = data or shipped("data/starter-zh-en.heldout.jsonl")
    # Data is read first: a bad row is found before a large model is opened.
    prompts = read_prompts(data) if suite == "language" else []
    preferences = read_preferences([data])[0] if suite == "pairs" else []
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=0)
    with downloading() as on_progress:
        path = locate(name, on_progress=on_progress)
    model, tokenizer = load(path, dtype=dtype, device=device)
    answers = assistant(model, tokenizer)
    if suite == "language":
        with counting(f"answering 作答 {name}") as on_progress:
            return Measured(replies=collect_replies(answers, prompts, sampling, on_progress=on_progress))
    pairs = encode_preferences(preferences, answers.format, tokenizer)
    with counting(f"scoring 评分 {name}") as on_progress:
        packed = _counted(list(pack_all(pairs, max_tokens=2048)), on_progress)
        return Measured(pairs=pairs, scores=score_pairs(model, packed))


def _counted(items: "Sequence[T]", on_progress: "Callable[[int, int], None]") -> "Iterator[T]":
    for number, item in enumerate(items):
        on_progress(number, len(items))
        yield item


def _write(path: Path | None, rows: "Sequence[Row]", measured: dict[str, Measured]) -> None:
    if path is None:
        return
    from hanlin.evaluation.report import to_dict

    items = {name: of.items() for name, of in measured.items()}
    try:
        path.write_text(
            json.dumps({"metrics": to_dict(list(rows)), "items": items}, ensure_ascii=False, indent=2) + "\n",
            encoding="utf-8",
        )
    except OSError as error:
        raise ConfigError(f"--json {path} cannot be written ({error.strerror}); choose another place") from None
