"""What a run will cost, before any weight is read: steps, tokens, time and memory, from the recipe, the data and the
model's header.

Memory is counted (training/footprint.py). Time is counted too, in products and in bytes that updates read and
write, and divided by what this machine does of both in a second of trying.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hanlin.errors import ConfigError
from hanlin.models.config import ModelConfig
from hanlin.models.devices import pick_device
from hanlin.models.families import config_from_hf
from hanlin.models.parts import part_of
from hanlin.models.weights import count_parameters, open_checkpoint
from hanlin.text.encode import check_vocabulary
from hanlin.training.fit import USABLE
from hanlin.training.footprint import Footprint, count_sizes, footprint
from hanlin.training.learning import beyond_context, check_layers, check_model, check_runs_here
from hanlin.training.optim import UPDATE_BYTES
from hanlin.training.recipe import Recipe
from hanlin.training.remedies import verdicts
from hanlin.training.room import free_memory
from hanlin.training.session import Material
from hanlin.training.speed import Speed, measure_speed
from hanlin.training.workload import read_work, read_workload

# Share of the speed of a layer's products that a whole pass reaches, norms, attention and the rest included: measured
# 0.40 to 0.55 on 2 CPU cores (docs/journal.md); the GPU's is a guess.
EFFICIENCY = 0.45
_GIGA = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cost of one run. `speed` is None where its device is not here; `traffic` is in bytes."""

    num_steps: int
    epochs: float
    stream_tokens: int
    logical_tokens: int
    num_parameters: int
    num_trained: int
    adapts: bool
    flops: float
    traffic: float
    speed: Speed | None
    memory: Footprint
    cards: tuple[str, ...]
    device: str
    ranks: int
    beyond: str
    obstacle: str

    @property
    def seconds(self) -> float | None:
        """Of all steps; evaluations, checkpoints and sampled answers are not counted."""
        if self.speed is None:
            return None
        return self.flops / (EFFICIENCY * self.speed.products) + self.traffic / self.speed.bandwidth

    def lines(self) -> Iterator[str]:
        """The plan in words."""
        saved = (
            f" ({self.logical_tokens:,} if every row were computed apart: sharing saves "
            f"{1 - self.stream_tokens / self.logical_tokens:.0%})"
        )
        shared = saved if self.stream_tokens < self.logical_tokens else ""
        yield f"{self.num_steps} steps, {self.epochs:.2f} epochs, {self.stream_tokens:,} stream tokens{shared}"
        if self.num_trained != self.num_parameters:
            share = self.num_trained / self.num_parameters
            what = "numbers of LoRA adapters beside" if self.adapts else "of"
            yield f"trains {self.num_trained:,} {what} {self.num_parameters:,} numbers ({share:.2%})"
        yield self._time()
        yield from self._memory()
        yield from self.cards
        if self.beyond:
            yield self.beyond
        if self.obstacle:
            yield f"cannot run on this machine: {self.obstacle}"

    def _time(self) -> str:
        if self.speed is None or self.seconds is None:
            return f"{self.flops / 1e12:,.0f} TFLOP; this machine has no {self.device} to measure the time on"
        a_step = self.seconds / self.num_steps
        shown = _duration(a_step) if a_step >= 10 else f"{a_step:.2g} s"
        return (
            f"about {_duration(self.seconds)} on {self.device}, {shown} a step: {self.flops / 1e12:,.0f} TFLOP at "
            f"{EFFICIENCY:.0%} of {self.speed.products / _GIGA:,.0f} GFLOP/s measured, updates of "
            f"{self.traffic / _GIGA:,.0f} GB at {self.speed.bandwidth / _GIGA:.0f} GB/s"
        )

    def _memory(self) -> Iterator[str]:
        memory = self.memory
        parts = ", ".join(f"{name} {size / _GIGA:.2f}" for name, size in memory.parts())
        each = f" on each of {self.ranks} devices" if self.ranks > 1 else ""
        yield f"about {memory.peak / _GIGA:.1f} GB{each}: {parts}"
        name, size = memory.largest
        yield f"largest single tensor: {name}, {size / _GIGA:.2f} GB"


def make_plan(material: Material, *, ranks: int = 1) -> Plan:
    """Estimate a run. Takes about a second: the machine's speed is measured. `ranks` is the number of devices that the
    weights are divided over (FSDP2); under parallel.tensor the plan is of one device of a team. A run on CUDA can be
    planned on a machine without: its time is left out then.

    Raises ConfigError for a tokenizer that does not fit the model, for more frozen layers than there are, or for heads
    that parallel.tensor does not divide.
    """
    recipe, config = material.recipe, read_config(material.source)
    check_vocabulary(material.tokenizer, config.vocab_size)
    check_layers(recipe, config)
    name = recipe.training.device
    device = None if name.startswith("cuda") and not torch.cuda.is_available() else pick_device(name)
    kind = device.type if device else "cuda"
    part = part_of(config, 0, recipe.parallel.tensor)
    here = part.narrowed(config)
    load, work = read_workload(material, kind), read_work(material, here)
    capacity = USABLE * free_memory(device) if device else float("inf")
    memory = footprint(config, recipe, load, device=kind, capacity=capacity, ranks=ranks)
    compute = torch.float32 if recipe.model.compute == "float32" else torch.bfloat16
    updated = count_sizes(config, recipe, part).trained * material.num_steps * material.objective.updates
    again = 2.0 * work.stream_tokens * count_parameters(here) * memory.recomputed_layers / config.num_layers
    return Plan(
        num_steps=material.num_steps,
        epochs=work.examples / len(material.data.train),
        stream_tokens=work.stream_tokens,
        logical_tokens=work.logical_tokens,
        num_parameters=count_parameters(config),
        num_trained=count_sizes(config, recipe).trained,
        adapts=recipe.lora is not None,
        flops=work.flops + again,
        traffic=UPDATE_BYTES[recipe.training.optimizer] * updated,
        speed=measure_speed(device, compute, config) if device else None,
        memory=memory,
        cards=tuple(verdicts(config, recipe, load, device=kind, ranks=ranks)),
        device=str(device or name),
        ranks=ranks * part.size,
        beyond=beyond_context(material.data.typical, config),
        obstacle=_obstacle(recipe, config, device, material.source, ranks=ranks * part.size),
    )


def _obstacle(recipe: Recipe, config: ModelConfig, device: torch.device | None, source: Path, *, ranks: int) -> str:
    """Why the recipe cannot be run here, or ""."""
    if _lacks_weights(source):
        return f"{source} has a config and no weights; download the model again"
    try:
        check_runs_here(recipe, device or torch.device("cuda"), ranks=ranks)
        if device:
            check_model(recipe, config, device)
    except ConfigError as error:
        return str(error).splitlines()[0]
    return "" if device else f'training.device = "{recipe.training.device}" is not there'


def read_config(source: Path) -> ModelConfig:
    """The config of a model; of a directory without weights too, which is enough to plan with."""
    if _lacks_weights(source):
        described = source / "config.json"
        return config_from_hf(json.loads(described.read_bytes()), source=str(described))
    return open_checkpoint(source).config


def _lacks_weights(source: Path) -> bool:
    return (source / "config.json").is_file() and not any(source.glob("*.safetensors*"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
