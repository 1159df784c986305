"""What the one loop has to know of an objective, as a value; and the value for each [objective] of a recipe.

Here two rooms meet: `data` knows how examples are read and packed, `objectives` what is computed of a batch. A new
objective is a config class, a loss, and one function of this file; the loop, the session and the plan never learn its
name.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol, TypeVar

import torch
from pydantic import Discriminator, Tag

from hanlin.data.budget import Packer, count_tokens
from hanlin.data.documents import prepare_documents
from hanlin.data.groups import Prompt, count_groups, pack_groups
from hanlin.data.loader import Order, PairOrder
from hanlin.data.mixture import MixtureOrder
from hanlin.data.pack import count_pairs, pack_ends, pack_pairs, pack_tokens
from hanlin.data.prepare import DataConfig, PreparedData, prepare_conversations, prepare_data
from hanlin.data.prompts import prepare_prompts
from hanlin.models.reward import add_score
from hanlin.models.transformer import Transformer
from hanlin.objectives.contrast import DpoConfig, SimpoConfig, dpo, simpo, with_reference
from hanlin.objectives.distillation import DistillationConfig, distillation, distillation_metrics, score_against
from hanlin.objectives.next_token import PretrainingConfig, SftConfig, next_token, score_texts, text_metrics
from hanlin.objectives.orpo import OrpoConfig, orpo
from hanlin.objectives.policy import RlhfConfig, answer_metrics, reinforce
from hanlin.objectives.reward import RewardConfig, reward, reward_metrics, score_rewards
from hanlin.objectives.scores import held_out_metrics, referenced_metrics, score_pairs
from hanlin.text.chat import ChatFormat
from hanlin.text.encode import stop_ids
from hanlin.text.tokenizer import Tokenizer
from hanlin.training.division import Division
from hanlin.training.rewards import check_rewards, open_judge
from hanlin.training.rollout import Rollouts
from hanlin.training.teacher import Teacher
from hanlin.types import Batch, Counts, EncodedPair, Example, Loss, Tokens

E = TypeVar("E", bound=Example)
Packed = Iterable[tuple[list[int], Batch]]  # what `data.pack.streams` yields


def _kind(value: Any) -> str:
    """The kind that a recipe or a config names; ORPO where a recipe names none."""
    return value.get("kind", "orpo") if isinstance(value, dict) else value.kind


ObjectiveConfig = Annotated[
    Annotated[OrpoConfig, Tag("orpo")]
    | Annotated[SftConfig, Tag("sft")]
    | Annotated[DpoConfig, Tag("dpo")]
    | Annotated[SimpoConfig, Tag("simpo")]
    | Annotated[RewardConfig, Tag("reward")]
    | Annotated[RlhfConfig, Tag("rlhf")]
    | Annotated[PretrainingConfig, Tag("pretraining")]
    | Annotated[DistillationConfig, Tag("distillation")],
    Discriminator(_kind),
]
"""The [objective] section; `kind` says which."""


class Prepare(Protocol):
    """Reads what the [data] section names and encodes it."""

    def __call__(
        self,
        config: DataConfig,
        format: ChatFormat,
        tokenizer: Tokenizer,
        /,
        *,
        system: str,
        cache: Path | None,
        on_note: Callable[[str], None],
    ) -> PreparedData: ...


class Arrange(Protocol):
    """Decides which examples make up each step."""

    def __call__(
        self, data: PreparedData, /, *, batch: int, epochs: float, steps: int | None, seed: int, shuffle: bool
    ) -> Order: ...


class Explore(Protocol):
    """Makes ready what turns prompts into answers to learn from; the model is the one that training starts from."""

    def __call__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        format: ChatFormat,
        /,
        *,
        seed: int,
        tokens_per_pass: int,
        division: Division,
        on_note: Callable[[str], None],
    ) -> Rollouts: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective(Generic[E]):
    """One way to train. `E` is its kind of example.

    `noun` is the plural of what it learns from; `title` names the method in the model card. `pack` and `count` are for
    training, `pack_scored` and `score` for held-out examples, whose scores `summarise` turns into the log's numbers.
    `adopt` may change the model before it is read (it gets the seed and the device) or load what goes with it,
    `refer` may add to the examples what the starting model says of them. `arrange` orders the examples into steps.
    `scored` and `attended` are the cost of one example: its predictions through the head and its query-key
    products; `scored_share` is the share of its stream tokens that go through the head. `step_line` and
    `held_out_line` are what people see, filled in from the numbers of a step and of `summarise`.

    Where the model learns from its own answers, examples are prompts: `explore` gives what makes groups of answers of
    them, which `pack` and `count` take, and what scores held-out ones instead of `score`. A step updates the weights
    `updates` times.
    """

    title: str
    noun: str
    prepare: Prepare
    pack: Packer[Any]
    pack_scored: Packer[E] | None = None
    count: Callable[[Iterable[Any]], Counts]
    loss: Callable[[Transformer, Batch, Counts], Loss]
    score: Callable[[Transformer, Packed], list[Any]] | None = None
    summarise: Callable[[Sequence[Any]], dict[str, float]]
    scored: Callable[[E], int]
    attended: Callable[[E], float]
    scored_share: Callable[[E], float]
    adopt: Callable[[Transformer, int, torch.device], None] | None = None
    arrange: Arrange
    refer: Callable[[Transformer, Sequence[E], Packed], Sequence[E]] | None = None
    explore: Explore | None = None
    updates: int = 1
    step_line: str = "loss {loss:.3f}"
    held_out_line: str


def objective_of(config: Any) -> Objective[Any]:
    """The objective that an [objective] section describes."""
    return OBJECTIVES[type(config)](config)


def _pairs(**own: Any) -> Objective[EncodedPair]:
    """What objectives on preference pairs share, where they do not go their own way."""
    shared: dict[str, Any] = {
        "noun": "pairs",
        "prepare": prepare_data,
        "pack": pack_pairs,
        "pack_scored": pack_pairs,
        "count": count_pairs,
        "score": score_pairs,
        "scored": lambda pair: len(pair.chosen) + len(pair.rejected),
        "attended": pair_attention,
        "arrange": in_memory,
        "scored_share": lambda pair: (pair.num_tokens - len(pair.prompt)) / pair.num_tokens,
        "step_line": "loss {loss:.3f} · accuracy {rewards/accuracies:.2f} · margin {rewards/margins:+.3f}",
        "held_out_line": "reward accuracy {eval_rewards/accuracies:.3f}, chosen NLL {eval_nll_loss:.3f}",
    }
    return Objective(**(shared | own))


def _orpo(config: OrpoConfig) -> Objective[EncodedPair]:
    prompt = config.scores_prompt
    return _pairs(
        loss=partial(orpo, config=config),
        title=f"ORPO (preset `{config.preset}`, weight {config.weight:g})",
        pack=partial(pack_pairs, score_prompt=prompt),
        count=partial(count_pairs, score_prompt=prompt),
        summarise=partial(held_out_metrics, weight=config.weight),
        scored=lambda pair: len(pair.chosen) + len(pair.rejected) + (len(pair.prompt) if prompt else 0),
        scored_share=lambda pair: (pair.num_tokens - (0 if prompt else len(pair.prompt))) / pair.num_tokens,
    )


def _dpo(config: DpoConfig) -> Objective[EncodedPair]:
    return _pairs(
        loss=partial(dpo, config=config),
        title=f"DPO (beta {config.beta:g})",
        summarise=partial(referenced_metrics, weight=config.beta),
        refer=with_reference,
    )


def _simpo(config: SimpoConfig) -> Objective[EncodedPair]:
    return _pairs(
        loss=partial(simpo, config=config),
        title=f"SimPO (beta {config.beta:g}, gamma ratio {config.gamma_ratio:g})",
        summarise=partial(held_out_metrics, weight=config.beta),
    )


def _reward(config: RewardConfig) -> Objective[EncodedPair]:
    return _pairs(
        title="reward model (Bradley-Terry)",
        pack=pack_ends,
        pack_scored=pack_ends,
        loss=reward,
        score=score_rewards,
        summarise=reward_metrics,
        scored=lambda pair: 0,
        scored_share=lambda pair: 0.0,
        adopt=lambda model, seed, device: add_score(model, seed=seed, device=device),
        held_out_line="pair accuracy {eval_rewards/accuracies:.3f}, margin {eval_rewards/margins:+.3f}",
    )


def _texts(**own: Any) -> Objective[Tokens]:
    """What objectives on single texts share, where they do not go their own way."""
    shared: dict[str, Any] = {
        "pack": pack_tokens,
        "pack_scored": pack_tokens,
        "count": count_tokens,
        "loss": next_token,
        "score": score_texts,
        "summarise": text_metrics,
        "scored": lambda example: sum(example.scored[1:]),
        "attended": lambda example: len(example.ids) ** 2 / 2,
        "scored_share": lambda example: sum(example.scored[1:]) / len(example.ids),
        "held_out_line": "NLL {eval_nll_loss:.3f}, perplexity {eval_perplexity:.2f}",
    }
    return Objective(**(shared | own))


def _sft(config: SftConfig) -> Objective[Tokens]:
    return _texts(
        title=f"supervised fine-tuning ({config.score} assistant turn)",
        noun="conversations",
        prepare=partial(prepare_conversations, score=config.score),
        arrange=in_memory,
    )


def _pretraining(config: PretrainingConfig) -> Objective[Tokens]:
    return _texts(
        title="continued pre-training",
        noun="pieces",
        prepare=prepare_documents,
        arrange=partial(on_disk, config=config),
    )


def _distillation(config: DistillationConfig) -> Objective[Tokens]:
    teacher = Teacher(config.teacher)
    read, arrange = partial(prepare_conversations, score=config.score), in_memory
    if config.examples == "documents":
        read, arrange = prepare_documents, partial(on_disk, config=PretrainingConfig(kind="pretraining"))

    def prepare(data: DataConfig, format: ChatFormat, tokenizer: Tokenizer, /, **given: Any) -> PreparedData:
        teacher.check(tokenizer)
        return read(data, format, tokenizer, **given)

    return _texts(
        title=f"distillation from {config.teacher} ({config.divergence}, temperature {config.temperature:g})",
        noun="pieces" if config.examples == "documents" else "conversations",
        prepare=prepare,
        arrange=arrange,
        adopt=teacher.open,
        loss=lambda model, batch, counts: distillation(model, batch, counts, teacher=teacher.model, config=config),
        score=lambda model, packed: score_against(model, packed, teacher=teacher.model, config=config),
        summarise=distillation_metrics,
        step_line="loss {loss:.3f} · divergence {divergence:.3f}",
        held_out_line="divergence {eval_divergence:.3f}, NLL {eval_nll_loss:.3f}",
    )


def _rlhf(config: RlhfConfig) -> Objective[Prompt]:
    def prepare(
        data: DataConfig,
        format: ChatFormat,
        tokenizer: Tokenizer,
        /,
        *,
        system: str,
        cache: Path | None,
        on_note: Callable[[str], None],
    ) -> PreparedData:
        check_rewards(config.rewards)
        number, longest = config.answers, config.max_tokens
        return prepare_prompts(data, format, tokenizer, num_answers=number, max_tokens=longest, system=system)

    def scored(prompt: Prompt) -> int:
        return prompt.num_answers * prompt.max_tokens

    return Objective(
        title=f"RLHF (REINFORCE, leave-one-out over {config.answers} answers, rewards {', '.join(config.rewards)})",
        noun="prompts",
        prepare=prepare,
        arrange=in_memory,
        pack=pack_groups,
        count=count_groups,
        loss=partial(reinforce, config=config),
        summarise=answer_metrics,
        scored=scored,
        attended=group_attention,
        scored_share=lambda prompt: scored(prompt) / prompt.num_tokens,
        explore=partial(rollouts, config=config),
        updates=config.updates,
        step_line="reward {reward:.3f} · KL {objective/kl:.2f} · length {completions/mean_length:.0f}",
        held_out_line="reward {eval_reward:.3f}, length {eval_completions/mean_length:.0f}",
    )


def rollouts(
    model: Transformer,
    tokenizer: Tokenizer,
    format: ChatFormat,
    /,
    *,
    seed: int,
    tokens_per_pass: int,
    division: Division,
    on_note: Callable[[str], None],
    config: RlhfConfig,
) -> Rollouts:
    """What RLHF samples and rewards answers with."""
    judges = [
        open_judge(name, device=model.device, tokens_per_pass=tokens_per_pass, on_note=on_note)
        for name in config.rewards
    ]
    stops = stop_ids(format, tokenizer, tokenizer.generation_stops)
    given = {"judges": judges, "seed": seed, "tokens_per_pass": tokens_per_pass, "division": division}
    return Rollouts(config, model, tokenizer, stop_ids=stops, **given)


def in_memory(
    data: PreparedData, *, batch: int, epochs: float, steps: int | None, seed: int, shuffle: bool
) -> PairOrder:
    """Every example once an epoch, shuffled; `steps` overrules `epochs`."""
    number = len(data.train)
    passes = epochs if steps is None else steps * batch / number
    return PairOrder(number, batch_pairs=batch, epochs=passes, seed=seed, shuffle=shuffle)


def on_disk(
    data: PreparedData,
    *,
    batch: int,
    epochs: float,
    steps: int | None,
    seed: int,
    shuffle: bool,
    config: PretrainingConfig,
) -> MixtureOrder:
    """Sources mixed by weight; an epoch is as many examples as there are."""
    return MixtureOrder(
        data.sizes,
        batch=batch,
        num_steps=steps if steps is not None else math.ceil(round(len(data.train) * epochs) / batch),
        seed=seed,
        weights=config.weights,
        final_weights=config.final_weights,
        final_share=config.final_share,
        shuffle=shuffle,
    )


def pair_attention(pair: EncodedPair) -> float:
    """Query-key products of a pair that shares its prompt."""
    prompt, chosen, rejected = len(pair.prompt), len(pair.chosen), len(pair.rejected)
    return prompt**2 / 2 + prompt * (chosen + rejected) + chosen**2 / 2 + rejected**2 / 2


def group_attention(prompt: Prompt) -> float:
    """Query-key products of a prompt and its answers, each of the greatest length."""
    length, answer = len(prompt.ids), prompt.max_tokens
    return length**2 / 2 + prompt.num_answers * (length * answer + answer**2 / 2)


OBJECTIVES: dict[type, Callable[[Any], Objective[Any]]] = {
    OrpoConfig: _orpo,
    SftConfig: _sft,
    DpoConfig: _dpo,
    SimpoConfig: _simpo,
    RewardConfig: _reward,
    RlhfConfig: _rlhf,
    PretrainingConfig: _pretraining,
    DistillationConfig: _distillation,
}
