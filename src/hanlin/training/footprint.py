"""What fills the memory of a device during a run: counted from shapes and dtypes, before anything is allocated.

A run's memory is what it holds all the time, and the largest of what it needs for a while: a pass, answers that are
sampled, weights that are read or written. One number is not counted but measured, on a CPU (docs/journal.md):
`PROCESS`, what Python, torch, the kernels that oneDNN keeps and the holes in the heap take. It hardly grows with the
pass: 0.6 to 1.1 GB from 500 to 4,096 tokens.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Literal

import torch

from hanlin.models.config import ModelConfig
from hanlin.models.lora import TARGETS, Target
from hanlin.models.nf4 import BYTES_PER_NUMBER
from hanlin.models.parts import WHOLE, Part, divide, part_of
from hanlin.models.transformer import Transformer
from hanlin.objectives.likelihood import SLAB_WORDS
from hanlin.training.fit import StepShape, choose_way, compiles
from hanlin.training.optim import STATE_BYTES
from hanlin.training.recipe import Recipe
from hanlin.training.workload import Workload

PROCESS = {"cpu": 0.85e9, "cuda": 0.6e9}  # bytes; of CUDA's context and kernels a guess
HOLES = {"cpu": 0.0, "cuda": 0.1}  # of the bytes that a pass keeps; CUDA's a guess
BYTES_PER_ID = 36  # of a token in a list of Python, where examples are kept in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Numbers of a model by what becomes of them: matrices of the layers, vectors (norms and biases), the embedding,
    an untied head; `adapters` are LoRA's. `frozen` of these never learn.
    """

    maps: int
    vectors: int
    embedding: int
    head: int
    adapters: int
    adapted: int  # numbers of the maps below adapters
    trained: int
    largest: tuple[str, int]  # name and numbers of the largest parameter
    largest_map: int
    has_head: bool  # a reward model has none
    trains_head: bool
    num_adapters: int

    @property
    def parameters(self) -> int:
        """Of the model itself."""
        return self.maps + self.vectors + self.embedding + self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes on one device. `recomputed_layers` and `head_mode` are how a step was made to fit."""

    process: float
    weights: float
    copies: float  # in the dtype of matrix products
    gradients: float
    states: float
    others: float  # models beside it: RLHF's start, reward models, a teacher
    activations: float
    logits: float
    scratch: float  # of the head's gradient, or of one unpacked matrix
    holes: float
    answering: float  # the engine's matrices and its cache
    loading: float
    saving: float
    largest: tuple[str, float]
    recomputed_layers: int
    head_mode: Literal["fast", "lean"]

    @property
    def held(self) -> float:
        """All the time."""
        return self.process + self.weights + self.copies + self.gradients + self.states + self.others

    @property
    def passing(self) -> float:
        """For the largest pass."""
        return self.activations + self.logits + self.scratch + self.holes

    @property
    def peak(self) -> float:
        """The most at any time."""
        return max(self.held + max(self.passing, self.answering, self.saving), self.process + self.loading)

    def parts(self) -> Iterator[tuple[str, float]]:
        """What is there at the peak, by name, the largest first."""
        named = {
            "process": self.process,
            "weights": self.weights,
            "copies in the compute dtype": self.copies,
            "gradients": self.gradients,
            "optimizer": self.states,
            "other models": self.others,
        }
        most = max(self.passing, self.answering, self.saving)
        if most == self.passing:
            named |= {"activations": self.activations, "logits": self.logits, "buffers": self.scratch}
            named |= {"holes in the heap": self.holes}
        elif most == self.answering:
            named |= {"sampling answers": self.answering}
        else:
            named |= {"merging what is saved": self.saving}
        yield from sorted(((name, size) for name, size in named.items() if size), key=lambda part: -part[1])


def count_sizes(config: ModelConfig, recipe: Recipe, part: Part = WHOLE) -> Sizes:
    """Count the numbers of a model, or of a part of it; takes no memory."""
    lora, frozen, is_reward = recipe.lora, recipe.training.frozen_layers, recipe.objective.kind == "reward"
    shapes = dict(_shapes(config, part))
    if is_reward:  # the head goes; one row comes
        shapes.pop("unembed.weight", None)
    numbers = {name: prod(shape) for name, shape in shapes.items()}
    maps = {name: numbers[name] for name, shape in shapes.items() if name.startswith("blocks.") and len(shape) > 1}
    embedding, head = numbers["embed.weight"], numbers.get("unembed.weight", 0)
    still = {name for name in numbers if name.startswith("blocks.") and int(name.split(".")[1]) < frozen}
    still |= {"embed.weight"} if frozen else set()
    targets: Iterable[Target] = () if lora is None else TARGETS if lora.targets == "all-linear" else lora.targets
    places = tuple(f"{TARGETS[target]}.weight" for target in targets)
    adapted = [shapes[name] for name in maps if name.endswith(places)]
    adapters = 0 if lora is None else lora.rank * sum(map(sum, adapted))
    learning = sum(number for name, number in numbers.items() if name not in still) if lora is None else adapters
    largest = max(numbers, key=numbers.__getitem__)
    return Sizes(
        maps=sum(maps.values()),
        vectors=sum(numbers.values()) - sum(maps.values()) - embedding - head,
        embedding=embedding,
        head=head,
        adapters=adapters,
        adapted=sum(map(prod, adapted)),
        trained=learning + (config.width if is_reward else 0),
        largest=(largest, numbers[largest]),
        largest_map=max(maps.values()),
        has_head=not is_reward,
        trains_head=lora is None and not is_reward and (head > 0 or not frozen),
        num_adapters=len(adapted),
    )


@cache
def _shapes(config: ModelConfig, part: Part) -> Mapping[str, tuple[int, ...]]:
    """Shapes of a language model's parameters, by name."""
    with torch.device("meta"):
        model = Transformer(config)
    divide(model, part)
    return {name: tuple(one.shape) for name, one in model.named_parameters()}


