"""The front door for programs: `load`, `train` and `stream`. It only wires rooms together.

import hanlin
model, tokenizer = hanlin.load("DIR or FILE.gguf or hub-id", dtype="float32", device="cpu")
logits_TV = model.logits(ids)
run = hanlin.train("recipe.toml", overrides=["training.steps=20"])
for text in hanlin.stream(model, tokenizer, messages, temperature=0.6, top_p=0.9, max_tokens=256): ...
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from hanlin.config import load_recipe
from hanlin.errors import ConfigError
from hanlin.evaluation.samples import language_numbers, sample_replies
from hanlin.generation.assistant import Assistant
from hanlin.generation.sampling import Sampling
from hanlin.models.adapters import is_adapter, merge_adapter, text_place
from hanlin.models.fetch import resolve
from hanlin.models.transformer import Transformer
from hanlin.models.weights import load_model
from hanlin.text.audit import choose_format
from hanlin.text.chat import named_format
from hanlin.text.encode import check_vocabulary
from hanlin.text.tokenizer import Tokenizer
from hanlin.text.tools import read_calls, read_declarations
from hanlin.training.checkpoint import model_in
from hanlin.training.parallel import joined
from hanlin.training.recipe import Recipe
from hanlin.training.session import Material, Session, is_finished, open_material, run_directory
from hanlin.training.trackers import Look, Looked, Sample
from hanlin.training.work import Observer
from hanlin.types import Message

_log = logging.getLogger(__name__)
# Reading a model's weights into an engine takes a moment: `stream` keeps the engine of each live model until its
# weights change.
_assistants: "WeakKeyDictionary[Transformer, tuple[int, Assistant]]" = WeakKeyDictionary()


def locate(name: str | Path, *, on_progress: Callable[[str, int, int], None] | None = None) -> Path:
    """The path of a model by any name that we take; for a run that did not finish, its newest checkpoint."""
    path = resolve(str(name)) if on_progress is None else resolve(str(name), on_progress=on_progress)
    found = model_in(path)
    if found != path:
        _log.warning("%s is not finished: using its newest checkpoint %s", path, found.name)
    return found


def load(
    name: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
) -> tuple[Transformer, Tokenizer]:
    """Open a model directory, a run directory, a GGUF file, a known small model ("gemma-3-270m", "smollm2") or a hub
    id.

    `device` "auto" is CUDA where there is one. `dtype` is "float32", "bfloat16", "float16", a torch dtype, or "auto"
    (as stored; bfloat16 for quantized GGUF). `base` is the model below an adapter, where that is not at the place that
    the adapter names. Raises CheckpointError or FetchError with the next step when the model cannot be opened.
    """
    path = locate(name)
    below = None if base is None else locate(base)
    if below is not None and not is_adapter(path):
        raise ConfigError(f"{path} is no adapter: it is opened without a base model")
    own_text = (path / "tokenizer.json").exists()
    tokenizer = Tokenizer.open(text_place(path) if below is None else path if own_text else below)
    model = load_model(path if below is None else below, dtype=dtype, device=device)
    if below is not None:
        with torch.no_grad():
            merge_adapter(model, path)
    check_vocabulary(tokenizer, model.config.vocab_size)
    return model, tokenizer


def stream(
    model: Transformer,
    tokenizer: Tokenizer,
    messages: str | Sequence[Message | Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    temperature: float = 0.6,
    top_p: float = 0.9,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    max_tokens: int = 256,
    seed: int | None = None,
) -> Iterator[str]:
    """Yield the answer to `messages` piece by piece, whole characters only.

    `messages` is a question, or a list of `Message` or {"role", "content"} that ends with a user turn, or a tool's.
    `tools` are the functions that the model may call, in OpenAI's form or bare; `read_answer` reads its calls.
    Temperature 0 is greedy. Raises TemplateError for conversations that the model's format cannot hold, ConfigError for
    sampling values out of range.
    """
    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
        seed=seed,
    )
    return assistant(model, tokenizer).stream(as_messages(messages), sampling, tools=read_declarations(list(tools)))


def read_answer(model: Transformer, tokenizer: Tokenizer, text: str) -> Message:
    """What `stream` gave, joined, as a message: its text, and the calls at its end."""
    return assistant(model, tokenizer).format.parse(text)


def train(
    recipe: str | Path, *, overrides: Sequence[str] = (), resume: bool = False, observer: Observer | None = None
) -> Path:
    """Run a recipe, with `section.key=value` overrides; returns the run directory, which is a model directory when the
    run is done.

    Held-out pairs are scored before, during and after, as the recipe says. Ctrl-C finishes the step and saves a
    checkpoint; `resume=True` goes on from the newest one. `observer` is told of every step (metrics.jsonl is written in
    any case).
    """
    path = Path(recipe)
    resolved = load_recipe(Recipe, path, overrides)
    directory = run_directory(resolved, path)
    if resume and is_finished(directory, resolved):
        return directory
    with joined(resolved.parallel, resolved.training.device) as world:
        with world.first_of_machine():
            material = open_material(resolved)
        session = Session(material, directory, resume=resume, world=world)
        if session.train(observer, look=sampler(material)):
            session.finish()
    return directory


def sampler(material: Material) -> Look:
    """What asks a model the fixed prompts of a recipe's [track], in its chat format and after its system text."""
    recipe = material.recipe

    def look(model: Transformer) -> Looked:
        made = Assistant(model, material.tokenizer, material.format, extra_stops=material.tokenizer.generation_stops)
        replies = sample_replies(
            made, recipe.track.samples, max_tokens=recipe.track.sample_tokens, system=recipe.chat.system
        )
        samples = (Sample(reply.prompt.messages[-1].content, reply.text, reply.ended) for reply in replies)
        return Looked(tuple(samples), language_numbers(replies))

    return look


def as_messages(messages: str | Sequence[Message | Mapping[str, Any]]) -> list[Message]:
    """A question, `Message`s or {"role", "content"} mappings, as `Message`s; an assistant's may have "tool_calls"."""
    if isinstance(messages, str):
        return [Message("user", messages)]
    made = []
    for number, message in enumerate(messages):
        if isinstance(message, Message):
            made.append(message)
        elif {"role", "content"} <= message.keys():
            calls = read_calls(message["tool_calls"]) if message.get("tool_calls") else ()
            made.append(Message(message["role"], message["content"] or "", calls))
        else:
            raise ConfigError(f'message {number} has {sorted(message)}; expected {{"role": ..., "content": ...}}')
    return made


def assistant(
    model: Transformer, tokenizer: Tokenizer, *, format: str | None = None, date: str | None = None
) -> Assistant:
    """The model's `Assistant`, made when first asked for and again after its weights changed. `format` names another
    chat format.
    """
    version = sum(parameter._version for parameter in model.parameters())
    known = _assistants.get(model)
    if known is not None and known[0] == version and format is None and known[1].tokenizer is tokenizer:
        return known[1]
    chat = named_format(format) if format else choose_format(tokenizer, date=date)
    chat = replace(chat, date=date) if date else chat
    made = Assistant(model, tokenizer, chat, extra_stops=tokenizer.generation_stops)
    _assistants[model] = (version, made)
    return made
