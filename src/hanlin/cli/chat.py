"""`hanlin chat`: talk to a model in the terminal, or ask it one thing."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hanlin.cli.console import downloading, err, note, out, show_logs
from hanlin.errors import ConfigError
from hanlin.models.fetch import KNOWN_MODELS
from hanlin.serving.presets import PRESETS, named_preset
from hanlin.text.chat import FORMATS, named_format
from hanlin.text.tools import read_declarations

if TYPE_CHECKING:
    from hanlin.generation.assistant import Assistant
    from hanlin.generation.sampling import Sampling

Prompt = Annotated[str | None, typer.Option(help="Answer this and exit; - reads standard input. 只回答这一问")]
Tools = Annotated[Path | None, typer.Option(help="JSON list of the functions that the model may call. 可调用的工具")]
Base = Annotated[
    str | None,
    typer.Option(help="An adapter's base model, where it is not where the adapter says. 适配器的基础模型"),
]
Format = Annotated[str | None, typer.Option(help=f"Chat format, when the model's own is wrong: {', '.join(FORMATS)}.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as stored; bfloat16 when quantized.")]
Stats = Annotated[bool, typer.Option("--stats", help="After each answer: tokens, speed, why it ended. 显示速度")]


def chat(
    model: Annotated[str, typer.Argument(help=f"Directory, run, .gguf, hub id, or {', '.join(KNOWN_MODELS)}. 模型")],
    system: Annotated[str, typer.Option(help="System text; the role for role-play. 系统提示；角色扮演时为角色")] = "",
    preset: Annotated[str, typer.Option(help="How to ask; see above. 提问方式，见上")] = "zero-shot",
    prompt: Prompt = None,
    tools: Tools = None,
    base: Base = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest token. 温度")] = None,
    top_p: Annotated[float | None, typer.Option(help="Share of probability to choose from.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Number of tokens to choose from; 0 is all.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Least probability, as a share of the likeliest token's.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 repeats less. 重复惩罚")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens. 最长回答")] = 512,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers. 随机种子")] = None,
    format: Format = None,
    date: Annotated[str | None, typer.Option(help='What Llama 3.1 is told the date is: "26 Jul 2024".')] = None,
    dtype: Dtype = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto. 设备")] = "auto",
    markdown: Annotated[bool, typer.Option(help="Draw Markdown, in a terminal.")] = True,
    stats: Stats = False,
) -> None:
    """Talk to a model: many turns, Ctrl-C stops an answer, /help lists the commands. 与模型对话。"""
    chosen = named_preset(preset)
    if format:
        named_format(format)
    declared = read_tools(tools)
    if declared and (chosen.continues or chosen.examples):
        raise ConfigError(f"--tools needs a model that is asked in turns; --preset {preset} asks it otherwise")
    show_logs()
    from hanlin.serving.keyboard import open_reader, read_all
    from hanlin.serving.terminal import Chat

    filters = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    sampling = _sampling(filters | {"repetition_penalty": repetition_penalty}, max_tokens=max_tokens, seed=seed)
    question = read_all() if prompt == "-" else prompt
    if question is not None and not question.strip():
        raise ConfigError("--prompt is empty; give a question, or - and a question on standard input")
    assistant = open_assistant(model, base=base, dtype=dtype, device=device, format=format, date=date)
    if assistant.tokenizer.chat_template is None and not (chosen.continues or chosen.examples):
        note("没有对话模板：基础模型宜用 no chat template: base models do better with --preset few-shot, --preset raw")
    talk = Chat(
        assistant,
        sampling,
        read=open_reader(err),
        out=out,
        err=err,
        name=model,
        preset=chosen,
        system=system,
        tools=declared,
        markdown=markdown,
        stats=stats,
    )
    if question is None:
        talk.run()
    elif talk.ask(question).ended == "interrupted":
        sys.exit(130)


chat.__doc__ = f"{chat.__doc__}\n\n\b\nPresets 提问方式:\n" + "\n".join(
    f"  {name:<17} {preset.meaning}" for name, preset in PRESETS.items()
)


def _sampling(given: "dict[str, float | None]", *, max_tokens: int, seed: int | None) -> "Sampling":
    """What the user gave; the rest is as `Sampling` has it."""
    from hanlin.generation.sampling import Sampling

    values = {name: value for name, value in given.items() if value is not None}
    return Sampling(max_tokens=max_tokens, seed=seed, **values)  # pyright: ignore[reportArgumentType]


def read_tools(path: Path | None) -> tuple[dict[str, Any], ...]:
    """The functions that a JSON file declares, in OpenAI's form or bare; none without a file."""
    if path is None:
        return ()
    try:
        declared = read_declarations(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--tools {path} cannot be read ({error}); name a JSON file") from None
    if not declared:
        raise ConfigError(f"--tools {path} declares no function; expected a list of {{name, description, parameters}}")
    return declared


def open_assistant(
    name: str, *, base: str | None = None, dtype: str, device: str, format: str | None, date: str | None
) -> "Assistant":
    """Fetch, open and say what the user should know: terms, a missing or different chat template."""
    from hanlin.api import assistant, load, locate
    from hanlin.text.audit import audit

    if name in KNOWN_MODELS:
        known = KNOWN_MODELS[name]
        note(f"{known.title}: {known.terms} {known.terms_url}")
    with downloading() as on_progress:
        path = locate(name, on_progress=on_progress)
    with err.status("正在载入 loading …") if err.is_terminal else nullcontext():
        model, tokenizer = load(path, base=base, dtype=dtype, device=device)
        made = assistant(model, tokenizer, format=format, date=date)
    note(f"{path.name} · {made.format.name} · {str(model.dtype).removeprefix('torch.')} · {model.device}")
    if (found := audit(made.format, tokenizer, date=date)).differences:
        note(f"{found.notice}; hanlin inspect {name} 可查看差异 shows them")
    return made
