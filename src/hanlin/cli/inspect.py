"""`hanlin inspect`: what a model is, how to talk to it, what it needs, what would break. Reads headers, not weights."""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from hanlin.cli.console import downloading, err, fail, out, show_logs
from hanlin.errors import HanlinError
from hanlin.models.fetch import KNOWN_MODELS

if TYPE_CHECKING:
    from hanlin.models.config import ModelConfig
    from hanlin.models.weights import Checkpoint
    from hanlin.text.audit import Audit
    from hanlin.text.chat import ChatFormat
    from hanlin.text.tokenizer import Tokenizer

_KNOWN = ", ".join(f"{known.name} ({known.title}, {known.num_bytes / 1e6:.0f} MB)" for known in KNOWN_MODELS.values())
# fp32 weights, their gradients and Adam's two moments, 4 bytes each.
TRAINING_BYTES = 16
CACHE_TOKENS = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that would break: `level` is "error" or "warning"."""

    level: str
    text: str


def inspect(
    model: Annotated[str, typer.Argument(help=f"Directory, run, .gguf, hub id, or a small known model: {_KNOWN}.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON to standard output, and nothing else. 输出 JSON")
    ] = False,
) -> None:
    """Say what a model is, how it is talked to, what it needs, what would break. 查看模型。

    Exit status 2 when something is wrong that keeps it from being used.
    """
    show_logs()
    from hanlin.api import locate
    from hanlin.models.weights import open_checkpoint

    with downloading() as on_progress:
        path = locate(model, on_progress=on_progress)
    with err.status("正在读取 reading …") if err.is_terminal else nullcontext():
        report, differences = describe(path, open_checkpoint(path))
    if as_json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _show(report, differences)
    errors = [problem["text"] for problem in report["problems"] if problem["level"] == "error"]
    for text in errors:
        fail(text)
    if errors:
        raise typer.Exit(2)


def describe(path: Path, checkpoint: "Checkpoint") -> tuple[dict[str, Any], list[str]]:
    """Everything that `--json` prints, and the template's differences side by side.

    Raises no HanlinError: a tokenizer or a chat format that cannot be used is one of the report's problems.
    """
    from hanlin.models.weights import count_parameters

    config = checkpoint.config
    num_parameters = count_parameters(config)
    problems = [Problem("warning", note) for note in checkpoint.notes]
    report: dict[str, Any] = {
        "path": str(path),
        "family": config.family,
        "parameters": num_parameters,
        "stored_bytes": _stored_bytes(path),
        "stored_as": _kinds(checkpoint),
        "sizes": _sizes(config),
        "memory_bytes": {
            "weights_bfloat16": 2 * num_parameters,
            "weights_float32": 4 * num_parameters,
            f"cache_{CACHE_TOKENS}_tokens_bfloat16": cache_bytes(config, CACHE_TOKENS, num_bytes=2),
            "training_float32_adam": TRAINING_BYTES * num_parameters,
        },
    }
    problems += _dtype_problems(checkpoint)
    differences: list[str] = []
    report["tokens"], report["chat"] = None, None
    try:
        described = _describe_text(path, checkpoint, problems)
    except HanlinError as error:
        problems.append(Problem("error", str(error)))
    else:
        report["tokens"], report["chat"], differences = described
    report["problems"] = [{"level": problem.level, "text": problem.text} for problem in problems]
    return report, differences


def _describe_text(
    path: Path, checkpoint: "Checkpoint", problems: list[Problem]
) -> tuple[dict[str, Any], dict[str, Any] | None, list[str]]:
    """The report's "tokens" and "chat", and the differences; problems are added as they are found."""
    from hanlin.models.adapters import text_place
    from hanlin.text.audit import audit, audit_tools, choose_format, side_by_side
    from hanlin.text.encode import check_vocabulary, control_ids, stop_ids
    from hanlin.text.tokenizer import Tokenizer

    tokenizer, config = Tokenizer.open(text_place(path)), checkpoint.config
    tokens: dict[str, Any] = {
        "pieces": tokenizer.size,
        "rows": config.vocab_size,
        "bos": _piece(tokenizer, tokenizer.bos_id),
        "eos": _piece(tokenizer, tokenizer.eos_id),
        "pad": _piece(tokenizer, tokenizer.pad_id),
        "stops": [_piece(tokenizer, id) for id in tokenizer.generation_stops],
    }
    try:
        check_vocabulary(tokenizer, config.vocab_size)
        format = choose_format(tokenizer)
    except HanlinError as error:
        problems.append(Problem("error", str(error)))
        return tokens, None, []
    tokens["stops"] = [_piece(tokenizer, id) for id in stop_ids(format, tokenizer, tokenizer.generation_stops)]
    found = audit(format, tokenizer)
    if found.differences:
        problems.append(Problem("warning", found.notice))
    problems += _token_problems(path, tokenizer, format, found)
    problems += _untrained_problems(checkpoint, control_ids(format, tokenizer))
    chat = {
        "format": format.name,
        "template": _agreement(found),
        "compared": found.num_compared,
        "skipped": list(found.skipped),
        "differences": [difference._asdict() for difference in found.differences],
        "default_system": format.default_system,
        "tools": _agreement(audit_tools(format, tokenizer)),
    }
    width = min(out.width, 120)
    return tokens, chat, [side_by_side(difference, width=width) for difference in found.differences]