def footprint(
    config: ModelConfig, recipe: Recipe, load: Workload, *, device: str, capacity: float, ranks: int = 1
) -> Footprint:
    """The memory of a device of `capacity` bytes: on a tighter one, more layers are computed twice, as the run itself
    would decide. `device` is its kind, "cpu" or "cuda"; over several `ranks` weights, gradients and states are divided
    (FSDP2), and one layer at a time is whole. Under `parallel.tensor` it is the memory of one of a team.
    """
    part, together = part_of(config, 0, recipe.parallel.tensor), count_sizes(config, recipe)
    sizes, stored = count_sizes(config, recipe, part), _stored(recipe)
    others, answering = _rollout(config, recipe, load, sizes, together, device=device, ranks=ranks)
    config = part.narrowed(config)
    weights, copies, gradients, states = _learning(config, recipe, load, sizes, ranks=ranks)
    process = PROCESS[device] + (BYTES_PER_ID * load.examples if device == "cpu" else 0)
    scratch = _scratch(config, sizes, recipe)
    held = process + weights + copies + gradients + states + others + scratch
    room = (capacity - held) / (1 + HOLES[device])
    way = choose_way(config, recipe.training, _shape(config, recipe, load, sizes, device=device), room=room)
    packs_here = recipe.model.quantization is not None and device == "cpu"
    saved = sizes.adapted * (4 if recipe.output.save_dtype == "float32" else 2)
    return Footprint(
        process=process,
        weights=weights,
        copies=copies,
        gradients=gradients,
        states=states,
        others=others,
        activations=way.activations,
        logits=way.logits,
        scratch=scratch,
        holes=HOLES[device] * way.activations,
        answering=answering,
        loading=weights + (stored * sizes.maps / config.num_layers if packs_here else 0),
        saving=min(saved, 5e9) if device == "cpu" else 0,
        largest=(sizes.largest[0], float(sizes.largest[1] * stored)),
        recomputed_layers=way.recomputed_layers,
        head_mode=way.head,
    )


def _stored(recipe: Recipe) -> int:
    """Bytes of a weight."""
    return 4 if recipe.model.dtype == "float32" else 2


def _compute(recipe: Recipe) -> torch.dtype:
    return torch.float32 if recipe.model.compute == "float32" else torch.bfloat16


