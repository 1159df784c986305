"""RLHF through the one loop: rollouts, rewards, a whole run, killed and resumed, and when it stops."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import hanlin
from hanlin.config import load_recipe
from hanlin.errors import ConfigError, DataError, HanlinError, TrainingError
from hanlin.models.attention import SegmentAttention
from hanlin.models.reward import load_reward_model, rewards
from hanlin.text.encode import encode_answer, encode_prompt
from hanlin.training.checkpoint import checkpoints
from hanlin.training.metrics import read_metrics
from hanlin.training.recipe import Recipe
from hanlin.training.rewards import Answered, chinese, open_judge, same_language
from hanlin.training.session import Session, open_material
from hanlin.types import Message, Segment
from tiny_objectives import recipe_of
from tiny_run import rows, write_recipe, write_rows

LOGGED = {
    "loss", "entropy", "reward", "reward_std", "frac_reward_zero_std", "kl", "objective/kl", "completions/mean_length",
    "completions/max_length", "completions/clipped_ratio", "rewards/tiny_rewards:letters/mean", "generation_share",
    "grad_norm", "learning_rate", "epoch", "prompts_per_second",
}  # fmt: skip
OBJECTIVE: dict[str, Any] = {
    "kind": "rlhf",
    "rewards": ["tiny_rewards:letters"],
    "max_tokens": 6,
    "cut_limit": 1.0,
}


def rlhf_recipe(folder: Path, **changes: dict[str, Any]) -> Path:
    """Six steps of four prompts, four answers each."""
    training = {"save_every": 2, "keep_last": 9, "evaluate_every": 4} | changes.pop("training", {})
    objective = OBJECTIVE | changes.pop("objective", {})
    return write_recipe(folder, objective=objective, training=training, **changes)


def diary(run: Path) -> list[dict[str, Any]]:
    return [
        {key: v for key, v in record.items() if "per_second" not in key and key != "generation_share"}
        for record in read_metrics(run)
    ]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("run")
    hanlin.train(rlhf_recipe(folder))
    return folder


def test_the_diary_says_what_happened(finished: Path):
    records = read_metrics(finished / "run")
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4, 4, 5, 6, 6]
    held_out = [record for record in records if "eval_reward" in record]
    assert [record["step"] for record in held_out] == [0, 4, 6]
    trained = [record for record in records if record not in held_out]
    for record in trained:
        assert set(record) >= LOGGED
        assert 0 < record["generation_share"] < 1
        assert 1 <= record["completions/mean_length"] <= record["completions/max_length"] <= 6
        assert record["reward"] == pytest.approx(record["rewards/tiny_rewards:letters/mean"])
    assert trained[0]["kl"] == trained[0]["objective/kl"] == 0  # the untouched policy
    assert trained[-1]["objective/kl"] != 0


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 2}}, {"objective": {"clip": 0.2, "updates": 2}}], ids=str)
def test_resumed_is_uninterrupted_bit_for_bit(finished: Path, tmp_path: Path, changes: dict[str, Any]):
    whole, part = finished / "run", tmp_path / "part"
    if changes:
        whole = tmp_path / "whole"
        hanlin.train(rlhf_recipe(finished, name="other.toml", output={"directory": str(whole)}, **changes))
        assert read_metrics(whole)[1]["kl"] == 0
    shutil.copytree(whole / "checkpoints" / "step-000002", part / "checkpoints" / "step-000002")
    shutil.copy(whole / "recipe.toml", part)
    shutil.copy(whole / "metrics.jsonl", part)
    hanlin.train(whole / "recipe.toml", overrides=[f"output.directory={part}"], resume=True)
    mine, theirs = weights(part), weights(whole)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert diary(part) == diary(whole)


def test_several_updates_are_clipped(tmp_path: Path):
    objective = {"clip": 0.01, "updates": 3}
    run = hanlin.train(rlhf_recipe(tmp_path, objective=objective, training={"learning_rate": 5e-3}))
    trained = [record for record in read_metrics(run) if "loss" in record]
    assert trained[-1]["clip_ratio/region_mean"] > 0


def test_micro_batches_change_nothing_but_rounding(finished: Path, tmp_path: Path):
    apart = hanlin.train(
        rlhf_recipe(
            finished, name="apart.toml", training={"tokens_per_pass": 1}, output={"directory": str(tmp_path / "run")}
        )
    )
    for one, other in zip(diary(apart)[:3], diary(finished / "run")[:3], strict=True):
        for key in set(one) & {"loss", "grad_norm", "reward", "entropy"}:
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key


def test_a_programmatic_reward_rises(tmp_path: Path):
    training = {"steps": 30, "batch_pairs": 8, "learning_rate": 5e-3, "save_every": 0, "schedule": "constant"}
    objective = {"max_tokens": 8, "beta": 0.01, "kl_limit": 1000.0}
    run = hanlin.train(rlhf_recipe(tmp_path, training=training, objective=objective))
    records = read_metrics(run)
    rewarded = [record["reward"] for record in records if "reward" in record]
    assert sum(rewarded[-5:]) / 5 > sum(rewarded[:5]) / 5 + 0.2
    held_out = [record["eval_reward"] for record in records if "eval_reward" in record]
    assert held_out[-1] > held_out[0]


def test_rollouts_depend_on_seed_and_step_alone(tmp_path: Path):
    material = open_material(load_recipe(Recipe, rlhf_recipe(tmp_path)))
    session = Session(material, tmp_path / "run", resume=False)
    assert session.rollouts is not None
    prompts = material.data.train[:3]
    first, again, later = (session.rollouts.gather(session.model, prompts, step) for step in (4, 4, 5))
    assert first.examples == again.examples
    assert [group.answers for group in first.examples] != [group.answers for group in later.examples]
    for group in first.examples:
        assert len(set(group.answers)) > 1
        assert sum(group.advantages) == pytest.approx(0, abs=1e-9)
    assert session.rollouts.score(session.model, prompts) == session.rollouts.score(session.model, prompts)


def test_a_reward_model_reads_the_answer_s_end(tmp_path: Path):
    trained = hanlin.train(recipe_of(tmp_path, "reward"))
    recipe = rlhf_recipe(tmp_path, name="rlhf.toml", output={"directory": str(tmp_path / "rlhf")})
    material = open_material(load_recipe(Recipe, recipe))
    judge = open_judge(str(trained), device=torch.device("cpu"), tokens_per_pass=30, on_note=print)
    prompts, texts = material.data.train[:3], ("the quick fox", "你好", "")
    found = judge([Answered(prompt, texts) for prompt in prompts])
    model = load_reward_model(trained)
    for prompt, values in zip(prompts, found, strict=True):
        for text, value in zip(texts, values, strict=True):
            answer = encode_answer(text, material.format, material.tokenizer) if text else prompt_stop(material)
            ids = [*encode_prompt(prompt.messages, material.format, material.tokenizer), *answer]
            assert value == pytest.approx(plain_reward(model, ids), rel=1e-4, abs=1e-5)
    mixed = {"rewards": [str(trained), "tiny_rewards:length"], "weights": [0.5, 2.0]}
    run = hanlin.train(
        rlhf_recipe(tmp_path, name="mixed.toml", objective=mixed, output={"directory": str(tmp_path / "mixed")})
    )
    record = next(record for record in read_metrics(run) if "reward" in record)
    parts = record[f"rewards/{trained}/mean"], record["rewards/tiny_rewards:length/mean"]
    assert record["reward"] == pytest.approx(0.5 * parts[0] + 2 * parts[1], rel=1e-5)


def prompt_stop(material) -> tuple[int, ...]:
    return (material.tokenizer.control[material.format.stop],)


@torch.no_grad()
def plain_reward(model, ids: list[int]) -> float:
    attend = SegmentAttention(model.config, [Segment(0, len(ids))], model.device)
    return rewards(model, model.hidden(torch.tensor(ids), torch.arange(len(ids)), attend)[-1:]).item()


def test_a_cut_answer_may_cost(tmp_path: Path):
    free, dear = (
        hanlin.train(
            rlhf_recipe(
                tmp_path,
                name=f"{penalty}.toml",
                objective={"cut_penalty": penalty},
                training={"steps": 1},
                output={"directory": str(tmp_path / f"run-{penalty}")},
            )
        )
        for penalty in (0.0, 1.5)
    )
    one, other = read_metrics(free)[1], read_metrics(dear)[1]
    assert one["reward"] - other["reward"] == pytest.approx(1.5 * one["completions/clipped_ratio"], abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"kl_limit": 1e-6}, "nats away from the starting model"),
        ({"cut_limit": 0.01}, "ran on to objective.max_tokens"),
    ],
)
def test_signs_of_reward_hacking_stop_the_run_and_it_can_go_on(tmp_path: Path, objective: dict[str, float], said: str):
    recipe = rlhf_recipe(tmp_path, objective=objective, training={"learning_rate": 1e-2, "save_every": 0})
    with pytest.raises(TrainingError, match=said):
        hanlin.train(recipe)
    done = len([record for record in read_metrics(tmp_path / "run") if "loss" in record])
    assert done < 6
    assert checkpoints(tmp_path / "run")[-1].name == f"step-{done:06d}"
    [limit] = objective
    run = hanlin.train(recipe, overrides=[f"objective.{limit}=1{'e9' * (limit == 'kl_limit')}"], resume=True)
    assert read_metrics(run)[-1]["step"] == 6


@pytest.mark.parametrize(
    ("override", "error", "said"),
    [
        ('objective.rewards=["chinse"]', ConfigError, "no built-in (chinese, language)"),
        ('objective.rewards=["no_such_module:f"]', ConfigError, "no_such_module cannot be imported"),
        ('objective.rewards=["tiny_rewards:lettres"]', ConfigError, "has no function lettres"),
        ('objective.rewards=["tiny_rewards:NOT_A_FUNCTION"]', ConfigError, "has no function NOT_A_FUNCTION"),
        ("objective.rewards=[]", ConfigError, "objective.rewards"),
        ("objective.weights=[1, 2]", ConfigError, "has 2 numbers for 1 rewards"),
        ("objective.answers=1", ConfigError, "objective.answers"),
        ("objective.updates=2", ConfigError, "give objective.clip"),
        ("objective.max_tokens=9000", ConfigError, "leaves no room for prompts"),
        ("training.tokens=1000", ConfigError, "give training.steps"),
        ("data.on_long=truncate_prompt", ConfigError, "saw only in part"),
        ("data.max_length=8", DataError, "no prompt is left"),
        ('objective.rewards=["tiny_rewards:broken"]', TrainingError, "failed on an answer to row-"),
        ('objective.rewards=["tiny_rewards:nan"]', TrainingError, "gave nan for an answer to row-"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, override: str, error: type[HanlinError], said: str):
    with pytest.raises(error) as caught:
        hanlin.train(rlhf_recipe(tmp_path), overrides=[override])
    assert said in str(caught.value)


@pytest.mark.parametrize("body", ["def f(messages, answer) return 1", "x = undefined"], ids=["syntax", "name"])
def test_a_reward_module_that_cannot_be_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str):
    name = f"rewards_that_fail_{len(body)}"
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"{name} cannot be imported: (Syntax|Name)Error: .*") as caught:
        hanlin.train(rlhf_recipe(tmp_path), overrides=[f'objective.rewards=["{name}:f"]'])
    assert "\n" not in str(caught.value)


def test_a_language_model_is_no_reward_model(tmp_path: Path):
    recipe = rlhf_recipe(tmp_path)
    with pytest.raises(ConfigError, match="is a language model: train a reward model"):
        hanlin.train(recipe, overrides=[f'objective.rewards=["{tmp_path / "model"}"]'])


def test_prompts_come_in_every_form(tmp_path: Path):
    pair = rows(1)[0]
    write_rows(
        tmp_path / "pairs.jsonl",
        [
            pair,
            {"prompt": "你好"},
            {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "hello"}]},
            {"messages": [{"role": "user", "content": "你好"}]},
            {"instruction": "你好", "output": "the fox"},
        ],
    )
    data = {"held_out_pairs": 0}
    prompts = open_material(load_recipe(Recipe, rlhf_recipe(tmp_path, data=data))).data.train
    assert [prompt.messages[-1].content for prompt in prompts] == [pair["prompt"], *["你好"] * 4]
    assert all(len(prompt.messages) == 1 for prompt in prompts)
    assert len({prompt.ids for prompt in prompts[1:]}) == 1
    assert [prompt.id for prompt in prompts[:2]] == ["row-0", "pairs.jsonl:2"]


@pytest.mark.parametrize(
    ("question", "answer", "reward"),
    [
        ("天空为什么是蓝色的？", "因为空气散射蓝光最多。", 1.0),
        ("天空为什么是蓝色的？", "Because air scatters blue light.", 0.0),
        ("天空为什么是蓝色的？", "因为 air scatters blue light", 2 / 6),
        ("天空为什么是蓝色的？", "", 0.0),
        ("Why is the sky blue?", "因为空气散射蓝光最多。", 0.0),
    ],
)
def test_how_chinese_an_answer_is(question: str, answer: str, reward: float):
    assert chinese([Message("user", question)], answer) == pytest.approx(reward)


def test_the_language_of_the_question():
    assert same_language([Message("user", "天空为什么是蓝色的？")], "因为空气散射蓝光最多。") == 1
    assert same_language([Message("user", "天空为什么是蓝色的？")], "Because air scatters blue light.") == 0
    assert same_language([Message("user", "Why is the sky blue?")], "Because air scatters blue light.") == 1