def _agreement(found: "Audit") -> str:
    return "missing" if found.missing_template else "equal" if found.clean else "different"


def _piece(tokenizer: "Tokenizer", id: int | None) -> dict[str, Any] | None:
    if id is None:
        return None
    return {"id": id, "piece": tokenizer.piece(id) if 0 <= id < tokenizer.size else None}


def _token_problems(path: Path, tokenizer: "Tokenizer", format: "ChatFormat", found: "Audit") -> list[Problem]:
    """Stop ids and BOS that other programs would miss; Hanlin itself takes them from the chat format."""
    problems = []
    stop = tokenizer.id(format.stop)
    if path.is_dir() and not found.missing_template and stop is not None:
        file, named = _declared_stops(path, tokenizer)
        if stop not in named:
            text = (
                f"{file} stops at {', '.join(map(str, named)) or 'nothing'}, not at {stop} {format.stop}, with which "
                f'answers end: other programs would talk on; write "eos_token_id": {sorted({*named, stop})} there'
            )
            problems.append(Problem("warning", text))
    if format.bos and format.bos not in tokenizer.control:
        text = f"the {format.name} format begins with {format.bos}, which the tokenizer lacks; take the model's own"
        problems.append(Problem("error", text))
    elif format.bos and tokenizer.bos_id != tokenizer.control[format.bos]:
        text = (
            f"the tokenizer does not name {format.bos} as BOS: other programs would leave it out and answer badly; "
            f'write "bos_token": "{format.bos}" into tokenizer_config.json'
        )
        problems.append(Problem("warning", text))
    return problems


def _untrained_problems(checkpoint: "Checkpoint", control: dict[str, int]) -> list[Problem]:
    """Control pieces whose rows a base model never trained. Rows of GGUF files are not looked at."""
    from hanlin.models.tensorfile import StoredTensor
    from hanlin.models.untrained import untrained_rows

    problems = []
    for name, place in (("embedding", "embed.weight"), ("head", "unembed.weight")):
        tensor = checkpoint.tensors.get(place)
        if not isinstance(tensor, StoredTensor):
            continue
        if ids := set(untrained_rows(tensor.rows, tensor.shape[0], list(control.values()))):
            pieces = ", ".join(piece for piece, id in control.items() if id in ids)
            text = (
                f"the {name} has untrained rows for {pieces}, which the chat format writes: a base model; train it "
                f'(model.untrained_rows = "mean" gives them a start, [lora] cannot learn them) before you chat with it'
            )
            problems.append(Problem("warning", text))
    return problems


def _declared_stops(path: Path, tokenizer: "Tokenizer") -> tuple[str, tuple[int, ...]]:
    """The file that tells other programs where answers end, and the ids it names."""
    if (path / "generation_config.json").exists():
        return "generation_config.json", tokenizer.generation_stops
    stops = json.loads((path / "config.json").read_bytes()).get("eos_token_id")
    return "config.json", tuple(stops) if isinstance(stops, list) else () if stops is None else (stops,)


def _dtype_problems(checkpoint: "Checkpoint") -> list[Problem]:
    if not (checkpoint.config.needs_wide_exponent and _kinds(checkpoint).keys() & {"float16", "F16"}):
        return []
    family = checkpoint.config.family
    text = f"stored as float16, which overflows when {family} computes in it: use bfloat16 or float32"
    return [Problem("warning", text)]


def _kinds(checkpoint: "Checkpoint") -> dict[str, int]:
    """How many parameters are stored as what: dtypes of safetensors, block kinds of GGUF; the most used first."""
    import math

    from hanlin.models.gguf import GgufTensor
    from hanlin.models.tensorfile import StoredTensor

    counts: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        assert isinstance(tensor, GgufTensor | StoredTensor)
        kind = tensor.kind.name if isinstance(tensor, GgufTensor) else str(tensor.dtype).removeprefix("torch.")
        counts[kind] = counts.get(kind, 0) + math.prod(tensor.shape)
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _stored_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _sizes(config: "ModelConfig") -> dict[str, Any]:
    windows = [window for window in config.windows if window is not None]
    return {
        "layers": config.num_layers,
        "width": config.width,
        "ffn_width": config.ffn_width,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_length": config.max_length,
        "window": max(windows, default=None),
        "windowed_layers": len(windows),
        "tied_head": config.tied_head,
        "rope_theta": config.rope_theta,
        "local_rope_theta": config.local_rope_theta,
        "query_scalar": round(config.query_scale**-2, 6),
        "attention_cap": config.attention_cap,
        "logit_cap": config.logit_cap,
    }


