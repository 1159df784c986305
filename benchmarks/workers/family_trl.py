"""TRL's side of the benchmark of SFT and reward models: its own `SFTTrainer` and `RewardTrainer` on the same ids, timed
by a callback.
"""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from hf_side import IGNORED, Row, Watch, build_model, common_arguments, read_rows, train
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from worker import Clock, answer


def sft_trainer(settings: Mapping[str, Any], rows: Sequence[Row], *, output: str, clock: Clock) -> SFTTrainer:
    """TRL's defaults, but for what every system gets; `packed` is the length of its packs."""
    packed = settings["packed"]
    steps = len(rows) // settings["batch_pairs"]
    arguments = common_arguments(settings, output=output, num_steps=-1 if packed else steps)
    if packed:
        arguments |= {"gradient_accumulation_steps": 1, "logging_steps": 1, "num_train_epochs": 1}
    config = SFTConfig(
        **arguments,
        gradient_checkpointing=settings["checkpointing"],
        max_length=packed or max(len(row["ids"]) for row in rows),
        packing=bool(packed),
        train_sampling_strategy="sequential",
    )
    examples = [{"input_ids": row["ids"], "labels": labels(row)} for row in rows]
    return SFTTrainer(
        model=build_model(settings),
        args=config,
        train_dataset=Dataset.from_list(examples),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        callbacks=[Watch(clock)],
    )


def labels(row: Row) -> list[int]:
    """The ids of a conversation where they are learnt."""
    return [id if scored else IGNORED for id, scored in zip(row["ids"], row["scored"], strict=True)]


def reward_trainer(settings: Mapping[str, Any], rows: Sequence[Row], *, output: str, clock: Clock) -> RewardTrainer:
    """TRL's defaults, but for what every system gets."""
    sides = [{f"{side}_ids": row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]
    config = RewardConfig(
        **common_arguments(settings, output=output, num_steps=len(rows) // settings["batch_pairs"]),
        gradient_checkpointing=settings["checkpointing"],
        max_length=max(len(ids) for row in sides for ids in row.values()),
        train_sampling_strategy="sequential",
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        settings["model"], dtype=getattr(torch, settings["weights"])
    )
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    tokenizer.pad_token_id = model.config.pad_token_id  # SmolLM2's own is the stop, where a row would not be read then
    return RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(sides),
        processing_class=tokenizer,
        callbacks=[Watch(clock)],
    )


def real_tokens(trainer: Any, settings: Mapping[str, Any]) -> list[int]:
    """Tokens of the examples of each step, padding left out, as the trainer itself will read them."""
    names = ("chosen_ids", "rejected_ids") if settings["objective"] == "reward" else ("input_ids",)
    lengths = [sum(len(row[name]) for name in names) for row in trainer.train_dataset]
    size = settings["micro_batch"] if settings["packed"] else settings["batch_pairs"]
    return [sum(lengths[start : start + size]) for start in range(0, len(lengths), size)]


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train with `weights` of that dtype, in bf16 autocast where `compute` is bfloat16."""
    disable_progress_bars()
    rows = read_rows(settings)
    clock = Clock(settings["warmup"], device=settings["device"])
    make = reward_trainer if settings["objective"] == "reward" else sft_trainer
    with tempfile.TemporaryDirectory() as output:
        trainer = make(settings, rows, output=output, clock=clock)
        parameters = sum(one.numel() for one in trainer.model.parameters())
        real = real_tokens(trainer, settings)[settings["warmup"] :]
        return {"real": real, "num_parameters": parameters, **train(trainer, clock, settings)}


if __name__ == "__main__":
    answer(measure)
