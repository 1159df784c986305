"""Rollouts: what RLHF learns from is made by the model itself, at the start of every step.

Answers are sampled from the weights as they are, which the engine reads anew each time; so nothing can be packed ahead
of a step, as it is for other objectives. Seeds follow from the run's seed, the step and the prompt's place in it alone:
a resumed run samples the same answers. The answers' log-probabilities come from the pass that learns from them too, not
from the engine, whose kernels round differently. The starting model is the model without its adapters, or a frozen copy
(models/frozen.py). So an answer costs its generation and two passes without gradients, before the one with.

Several ranks divide the prompts to answer, and then the answers to score. Where they divide the model too, each puts
all of it together for as long as it samples; the starting model stays divided.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean, stdev

import torch
from torch import Tensor

from hanlin.data.groups import Group, Prompt, by_answer, pack_groups
from hanlin.generation.answers import Completion, Request
from hanlin.generation.engine import Engine
from hanlin.generation.sampling import Sampling, derived_seed
from hanlin.models.frozen import frozen_copy
from hanlin.models.lora import adapted, without_adapters
from hanlin.models.transformer import Transformer
from hanlin.objectives.likelihood import batch_logprobs, span_sums
from hanlin.objectives.policy import AnswerScore, RlhfConfig, advantages
from hanlin.text.tokenizer import Tokenizer
from hanlin.training.division import Division
from hanlin.training.parallel import put_away
from hanlin.training.rewards import Answered, Judge
from hanlin.training.shares import divide, shared_streams, together
from hanlin.types import Batch

NUM_SLOTS = 64  # answers that are generated at once
_HELD_OUT = -1  # in the place of a step, for seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """The examples of one step and what is logged of them. `generating` is the seconds that sampling took; `alarm` says
    why the run should stop here, "" where it need not.
    """

    examples: list[Group]
    metrics: dict[str, float]
    generating: float
    alarm: str


@dataclass(frozen=True, slots=True)
class _Explored:
    """The answers to one prompt: what is learnt from them, and of each what every judge says (by judge), the reward,
    whether it was cut, and, once it is known, the divergence from the starting model.
    """

    group: Group
    parts: list[list[float]]
    rewards: list[float]
    cut: list[bool]
    divergences: list[float] = field(default_factory=list)


class Rollouts:
    """Turns prompts into groups of rewarded answers. `start` is the model before training; it is copied here unless it
    has adapters, which can be switched off.
    """

    def __init__(
        self,
        config: RlhfConfig,
        start: Transformer,
        tokenizer: Tokenizer,
        *,
        stop_ids: Sequence[int],
        judges: Sequence[Judge],
        seed: int,
        tokens_per_pass: int,
        division: Division,
    ) -> None:
        self._config = config
        spread = partial(division.spread, device=start.device)
        self._reference = None if adapted(start) else frozen_copy(start, spread)
        self._division = division
        self._tokenizer = tokenizer
        self._stop_ids = tuple(stop_ids)
        self._judges = judges
        self._seed = seed
        self._tokens_per_pass = tokens_per_pass

    def gather(self, model: Transformer, prompts: Sequence[Prompt], step: int) -> Gathered:
        """Groups of answers of the model as it is, with their advantages. `step` is counted from 0.

        Several ranks divide the prompts, and all of them get all groups: an answer's seed knows nothing of ranks.
        """
        began = time.perf_counter()
        places, here = self._own(prompts)
        completions = self._complete(model, here, step, places, num_answers=self._config.answers)
        generating = time.perf_counter() - began
        explored = together(self._division.world, zip(places, self._explored(here, completions), strict=True))
        found = self._compared(model, explored)
        metrics = _metrics(found)
        means = (_mean([one.parts[number] for one in found]) for number in range(len(self._config.rewards)))
        metrics |= {f"rewards/{name}/mean": mean for name, mean in zip(self._config.rewards, means, strict=True)}
        groups = [one.group for one in found]
        return Gathered(examples=groups, metrics=metrics, generating=generating, alarm=self._alarm(metrics))

    def _own(self, prompts: Sequence[Prompt]) -> tuple[list[int], list[Prompt]]:
        """The prompts that this rank answers, and their places."""
        world = self._division.world
        places = divide(prompts, world.size)[world.rank]
        return places, [prompts[place] for place in places]

    def _explored(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]
    ) -> "Iterator[_Explored]":
        """What is found out about the answers to each prompt without a model that learns."""
        parts, rewards = self._judge(prompts, completions)
        for number, (prompt, done) in enumerate(zip(prompts, completions, strict=True)):
            group = Group(prompt.ids, tuple(map(_answer_ids, done)), id=prompt.id)
            cut = [one.finish_reason == "length" for one in done]
            yield _Explored(group, [part[number] for part in parts], rewards[number], cut)

    def _compared(self, model: Transformer, explored: "Sequence[_Explored]") -> "list[_Explored]":
        """The same with what the model and the starting one say of the answers, and so with what is learnt."""
        groups = [one.group for one in explored]
        known = zip(explored, self._logprobs(model, groups), self._start_logprobs(model, groups), strict=True)
        found = []
        for one, logprobs, started in known:
            divergences = [here - there for here, there in zip(logprobs, started, strict=True)]
            both = zip(one.rewards, divergences, strict=True)
            better = advantages([reward - self._config.beta * divergence for reward, divergence in both])
            group = replace(one.group, advantages=better, logprobs=tuple(logprobs))
            found.append(replace(one, group=group, divergences=divergences))
        return found

    def score(self, model: Transformer, prompts: Sequence[Prompt]) -> list[AnswerScore]:
        """One sampled answer to each held-out prompt, with the same seeds whenever it is asked."""
        places, here = self._own(prompts)
        completions = self._complete(model, here, _HELD_OUT, places, num_answers=1)
        _, rewards = self._judge(here, completions)
        scores = [
            AnswerScore(reward, len(_answer_ids(done)), done.finish_reason == "stop")
            for [reward], [done] in zip(rewards, completions, strict=True)
        ]
        return together(self._division.world, zip(places, scores, strict=True))

    def _complete(
        self,
        model: Transformer,
        prompts: Sequence[Prompt],
        step: int,
        places: Sequence[int],
        *,
        num_answers: int,
    ) -> list[list[Completion]]:
        """Answers to prompts that have these places in the step."""
        config = self._config
        requests = []
        for place, prompt in zip(places, prompts, strict=True):
            sampling = Sampling(
                temperature=config.temperature,
                top_p=1.0,
                max_tokens=config.max_tokens,
                seed=derived_seed(self._seed, step, place),
            )
            requests.append(Request(prompt.ids, sampling, self._stop_ids))
        engine = Engine(self._division.assembled(model), self._tokenizer, num_slots=NUM_SLOTS)
        return engine.generate_groups(requests, num_answers)

    def _judge(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]
    ) -> tuple[list[list[list[float]]], list[list[float]]]:
        """What each judge says of every answer, and their weighted sum less the penalty of those that were cut."""
        answered = [
            Answered(prompt, tuple(done.text for done in group))
            for prompt, group in zip(prompts, completions, strict=True)
        ]
        parts = [judge(answered) for judge in self._judges]
        weights, penalty = self._config.weight_values, self._config.cut_penalty
        rewards = [
            [
                sum(weight * part[number][place] for weight, part in zip(weights, parts, strict=True))
                - penalty * (done.finish_reason == "length")
                for place, done in enumerate(group)
            ]
            for number, group in enumerate(completions)
        ]
        return parts, rewards

    @torch.no_grad()
    def _logprobs(self, model: Transformer, groups: Sequence[Group]) -> list[list[float]]:
        """Log-probability of every answer under a model, of which all ranks compute their share."""

        def summed(batch: Batch) -> Tensor:
            batch = batch.to(model.device)
            return span_sums(batch_logprobs(model, batch), batch)[0]

        data, budget = self._division.world.data, self._tokens_per_pass
        found = by_answer(
            groups, shared_streams(groups, pack_groups, data, max_tokens=budget, pad=model.compiled), summed
        )
        put_away(model)
        return together(data, found.items())

    def _start_logprobs(self, model: Transformer, groups: Sequence[Group]) -> list[list[float]]:
        if self._reference is None:
            with without_adapters(model):
                return self._logprobs(model, groups)
        self._reference.attention_backend = model.attention_backend
        return self._logprobs(self._reference, groups)

    def _alarm(self, metrics: dict[str, float]) -> str:
        """Signs that the reward is being fooled rather than earned."""
        config, away, cut = self._config, metrics["objective/kl"], metrics["completions/clipped_ratio"]
        if away > config.kl_limit:
            return (
                f"answers are {away:.1f} nats away from the starting model, more than objective.kl_limit = "
                f"{config.kl_limit:g}: what earns reward may no longer be good. Read some answers; raise "
                "objective.beta or lower training.learning_rate"
            )
        if cut > config.cut_limit:
            return (
                f"{cut:.0%} of the answers ran on to objective.max_tokens = {config.max_tokens}, more than "
                f"objective.cut_limit = {config.cut_limit:g}: length may be what earns reward. Read some answers; set "
                "objective.cut_penalty, or raise max_tokens where good answers are longer"
            )
        return ""


def _answer_ids(done: Completion) -> tuple[int, ...]:
    """The answer's ids with its stop token, where it came to one."""
    return (*done.ids,) if done.stop_id is None else (*done.ids, done.stop_id)


def _mean(rows: Sequence[Sequence[float]]) -> float:
    return fmean(value for row in rows for value in row)


def _metrics(found: "Sequence[_Explored]") -> dict[str, float]:
    """Names and values of TRL's trainers; `objective/kl` is a mean over answers, `kl` over tokens, both in nats."""
    lengths = [len(answer) for one in found for answer in one.group.answers]
    return {
        "reward": _mean([one.rewards for one in found]),
        "reward_std": stdev(reward for one in found for reward in one.rewards),
        "frac_reward_zero_std": fmean(len(set(one.rewards)) == 1 for one in found),
        "objective/kl": _mean([one.divergences for one in found]),
        "kl": sum(sum(one.divergences) for one in found) / sum(lengths),
        "completions/mean_length": fmean(lengths),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": fmean(cut for one in found for cut in one.cut),
    }