def cache_bytes(config: "ModelConfig", num_tokens: int, *, num_bytes: int) -> int:
    """Bytes of keys and values of one sequence; a layer with a window never holds more tokens than that."""
    tokens = sum(num_tokens if window is None else min(window, num_tokens) for window in config.windows)
    return 2 * tokens * config.num_kv_heads * config.head_dim * num_bytes


def _show(report: dict[str, Any], differences: list[str]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, text in [*_model_rows(report), *_text_rows(report)]:
        table.add_row(label, escape(text))
    out.print(table)
    for text in differences:
        out.print()
        out.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
    for problem in report["problems"]:
        if problem["level"] == "warning":
            out.print(f"[yellow]警告 warning:[/] {escape(problem['text'])}", highlight=False, soft_wrap=True)
    if not report["problems"]:
        out.print("[green]没有发现问题 nothing found that would break[/]")


def _model_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    sizes, memory = report["sizes"], report["memory_bytes"]
    window = f", {sizes['windowed_layers']} with a window 滑动窗口 of {sizes['window']}" if sizes["window"] else ""
    caps = [
        f"{name} {sizes[key]:g}"
        for name, key in (("attention 注意力", "attention_cap"), ("logits", "logit_cap"))
        if sizes[key]
    ]
    total = sum(report["stored_as"].values())
    kinds = ", ".join(f"{kind} {count / total:.0%}" for kind, count in report["stored_as"].items())
    local = f" (local 局部 {sizes['local_rope_theta']:,.0f})" if sizes["local_rope_theta"] else ""
    head = "tied 共享" if sizes["tied_head"] else "untied 独立"
    return [
        ("model 模型", report["path"]),
        ("family 系列", report["family"]),
        ("parameters 参数", f"{report['parameters']:,} ({_short(report['parameters'])})"),
        ("layers 层", f"{sizes['layers']}{window}"),
        ("width 宽度", f"{sizes['width']}, feed-forward 前馈 {sizes['ffn_width']}"),
        ("heads 头", f"{sizes['heads']} × {sizes['head_dim']}, key/value 键值 {sizes['kv_heads']}, {head} head 输出层"),
        ("context 上下文", f"{sizes['max_length']:,} tokens, RoPE θ {sizes['rope_theta']:,.0f}{local}"),
        *([("soft-caps 软上限", ", ".join(caps))] if caps else []),
        ("stored 存储", f"{_gigabytes(report['stored_bytes'])}: {kinds}"),
        (
            "memory 内存",
            f"bf16 {_gigabytes(memory['weights_bfloat16'])}, fp32 {_gigabytes(memory['weights_float32'])}; "
            f"cache 缓存 {_gigabytes(memory[f'cache_{CACHE_TOKENS}_tokens_bfloat16'])} per {CACHE_TOKENS:,} tokens; "
            f"training 训练 {_gigabytes(memory['training_float32_adam'])} + activations 激活",
        ),
    ]


def _text_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    tokens, chat = report["tokens"], report["chat"]
    if tokens is None:
        return []

    def name(token: dict[str, Any] | None) -> str:
        return "none 无" if token is None else f"{token['id']} {token['piece'] or '(no piece 无此词元)'}"

    rows = [
        ("vocabulary 词表", f"{tokens['pieces']:,} pieces 词元, {tokens['rows']:,} rows 行"),
        ("BOS, EOS, pad", " · ".join(name(tokens[key]) for key in ("bos", "eos", "pad"))),
        ("stops 停止", " · ".join(name(token) for token in tokens["stops"]) or "none 无"),
    ]
    if chat is None:
        return rows
    template = {
        "missing": "none in the checkpoint (a base model?); the family's is used 无，用本系列的格式",
        "equal": f"equal on {chat['compared']} probes 一致",
        "different": f"differs on {len(chat['differences'])} of {chat['compared']} probes 不一致",
    }[chat["template"]]
    tools = {
        "missing": "not in the template; JSON in <tool_call> is used 模板无工具，用 <tool_call> 中的 JSON",
        "equal": "as the template writes them 与模板一致",
        "different": "the template writes them otherwise 与模板不一致",
    }[chat["tools"]]
    rows += [("chat format 格式", chat["format"]), ("template 模板", template), ("tools 工具", tools)]
    rows += [("", f"skipped 跳过: {reason}") for reason in chat["skipped"]]
    return rows + ([("system 默认系统提示", chat["default_system"])] if chat["default_system"] else [])


def _short(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
