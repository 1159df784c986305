"""What a run asks of its device, read from the data before anything is computed: its largest passes, its products."""

from dataclasses import dataclass, replace
from pathlib import Path

from hanlin.data.budget import split_by_budget
from hanlin.models.config import ModelConfig
from hanlin.models.fetch import resolve
from hanlin.models.lora import target_shapes
from hanlin.models.weights import count_parameters, open_checkpoint
from hanlin.objectives.distillation import DistillationConfig
from hanlin.objectives.policy import RlhfConfig
from hanlin.training.fit import compiles
from hanlin.training.rollout import NUM_SLOTS
from hanlin.training.session import Material

_LOOKED_AT = 100  # steps whose packing is tried; of a longer run the longest example stands for the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The most that a run asks for at a time. `tokens` and `predictions` (stream positions that go through the head) of
    a pass; `longest` is the largest example, which no budget divides; `passes` of a step. Where answers are sampled:
    how many at once, and the tokens of each with its prompt. `examples` is the number of ids that are kept in memory,
    `others` the bytes of models beside the one that learns, which the recipe names: reward models, a teacher.
    """

    tokens: int
    predictions: int
    longest: int
    passes: int = 1
    answers: int = 0
    answer_tokens: int = 0
    examples: int = 0
    others: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a whole run computes: examples, tokens of its streams, of the same rows computed apart, and products."""

    examples: int
    stream_tokens: int
    logical_tokens: int
    flops: float


def read_workload(material: Material, device: str) -> Workload:
    """The largest passes of the first steps, as they will be packed on this kind of device."""
    recipe, objective, order = material.recipe, material.objective, material.order
    training, examples, typical = recipe.training, material.data.train, material.data.typical
    budget, longest = training.tokens_per_pass, max(example.num_tokens for example in typical)
    tokens = predictions = passes = 0
    for step in range(min(material.num_steps, _LOOKED_AT)):
        chosen = [examples[index] for index in order.step(step)]
        packed = split_by_budget(chosen, max_tokens=budget)
        passes = max(passes, len(packed))
        for indices in packed:
            inside = [chosen[index] for index in indices]
            tokens = max(tokens, sum(one.num_tokens for one in inside))
            predictions = max(predictions, round(sum(one.num_tokens * objective.scored_share(one) for one in inside)))
    if material.num_steps > _LOOKED_AT:
        tokens = max(tokens, longest)
    if compiles(training, device, eager=recipe.stays_eager):
        tokens = max(tokens, budget)
    kept = sum(one.num_tokens for one in examples) if isinstance(examples, list | tuple) else 0
    load = Workload(tokens=tokens, predictions=predictions, longest=longest, passes=passes, examples=kept)
    if isinstance(recipe.objective, RlhfConfig):
        return _with_answers(load, material, recipe.objective)
    if isinstance(recipe.objective, DistillationConfig):  # it is held in the dtype of the student's products
        itemsize = 4 if recipe.model.compute == "float32" else 2
        return replace(load, others=count_parameters(_teacher(recipe.objective)) * itemsize)
    return load


def _with_answers(load: Workload, material: Material, config: RlhfConfig) -> Workload:
    """What sampling adds."""
    prompts = max(len(prompt.ids) for prompt in material.data.typical)
    judges = 0
    for name in filter(lambda name: Path(name).is_dir(), config.rewards):
        opened = open_checkpoint(Path(name))
        judges += count_parameters(opened.config) * opened.dtype.itemsize
    answers = min(NUM_SLOTS, material.recipe.training.batch_pairs * config.answers)
    return replace(load, answers=answers, answer_tokens=prompts + config.max_tokens, others=judges)


def _teacher(config: DistillationConfig) -> ModelConfig:
    return open_checkpoint(resolve(config.teacher)).config


def read_work(material: Material, config: ModelConfig) -> Work:
    """The run's products: of the decoder for every token, of the head for every scored one, of attention by length."""
    recipe, objective, order = material.recipe, material.objective, material.order
    examples, lora = material.data.train, material.recipe.lora
    chosen = [examples[index] for step in range(material.num_steps) for index in order.step(step)]
    stream = sum(example.num_tokens for example in chosen)
    scored = sum(map(objective.scored, chosen))
    body, head = _matrices(config)
    quadratic = sum(map(objective.attended, chosen))
    heads = config.num_layers * config.num_heads * config.head_dim
    adapters = 0 if lora is None else lora.rank * sum(map(sum, target_shapes(config, lora)))
    # Forward, gradient of the input, gradient of the weight: a frozen weight has none, a frozen layer neither.
    still = recipe.training.frozen_layers / config.num_layers
    layers = (2 if lora else 3) * (1 - still) + still
    heads_products = 2 if lora or (still and config.tied_head) else 3
    # Answers go through the model and the one that it started from before they are learnt from, perhaps several times.
    before, times = (2, objective.updates) if isinstance(recipe.objective, RlhfConfig) else (0, 1)
    products = 2.0 * ((times * layers + before) * body * stream + (times * heads_products + before) * head * scored)
    if isinstance(recipe.objective, DistillationConfig):
        teacher = _teacher(recipe.objective)
        its_body, its_head = _matrices(teacher)
        its_heads = teacher.num_layers * teacher.num_heads * teacher.head_dim
        products += 2.0 * (its_body * stream + its_head * scored) + 4.0 * its_heads * quadratic
    return Work(
        examples=len(chosen),
        stream_tokens=stream,
        logical_tokens=sum(example.num_logical_tokens for example in chosen),
        flops=products + times * 3 * (2.0 * adapters * stream + 4.0 * heads * quadratic),
    )


def _matrices(config: ModelConfig) -> tuple[int, int]:
    """Numbers that a token of the stream, and a predicted one, is multiplied with: the decoder's and the head's."""
    head = config.vocab_size * config.width
    return count_parameters(config) - head * (1 if config.tied_head else 2), head