def _learning(
    config: ModelConfig, recipe: Recipe, load: Workload, sizes: Sizes, *, ranks: int
) -> tuple[float, float, float, float]:
    """Bytes of weights, of their copies in the compute dtype, of gradients and of optimizer states."""
    training, stored, itemsize = recipe.training, _stored(recipe), _compute(recipe).itemsize
    packed = sizes.maps if recipe.model.quantization else 0
    weights = stored * (sizes.parameters - packed) + BYTES_PER_NUMBER * packed + 4 * sizes.adapters
    # An adapted map casts its weight anew for each product; of the embedding only a tied head is a product.
    products = sizes.maps - max(sizes.adapted, packed) + (sizes.head or sizes.embedding) * sizes.has_head
    copies = itemsize * products if stored != itemsize else 0
    per_gradient = 4 if recipe.lora else stored
    at_once = training.step_in_backward and load.passes == 1
    gradients = per_gradient * (sizes.largest[1] if at_once else sizes.trained)
    states = STATE_BYTES[training.optimizer] * sizes.trained
    if ranks == 1:
        return weights, copies, gradients, states
    whole = 2 * itemsize * max(sizes.maps / config.num_layers, sizes.embedding)
    return weights / ranks, whole, gradients / ranks, states / ranks


def _shape(config: ModelConfig, recipe: Recipe, load: Workload, sizes: Sizes, *, device: str) -> StepShape:
    """The largest pass."""
    compiled = compiles(recipe.training, device, eager=recipe.stays_eager)
    return StepShape(
        tokens=load.tokens,
        predictions=load.predictions * sizes.has_head,
        compute=_compute(recipe),
        residual_bytes=max(_stored(recipe), _compute(recipe).itemsize),
        head_is_trained=sizes.trains_head,
        fused=recipe.lora is None and not compiled,
        rank=recipe.lora.rank * sizes.num_adapters // config.num_layers if recipe.lora else 0,
        frozen=recipe.training.frozen_layers,
    )


def _scratch(config: ModelConfig, sizes: Sizes, recipe: Recipe) -> float:
    """What the head's gradient needs beside it: a slab in the compute dtype, and widened. Where the head is frozen, one
    matrix of a layer.
    """
    itemsize = _compute(recipe).itemsize
    if not sizes.trains_head:
        return itemsize * sizes.largest_map
    slab = min(SLAB_WORDS, config.vocab_size) * config.width
    return slab * (itemsize + (_stored(recipe) if _stored(recipe) != itemsize else 0))


def _copied(sizes: Sizes, stored: int, itemsize: int) -> float:
    """Bytes of a frozen copy (models/frozen.py)."""
    return itemsize * (sizes.maps + sizes.head) + stored * (sizes.embedding + sizes.vectors)


def _rollout(
    config: ModelConfig, recipe: Recipe, load: Workload, sizes: Sizes, whole: Sizes, *, device: str, ranks: int
) -> tuple[float, float]:
    """Bytes of the models beside the one that learns, and of the engine while it samples answers. `config` and `whole`
    are of the whole model, which is put together where a device has a part of it.
    """
    if not load.answers:
        return load.others, 0
    stored, itemsize = _stored(recipe), _compute(recipe).itemsize
    others: float = load.others
    if recipe.lora is None:  # a frozen copy; adapters are switched off instead
        others += _copied(sizes, stored, itemsize) / ranks
    matrices = whole.maps + (whole.head or whole.embedding)
    copied = itemsize * matrices if device == "cpu" and itemsize == 2 else 0  # laid out
    if max(ranks, recipe.parallel.tensor) > 1:
        copied += _copied(whole, stored, itemsize)
    elif recipe.lora:
        copied += stored * whole.adapted
    elif not copied and stored != itemsize:
        copied = itemsize * matrices
    # Keys are fp32 on a CPU (generation/decoder.py); elsewhere entries are reserved for the model's whole length.
    a_token = (
        config.num_layers * config.num_kv_heads * config.head_dim * (itemsize + (4 if device == "cpu" else itemsize))
    )
    length = load.answer_tokens if device == "cpu" else config.max_length
    cache = load.answers * length * a_token
    sampling = 3 * 4 * load.answers * config.vocab_size
    return others, copied + cache + sampling
