"""Writes the parts of the docs that are printed by the program itself; `--check` fails where one of them is stale.

A generated part is a code block between two comments:

    <!-- printed by: NAME -->  ...  <!-- end -->

NAME is a station of the walk below (docs/architecture.md), or a command such as `hanlin --help`. The walk follows one
preference pair through the real code with a tiny random model and a tiny tokenizer, both made here, so nothing is
downloaded. Decimal numbers may differ a little from one processor to another; `--check` lets them.
"""

import json
import math
import os
import pprint
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from torch import Tensor

from hanlin.data.loader import PairOrder
from hanlin.data.pack import count_pairs, pack_all, pack_pairs
from hanlin.data.sources import read_preferences
from hanlin.models.attention import SegmentAttention
from hanlin.models.config import ModelConfig
from hanlin.models.parts import TABLE
from hanlin.models.transformer import Transformer
from hanlin.objectives.likelihood import token_logprobs
from hanlin.objectives.orpo import OrpoConfig, orpo
from hanlin.objectives.scores import PairScore, score_pairs
from hanlin.text.chat import FORMATS
from hanlin.text.encode import encode_pair
from hanlin.text.tokenizer import Tokenizer
from hanlin.training.checkpoint import Progress
from hanlin.training.loop import run
from hanlin.training.objective import objective_of
from hanlin.training.optim import make_optimizer
from hanlin.training.recipe import TrainingConfig
from hanlin.training.supported import CONDITIONS, HEADER, MATRIX, cells
from hanlin.training.work import Job
from hanlin.types import Batch, EncodedPair, Message, Preference

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- printed by: (?P<name>[^\n]+?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
DECIMAL = re.compile(r"-?\d+\.\d+")
TOLERANCE = 2e-3  # of a printed decimal number

ROW = {
    "prompt": [{"role": "user", "content": "天空为什么是蓝色的？"}],
    "chosen": [{"role": "assistant", "content": "因为空气散射蓝光最多。"}],
    "rejected": [{"role": "assistant", "content": "因为 air scatters blue light."}],
    "id": "sky-1",
    "category": "everyday",
    "fault": "mixed reply",
}
FORMAT = FORMATS["chatml"]
OBJECTIVE = OrpoConfig(preset="llamafactory", weight=0.1)
WATCHED = "blocks.0.attention.query.weight"


@dataclass(frozen=True, slots=True)
class Walk:
    """The objects that one pair becomes on its way."""

    tokenizer: Tokenizer
    model: Transformer
    preference: Preference
    pair: EncodedPair
    batch: Batch


@cache
def walk() -> Walk:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pairs.jsonl")
        file.write_text(json.dumps(ROW, ensure_ascii=False) + "\n", encoding="utf-8")
        [preference], _ = read_preferences([file])
    tokenizer = tiny_tokenizer(preference)
    pair = encode_pair(preference, FORMAT, tokenizer)
    return Walk(tokenizer, tiny_model(tokenizer.size), preference, pair, pack_pairs([pair]))


def tiny_tokenizer(preference: Preference) -> Tokenizer:
    """Byte-level BPE like SmolLM2's, trained on the pair itself: one piece a character or word."""
    backend = Backend(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"), byte_level])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    contents = [message.content for message in preference.prompt]
    backend.train_from_iterator([*contents, preference.chosen, preference.rejected, "user\nassistant\n"] * 2, trainer)
    backend.add_special_tokens([FORMAT.opening, FORMAT.stop, *FORMAT.other_stops])
    return Tokenizer(backend, special={"eos_token": FORMAT.stop})


def tiny_model(vocab_size: int) -> Transformer:
    config = ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        num_layers=2,
        width=16,
        ffn_width=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        max_length=128,
        activation="silu",
        norm_eps=1e-5,
        query_scale=4**-0.5,
        windows=(None, None),
        rope_theta=10_000.0,
    )
    model = Transformer(config)
    model.initialize(std=0.2, seed=0)
    return model


# The stations, in the order of the walk.


def row() -> str:
    return json.dumps(ROW, ensure_ascii=False, indent=1)


def preference() -> str:
    return pprint.pformat(walk().preference, width=100)


def spans() -> str:
    messages = [*walk().preference.prompt, Message("assistant", walk().preference.chosen)]
    scored = {"answer": "scored", "stop": "scored"}
    return "\n".join(f"{kind:9}{scored.get(kind, ''):8}{text!r}" for text, kind in FORMAT.spans(messages))


def encoded() -> str:
    pair = walk().pair
    lines = []
    for name, ids in (("prompt", pair.prompt), ("chosen", pair.chosen), ("rejected", pair.rejected)):
        lines += [f"{name:9}{len(ids):2} ids: {' '.join(map(str, ids))}", f"{'':9}pieces: {' '.join(map(piece, ids))}"]
    lines.append(f"{'shared':9}{pair.shared:2}    the answers begin with the same {pair.shared} pieces")
    return "\n".join(lines)


def piece(id: int) -> str:
    """Readable text of one id; line ends and leading spaces shown."""
    return walk().tokenizer.decode([id], keep_control=True).replace("\n", "⏎").replace(" ", "␣")


def stream() -> str:
    batch = walk().batch
    lines = ["  t  position  segment  piece"]
    for number, segment in enumerate(batch.segments):
        for t in range(segment.start, segment.start + segment.length):
            lines.append(f"{t:3}{int(batch.positions_T[t]):10}{number:9}  {piece(int(batch.tokens_T[t]))}")
    lines += [""] + [f"segments[{number}] = {segment}" for number, segment in enumerate(batch.segments)]
    return "\n".join(lines)


def scored() -> str:
    batch = walk().batch
    names = {int(batch.chosen_P[0]): "chosen", int(batch.rejected_P[0]): "rejected"}
    lines = ["  n  predictor  target  span"]
    for n, (t, target, span) in enumerate(
        zip(batch.predictor_N.tolist(), batch.target_N.tolist(), batch.span_N.tolist(), strict=True)
    ):
        lines.append(f"{n:3}{t:11}{target:8}  {span} {names[span]}: {piece(int(batch.tokens_T[t]))} → {piece(target)}")
    lines += ["", f"chosen_P = {batch.chosen_P.tolist()}   rejected_P = {batch.rejected_P.tolist()}"]
    return "\n".join([*lines, str(count_pairs([walk().pair]))])


def hidden() -> str:
    model, batch = walk().model, walk().batch
    attend = SegmentAttention(model.config, batch.segments, batch.tokens_T.device)
    with torch.no_grad():
        hidden_TD = model.hidden(batch.tokens_T, batch.positions_T, attend)
        logp_N = token_logprobs(model, hidden_TD, batch.predictor_N, batch.target_N)
    rows = len(set(batch.predictor_N.tolist()))
    return "\n".join(
        [
            shaped("tokens_T", batch.tokens_T),
            shaped("hidden_TD", hidden_TD),
            f"{'head':10} runs on {rows} of {len(hidden_TD)} positions, for {len(logp_N)} scored tokens",
            shaped("logp_N", logp_N),
            "",
            " ".join(decimal(value) for value in logp_N.tolist()),
        ]
    )


def shaped(name: str, tensor: Tensor) -> str:
    return f"{name:10} {tuple(tensor.shape)!s:9} {tensor.dtype}"


def decimal(value: float) -> str:
    return f"{value:.3f}"


def loss() -> str:
    pair = walk().pair
    with torch.no_grad():
        result = orpo(walk().model, walk().batch, count_pairs([pair]), config=OBJECTIVE)
    lines = [f"{name:18}{decimal(value.item()):>9}" for name, value in result.terms.items()]
    nll, agreement = result.terms["nll_loss"].item(), result.terms["log_odds_ratio"].item()
    assert math.isclose(result.total.item(), nll - OBJECTIVE.weight * agreement, rel_tol=1e-4)
    total = decimal(result.total.item())
    return "\n".join([*lines, "", f"loss = {decimal(nll)} - {OBJECTIVE.weight} * {decimal(agreement)} = {total}"])


class Notes:
    """An observer of the loop that keeps what it is told."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def step(self, progress: Progress, num_steps: int, metrics: dict[str, float]) -> None:
        self.metrics = metrics

    def evaluated(self, progress: Progress, scores: Sequence[PairScore]) -> None: ...

    def saved(self, path: Path) -> None: ...


def update() -> str:
    """One step of the real loop, on a model of its own: the other stations show the model as it was."""
    model, pair = tiny_model(walk().tokenizer.size), walk().pair
    config = TrainingConfig(batch_pairs=1, learning_rate=0.01, warmup=0.0)
    weight = dict(model.named_parameters())[WATCHED]

    def look() -> tuple[list[float], PairScore]:
        return weight[0, :4].tolist(), score_pairs(model, pack_all([pair], max_tokens=config.tokens_per_pass))[0]

    job = Job(
        model=model,
        optimizer=make_optimizer(model, config),
        train=[pair],
        held_out=[],
        objective=objective_of(OBJECTIVE),
        config=config,
        num_steps=1,
        order=PairOrder(1, batch_pairs=1, epochs=1, seed=0),
        save=lambda progress, on_saved: Path(),
    )
    notes = Notes()
    values, score = look()
    run(job, Progress(), notes)
    new_values, new_score = look()
    lines = [f"{name:14}{decimal(notes.metrics[name]):>8}" for name in ("loss", "grad_norm", "learning_rate")]
    lines += ["", f"{WATCHED}[0, :4]"]
    lines += [f"  {when}  {' '.join(map(decimal, v))}" for when, v in (("before", values), ("after ", new_values))]
    lines += ["", "mean log-probability of the answers' tokens"]
    for when, it in (("before", score), ("after ", new_score)):
        lines.append(
            f"  {when}  chosen {decimal(it.chosen)}  rejected {decimal(it.rejected)}  margin {decimal(it.margin)}"
        )
    return "\n".join(lines)


def supported() -> str:
    """The table that recipes are checked with, a paragraph a method and the demands on single settings."""
    methods = dict.fromkeys(method for line in MATRIX for method in line.methods)
    rows = [(method, *cells(line)) for method in methods for line in MATRIX if method in line.methods]
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (HEADER, *rows)]
    return "\n".join([*map(str.rstrip, lines), "", *(f"{one.setting} {one.demand}" for one in CONDITIONS)])


def parts() -> str:
    """What becomes of a block's parameters where ranks compute it together."""
    width = max(map(len, TABLE))
    return "\n".join(f"{name.ljust(width)}  {kind}" for name, kind in TABLE.items())


STATIONS: dict[str, tuple[str, Callable[[], str]]] = {  # language of the code block, and what prints it
    "row": ("json", row),
    "preference": ("python", preference),
    "spans": ("text", spans),
    "encoded": ("text", encoded),
    "stream": ("text", stream),
    "scored": ("text", scored),
    "hidden": ("text", hidden),
    "loss": ("text", loss),
    "update": ("text", update),
    "supported": ("text", supported),
    "parts": ("text", parts),
}


def command(line: str) -> str:
    """What a `hanlin ...` command prints on a terminal of 100 columns."""
    program, *arguments = shlex.split(line)
    assert program == "hanlin", f"{line!r}: only hanlin itself may print into the docs"
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    code = f"import sys; sys.argv = {[program, *arguments]!r}; from hanlin.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{line}: {done.stderr or done.stdout}")
    return "\n".join(text.rstrip() for text in done.stdout.splitlines()).strip("\n")


def printed(name: str) -> str:
    """The code block that belongs between the comments."""
    language, station = STATIONS[name] if name in STATIONS else ("text", lambda: command(name))
    return f"```{language}\n{station()}\n```\n"


def regenerate(text: str) -> str:
    return BLOCK.sub(lambda match: match[1] + printed(match["name"]) + match[4], text)


def agree(old: str, new: str) -> bool:
    """Equal words, and decimal numbers that differ no more than processors do."""
    if DECIMAL.sub("0", old) != DECIMAL.sub("0", new):
        return False
    pairs = zip(DECIMAL.findall(old), DECIMAL.findall(new), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in pairs)


def documents(root: Path) -> list[Path]:
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")])


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    stale = []
    for path in documents(root):
        old = path.read_text(encoding="utf-8")
        if not agree(old, new := regenerate(old)):
            stale.append(path.relative_to(root))
            if "--check" not in arguments:
                path.write_text(new, encoding="utf-8")
    if "--check" in arguments and stale:
        print(f"stale: {', '.join(map(str, stale))}; run `make docs` and look at what changed")
        return 1
    print(f"written: {', '.join(map(str, stale))}" if stale else "docs: everything printed is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
