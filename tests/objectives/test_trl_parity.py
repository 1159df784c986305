"""Twenty steps of ours beside twenty of TRL's own ORPOTrainer, and beside LLaMA-Factory's formula written out.

Same model directory, same pairs, same order, fp32, AdamW and clipping. TRL is fed rendered strings that end in the
tokenizer's EOS, so that it adds nothing, and nothing is long enough to be cut: its truncation is wrong (trl #6588).
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
import torch.nn.functional as F
import transformers

import hanlin
from hanlin.config import load_recipe
from hanlin.text.chat import FORMATS
from hanlin.training.metrics import read_metrics
from hanlin.training.recipe import Recipe
from hanlin.training.session import open_material
from hanlin.types import EncodedPair
from tiny_run import write_recipe, write_rows
from tiny_text import random_text, write_directory

pytestmark = pytest.mark.filterwarnings("ignore")  # other people's code

STEPS, BATCH, BETA, RATE = 20, 4, 0.3, 2e-3
TOLERANCE = 1e-4  # of losses near 6 and gradient norms near 1; measured: 1.4e-6
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "attention_dropout": 0.0,  # TRL switches off dropout modules, not this number
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
MODELS = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": False}),
    "gemma2": (
        transformers.Gemma2Config,
        {
            "sliding_window": 16,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
}
SCHEDULES = {"constant": 0.0, "cosine": 0.2}  # and the share of warm-up steps


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that transformers wrote, a tokenizer beside it, and a pair for each place of twenty steps."""
    path = tmp_path_factory.mktemp(request.param)
    write_directory(path / "model", "smollm2")
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(path / "model"))
    config_class, fields = MODELS[request.param]
    torch.manual_seed(3)
    config = config_class(vocab_size=vocabulary, **SIZES, **fields, attn_implementation="eager")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path / "model")
    source = random.Random(5)
    # Answers begin with a letter: TRL encodes header and answer as one text, where white space would join the header's.
    pairs = [
        {"prompt": random_text(source), "chosen": f"好{random_text(source)}", "rejected": f"no{random_text(source)}"}
        for _ in range(STEPS * BATCH)
    ]
    write_rows(path / "pairs.jsonl", pairs)
    return path


def ours(folder: Path, run: Path, *, preset: str, schedule: str) -> tuple[list[dict[str, Any]], list[EncodedPair]]:
    """The diary of our run, and the pairs that it saw in the order of the file."""
    recipe = write_recipe(
        folder,
        name=f"{preset}-{schedule}.toml",
        data={"held_out_pairs": 0, "shuffle": False},
        chat={"format": "smollm2"},
        objective={"preset": preset, "weight": BETA},
        training={
            "steps": STEPS,
            "batch_pairs": BATCH,
            "tokens_per_pass": 150,
            "learning_rate": RATE,
            "schedule": schedule,
            "warmup": SCHEDULES[schedule],
        },
        output={"directory": str(run)},
    )
    records = [record for record in read_metrics(hanlin.train(recipe)) if "loss" in record]
    assert len(records) == STEPS
    return records, open_material(load_recipe(Recipe, recipe), on_note=lambda _: None).data.train


def theirs(folder: Path, scratch: Path, *, schedule: str) -> tuple[list[dict[str, float]], list[dict[str, list[int]]]]:
    """TRL's log of the same twenty steps, and its tokenized rows."""
    datasets = pytest.importorskip("datasets")
    orpo = pytest.importorskip("trl.experimental.orpo")
    from hanlin.data.sources import read_preferences

    format = FORMATS["smollm2"]
    rendered = [
        {
            "prompt": format.text(pair.prompt, generation_prompt=True),
            "chosen": format.answer(pair.chosen) + format.stop,
            "rejected": format.answer(pair.rejected) + format.stop,
        }
        for pair in read_preferences([folder / "pairs.jsonl"])[0]
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = "<|endoftext|>"
    assert tokenizer.eos_token == format.stop
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", attn_implementation="eager", dtype=torch.float32
    )
    arguments = orpo.ORPOConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="cosine" if schedule == "cosine" else "constant_with_warmup",
        warmup_steps=SCHEDULES[schedule],
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=BETA,
        max_length=4096,
        disable_dropout=True,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = orpo.ORPOTrainer(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_list(rendered), processing_class=tokenizer
    )
    trainer.train()
    return [log for log in trainer.state.log_history if "grad_norm" in log], list(trainer.train_dataset)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_twenty_steps_follow_trls_trainer(folder: Path, tmp_path: Path, schedule: str):
    pytest.importorskip("trl")
    logs, rows = theirs(folder, tmp_path / "scratch", schedule=schedule)
    records, pairs = ours(folder, tmp_path / "run", preset="trl", schedule=schedule)
    for pair, row in zip(pairs, rows, strict=True):
        assert list(pair.prompt + pair.chosen) == row["chosen_input_ids"]
        assert list(pair.prompt + pair.rejected) == row["rejected_input_ids"]
        assert [id for id in row["chosen_labels"] if id != -100] == list(pair.chosen)
    for record, log in zip(records, logs, strict=True):
        assert record["learning_rate"] == pytest.approx(log["learning_rate"], rel=1e-6, abs=1e-12)
        for name in ("loss", "grad_norm"):
            assert abs(record[name] - float(log[name])) <= TOLERANCE, (record["step"], name, record[name], log[name])
        for name in ("nll_loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "log_odds_chosen"):
            assert record[name] == pytest.approx(float(log[name]), abs=TOLERANCE, rel=TOLERANCE), name
    assert records[-1]["loss"] < records[0]["loss"] - 0.1  # the steps did move the model


@pytest.mark.parametrize("schedule", ["cosine"])
def test_twenty_steps_follow_llama_factorys_formula(folder: Path, tmp_path: Path, schedule: str):
    """LLaMA-Factory, train/dpo/trainer.py: loss = mean over pairs of ( -c + beta * -logsigmoid(log_odds) ), c over the
    answer alone.
    """
    records, pairs = ours(folder, tmp_path / "run", preset="llamafactory", schedule=schedule)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", attn_implementation="eager", dtype=torch.float32
    ).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    warmup = round(STEPS * SCHEDULES[schedule])
    scheduler = (
        transformers.get_cosine_schedule_with_warmup(optimizer, warmup, STEPS)
        if schedule == "cosine"
        else transformers.get_constant_schedule_with_warmup(optimizer, warmup)
    )

    def mean_logp(prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
        ids = torch.tensor([prompt + answer])
        logp = model(ids).logits[0, :-1].float().log_softmax(-1)
        return logp.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].mean()

    batches = [pairs[start : start + BATCH] for start in range(0, len(pairs), BATCH)]
    for record, batch in zip(records, batches, strict=True):
        terms = []
        for pair in batch:
            c, r = mean_logp(pair.prompt, pair.chosen), mean_logp(pair.prompt, pair.rejected)
            log_odds = (c - r) - (torch.log1p(-torch.exp(c)) - torch.log1p(-torch.exp(r)))
            terms.append(-c + BETA * -F.logsigmoid(log_odds))
        loss = torch.stack(terms).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        assert abs(record["loss"] - loss.item()) <= TOLERANCE, record["step"]
        assert abs(record["grad_norm"] - norm.item()) <= TOLERANCE, record["step"]
