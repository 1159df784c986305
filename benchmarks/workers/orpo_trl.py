"""TRL's side of the ORPO benchmark: its own `ORPOTrainer`, unmodified, on the same pairs as text, timed by a callback.

TRL tokenizes the texts itself; the ids that it will train on are then compared with the ids that were asked for, and
any difference, a truncation too, is an error. Logs, progress bars and checkpoints are off.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from worker import Clock, answer, peak_bytes


class Watch(TrainerCallback):
    """A lap before the first step and after each."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.lap()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.lap()


def trainer_config(settings: Mapping[str, Any], *, output: str, num_steps: int, max_length: int) -> ORPOConfig:
    """TRL's defaults, but for what every system gets and for what `micro_batch` and `checkpointing` set."""
    return ORPOConfig(
        output_dir=output,
        use_cpu=True,
        bf16=settings["compute"] == "bfloat16",
        per_device_train_batch_size=settings["micro_batch"],
        gradient_accumulation_steps=settings["batch_pairs"] // settings["micro_batch"],
        gradient_checkpointing=settings["checkpointing"],
        beta=settings["weight"],
        learning_rate=settings["learning_rate"],
        max_length=max_length,
        max_steps=num_steps,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        logging_steps=num_steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def check_ids(dataset: Any, rows: Sequence[Mapping[str, Any]]) -> int:
    """The number of real tokens (2 P + C + R) that TRL trains on; an error unless they are the ids asked for."""
    total = 0
    for made, row in zip(dataset, rows, strict=True):
        for side in ("chosen", "rejected"):
            asked, mask = row["prompt"] + row[side], [-100] * len(row["prompt"]) + row[side]
            if made[f"{side}_input_ids"] != asked or made[f"{side}_labels"] != mask:
                raise RuntimeError(f"TRL trains on other tokens than asked for in {side} of pair {row['id']}")
            total += len(asked)
    return total


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train on the pairs with fp32 weights, in bf16 autocast where `compute` is bfloat16."""
    disable_progress_bars()
    rows = json.loads(Path(settings["pairs"]).read_text(encoding="utf-8"))
    texts = [{name: row[f"{name}_text"] for name in ("prompt", "chosen", "rejected")} for row in rows]
    longest = max(len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) for row in rows)
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    watch = Watch(Clock(settings["warmup"]))
    with tempfile.TemporaryDirectory() as output:
        trainer = ORPOTrainer(
            model=model,
            args=trainer_config(
                settings, output=output, num_steps=len(rows) // settings["batch_pairs"], max_length=longest
            ),
            train_dataset=Dataset.from_list(texts),
            processing_class=AutoTokenizer.from_pretrained(settings["model"]),
            callbacks=[watch],
        )
        tokens = check_ids(trainer.train_dataset, rows)
        done = trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "grad_norm" in entry)
    return {
        **watch.clock.read(),
        "peak_bytes": peak_bytes(),
        "tokens": tokens,
        "loss": done.training_loss,
        "grad_norm": logged["grad_norm"],
    }


if __name__ == "__main__":
    answer(measure)
