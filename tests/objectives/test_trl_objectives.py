"""Six steps of SFT, DPO, SimPO and a reward model beside TRL's own trainers: same model, same examples, same order.

fp32, AdamW, constant rate. TRL is fed ids where it takes them and else rendered strings that end in the tokenizer's
EOS, so that it adds nothing.
"""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import hanlin
from hanlin.config import load_recipe
from hanlin.data.sources import read_preferences
from hanlin.models.reward import add_score
from hanlin.models.weights import load_model, save_model
from hanlin.text.chat import FORMATS
from hanlin.training.metrics import read_metrics
from hanlin.training.recipe import Recipe
from hanlin.training.session import open_material
from tiny_run import write_recipe, write_rows
from tiny_text import as_dicts, random_messages, random_text, write_directory

pytestmark = pytest.mark.filterwarnings("ignore")  # other people's code

STEPS, BATCH, RATE = 6, 4, 1e-3
TOLERANCE = 1e-4
FORMAT = FORMATS["smollm2"]
CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1,
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "train_sampling_strategy": "sequential",
    "gradient_checkpointing": False,
    "max_length": 4096,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that transformers wrote, pairs and conversations."""
    path = tmp_path_factory.mktemp("trl")
    write_directory(path / "model", "smollm2")
    torch.manual_seed(3)
    size = len(transformers.AutoTokenizer.from_pretrained(path / "model"))
    config = transformers.LlamaConfig(vocab_size=size, **CONFIG, attn_implementation="eager")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path / "model")
    source = random.Random(5)
    # Answers begin with a letter: TRL encodes header and answer as one text, where white space would join the header's.
    pairs = [
        {"prompt": random_text(source), "chosen": f"好{random_text(source)}", "rejected": f"no{random_text(source)}"}
        for _ in range(STEPS * BATCH)
    ]
    write_rows(path / "pairs.jsonl", pairs)
    texts = [{"messages": as_dicts(random_messages(source))} for _ in range(STEPS * BATCH)]
    write_rows(path / "texts.jsonl", texts)
    return path


def ours(folder: Path, run: Path, file: str, **objective: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """The diary of our steps, and the examples in the order of the file."""
    training = {"steps": STEPS, "batch_pairs": BATCH, "tokens_per_pass": 120, "learning_rate": RATE}
    recipe = write_recipe(
        folder,
        name=f"{run.name}.toml",
        data={"train": [str(folder / file)], "held_out_pairs": 0, "shuffle": False},
        chat={"format": "smollm2"},
        objective=objective,
        training={**training, "schedule": "constant", "warmup": 0.0},
        output={"directory": str(run)},
    )
    records = [record for record in read_metrics(hanlin.train(recipe)) if "loss" in record]
    assert len(records) == STEPS
    return records, list(open_material(load_recipe(Recipe, recipe), on_note=lambda _: None).data.train)


def tokenizer_of(folder: Path) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = "<|endoftext|>"
    assert tokenizer.eos_token == FORMAT.stop
    return tokenizer


def model_of(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", attn_implementation="eager", dtype=torch.float32
    )


def rendered(folder: Path) -> Any:
    """The pairs as strings."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {
            "prompt": FORMAT.text(pair.prompt, generation_prompt=True),
            "chosen": FORMAT.answer(pair.chosen) + FORMAT.stop,
            "rejected": FORMAT.answer(pair.rejected) + FORMAT.stop,
        }
        for pair in read_preferences([folder / "pairs.jsonl"])[0]
    ]
    return datasets.Dataset.from_list(rows)


def logs_of(trainer: Any) -> list[dict[str, Any]]:
    trainer.train()
    return [log for log in trainer.state.log_history if "grad_norm" in log]


def compare(records: list[dict[str, Any]], logs: list[dict[str, Any]], names: dict[str, str]) -> None:
    for record, log in zip(records, logs, strict=True):
        for mine, theirs in {"loss": "loss", "grad_norm": "grad_norm", **names}.items():
            expected = float(log[theirs])
            assert record[mine] == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE), (record["step"], mine)
    assert records[-1]["loss"] != pytest.approx(records[0]["loss"], abs=1e-3)  # the steps did move the model


@pytest.mark.parametrize("score", ["every", "last"])
def test_sft(folder: Path, tmp_path: Path, score: str):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    records, texts = ours(folder, tmp_path / "run", "texts.jsonl", kind="sft", score=score)
    rows = [
        {
            "input_ids": list(text.ids),
            "labels": [id if scored else -100 for id, scored in zip(text.ids, text.scored, strict=True)],
        }
        for text in texts
    ]
    trainer = trl.SFTTrainer(
        model=model_of(folder),
        args=trl.SFTConfig(output_dir=str(tmp_path / "scratch"), **ARGUMENTS),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer_of(folder),
    )
    compare(records, logs_of(trainer), {})


REWARD_NAMES = {
    name: name
    for name in ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen")
}


def test_dpo(folder: Path, tmp_path: Path):
    trl = pytest.importorskip("trl")
    records, _ = ours(folder, tmp_path / "run", "pairs.jsonl", kind="dpo", beta=0.2)
    trainer = trl.DPOTrainer(
        model=model_of(folder),
        ref_model=model_of(folder),
        args=trl.DPOConfig(output_dir=str(tmp_path / "scratch"), beta=0.2, **ARGUMENTS),
        train_dataset=rendered(folder),
        processing_class=tokenizer_of(folder),
    )
    compare(records, logs_of(trainer), REWARD_NAMES)


def test_simpo(folder: Path, tmp_path: Path):
    cpo = pytest.importorskip("trl.experimental.cpo")
    records, _ = ours(folder, tmp_path / "run", "pairs.jsonl", kind="simpo", beta=2.0, gamma_ratio=0.25)
    arguments = cpo.CPOConfig(
        output_dir=str(tmp_path / "scratch"),
        loss_type="simpo",
        beta=2.0,
        simpo_gamma=0.5,
        cpo_alpha=0.0,
        **ARGUMENTS,
    )
    trainer = cpo.CPOTrainer(
        model=model_of(folder), args=arguments, train_dataset=rendered(folder), processing_class=tokenizer_of(folder)
    )
    compare(records, logs_of(trainer), REWARD_NAMES)


def test_reward(folder: Path, tmp_path: Path):
    """TRL starts from the model that we start from, with our fresh score."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    records, pairs = ours(folder, tmp_path / "run", "pairs.jsonl", kind="reward")
    start = load_model(folder / "model", dtype="float32")
    add_score(start, seed=42)
    save_model(start, tmp_path / "start", dtype="float32", pad_id=0)
    rows = [
        {"chosen_ids": list(pair.prompt + pair.chosen), "rejected_ids": list(pair.prompt + pair.rejected)}
        for pair in pairs
    ]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "start", attn_implementation="eager", dtype=torch.float32
    )
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(output_dir=str(tmp_path / "scratch"), **ARGUMENTS),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer_of(folder),
    )
    compare(records, logs_of(trainer), {"rewards/accuracies": "accuracy", "rewards/margins": "margin"})
