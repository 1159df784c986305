"""Whatever a user gets wrong: one clear line with the next step, exit status 2, no traceback, nothing lost."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hanlin.models.weights import save_model
from hanlin.training.checkpoint import checkpoints
from tiny import tiny_model
from tiny_run import rows, write_model, write_recipe, write_rows

LONGEST_LINE = 700  # a 10 MB row is not repeated at the user


def assert_refused(answer: Any, *said: str) -> None:
    """One line, at most one more as a hint; notes of what was seen before it may stand above."""
    assert answer.status == 2, answer
    lines = [line for line in answer.err.strip().splitlines() if not line.startswith("note")]
    assert 1 <= len(lines) <= 2, answer.err
    assert lines[0].startswith("error"), answer.err
    assert "Traceback" not in answer.err
    assert all(len(line) < LONGEST_LINE for line in lines)
    for words in said:
        assert words in " ".join(lines), answer.err


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Data ----------------------------------------------------------------------------------------------------------------

GOOD = json.dumps(rows(1)[0], ensure_ascii=False).encode()
MEGABYTES = 10 * 2**20


def rejected_missing() -> bytes:
    return GOOD + b"\n" + json.dumps({"prompt": "hi", "chosen": "yes"}).encode() + b"\n"


BAD_DATA: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "empty file": (lambda: b"", ("pairs.jsonl is empty",)),
    "blank lines": (lambda: b"\n\n \n", ("pairs.jsonl holds no rows",)),
    "wrong JSON": (lambda: GOOD + b'\n{"prompt": "hi", \n' + GOOD + b"\n", ("line 2", "not JSON", "on_bad_row")),
    "cut off": (lambda: GOOD + b"\n" + GOOD[:-3], ("line 2", "cut off")),
    "cut off inside a character": (lambda: GOOD + b"\n" + GOOD[:-9], ("line 2", "cut off")),
    "a list cut off inside a character": (lambda: b"[" + GOOD + b"," + GOOD[:-9], ("too early", "cut off")),
    "no JSON at all": (lambda: b"prompt,chosen,rejected\nhi,yes,no\n", ("line 1", "not JSON")),
    "row without rejected": (rejected_missing, ("line 2", "rejected is missing", "mend it")),
    "wrong field": (
        lambda: GOOD.replace(b'"rejected"', b'"rejectd"') + b"\n",
        ("line 1", "rename the column 'rejectd' to 'rejected'"),
    ),
    "wrong type": (lambda: b'{"prompt": 7, "chosen": "yes", "rejected": "no"}\n', ("line 1", "prompt")),
    "not a row": (lambda: b"[1, 2]\n", ("row 1", "not an object")),
    "equal answers": (lambda: b'{"prompt": "a", "chosen": "b", "rejected": "b "}\n', ("line 1", "equal answers")),
    "invalid UTF-8": (lambda: GOOD + b"\n" + GOOD.replace(b"prompt", b"pro\xffmpt") + b"\n", ("line 2", "not UTF-8")),
    "GB18030": (lambda: GOOD.decode().replace("id", "世界").encode("gb18030"), ("line 1", "not UTF-8")),
    "UTF-16": (lambda: GOOD.decode().encode("utf-16"), ("UTF-16", "save it as UTF-8")),
    "10 MB without rejected": (
        lambda: b'{"prompt": "' + b"a" * MEGABYTES + b'", "chosen": "yes"}\n',
        ("line 1", "rejected is missing"),
    ),
    "10 MB that is no JSON": (lambda: b'{"prompt": "' + b"a" * MEGABYTES, ("line 1", "cut off")),
    "10 MB in a wrong place": (lambda: b'"' + b"a" * MEGABYTES + b'"\n', ("line 1", "not an object")),
    "deep nesting": (lambda: b"[" * 100_000, ("nested too deep",)),
    "LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ("git lfs pull",)),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(command, tmp_path: Path, case: str):
    make, said = BAD_DATA[case]
    (tmp_path / "pairs.jsonl").write_bytes(make())
    recipe = write_recipe(tmp_path, data={"held_out_pairs": 0})
    assert_refused(command("train", recipe), "pairs.jsonl", *said)
    assert not (tmp_path / "run").exists()


def test_a_huge_row_among_others_is_left_out_and_counted(command, tmp_path: Path):
    huge = {"id": "huge", "prompt": "<tool_call>" * (MEGABYTES // 11), "chosen": "yes", "rejected": "no"}
    write_rows(tmp_path / "pairs.jsonl", [*rows(8), huge])
    recipe = write_recipe(tmp_path, training={"steps": 1})
    answer = command("train", recipe)
    assert answer.status == 0
    assert "1 pairs dropped: too long (huge (" in answer.err


def test_pairs_that_are_all_too_long(command, tmp_path: Path):
    recipe = write_recipe(tmp_path, data={"max_length": 5})
    assert_refused(command("train", recipe), "no pair is left of 14 pairs", "too long", "raise max_length")
    assert_refused(command("train", recipe, "--set", "data.on_long=error"), "pair row-0 has", "on_long")


def test_skipping_bad_rows_trains_on_the_others(command, tmp_path: Path):
    lines = (tmp_path / "pairs.jsonl", [*rows(8), {"prompt": "hi", "chosen": "yes"}, 7])
    write_rows(*lines)
    answer = command("train", write_recipe(tmp_path, data={"on_bad_row": "skip"}, training={"steps": 1}))
    assert answer.status == 0
    assert "10 rows in 1 files: 8 kept, 2 skipped" in answer.err
    assert "line 9" in answer.err
    assert "line 10" in answer.err


def test_a_line_number_is_not_a_picture(command, tmp_path: Path):
    """ ":100:" names an emoji to the library that prints; the hundredth row must keep its number."""
    good = [row | {"id": None} for row in rows(120)]
    good[99] = {"prompt": "x q " * 200, "chosen": "yes", "rejected": "no"}
    write_rows(tmp_path / "pairs.jsonl", good)
    recipe = write_recipe(tmp_path, data={"max_length": 400, "on_long": "error"})
    assert_refused(command("train", recipe), "pairs.jsonl:100 has")
    write_rows(tmp_path / ":ok:.jsonl", [7])
    answer = command("train", recipe, "--set", f'data.train=["{tmp_path / ":ok:.jsonl"}"]')
    assert_refused(answer, ":ok:.jsonl, line 1: the row is not an object")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.jsonl", ("missing.jsonl does not exist",)),
        ("nowhere/pairs.jsonl", ("there is no folder",)),
        ("pairs.csv", ("holds no rows",)),
        ("pairs.xlsx", ("expected one of .json", "save the table as CSV")),
        ("folder", ("holds no data",)),
        ("pairs.parquet", ("not a Parquet file",)),
    ],
)
def test_data_that_is_not_there(command, tmp_path: Path, name: str, said: tuple[str, ...]):
    (tmp_path / "folder").mkdir()
    (tmp_path / "pairs.csv").write_text("a,b\n")
    (tmp_path / "pairs.xlsx").write_text("a,b\n")
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 and then nothing")
    recipe = write_recipe(tmp_path, data={"train": [str(tmp_path / name)]})
    assert_refused(command("train", recipe), *said)


# Recipes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ("model is missing",)),
        (b"[model\n", ("not TOML", "line 1")),
        (b"model = 3\ndata = {train = ['a.jsonl']}\n", ("model = 3 should be a table",)),
        (b"\xff\xfe[model]", ("not UTF-8",)),
        (b"[model]\npath = gemma\n", ("not TOML", "text needs quotes")),
        (b"[model]\npath = 'x'\n[data]\ntrain = ['a.jsonl']\n[trainig]\nsteps = 3\n", ("did you mean training?",)),
        (b"[model]\npath = 'x'\n[data]\ntrain = ['a.jsonl']\ntrian = 1\n", ("did you mean data.train?",)),
        (b"[model]\npath = 'x'\n[data]\ntrain = 'a.jsonl'\n", ("data.train", "should be a list")),
        (b"[model]\npath = 'x'\n[data]\ntrain = ['a']\n[training]\nsteps = '3'\n", ("should be a whole number",)),
    ],
)
def test_bad_recipes(command, tmp_path: Path, content: bytes, said: tuple[str, ...]):
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(content)
    assert_refused(command("train", recipe), str(recipe), *said)


def test_a_recipe_that_is_not_there(command, tmp_path: Path):
    (tmp_path / "orpo.toml").write_text("")
    assert_refused(command("train", tmp_path / "orpoo.toml"), "does not exist", "near it: orpo.toml")
    assert_refused(command("train", tmp_path), "is a folder")
    assert_refused(command("train"), "no recipe")


def test_float16_is_no_way_to_train(command, tmp_path: Path):
    recipe = write_recipe(tmp_path)
    for key in ("model.compute", "model.dtype"):
        assert_refused(command("train", recipe, "--set", f"{key}=float16"), key, "'bfloat16'")


# Models --------------------------------------------------------------------------------------------------------------


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def unknown_family(model: Path) -> None:
    edit_config(model, model_type="mystery", architectures=["MysteryForCausalLM"])


def truncated(model: Path) -> None:
    os.truncate(model / "model.safetensors", (model / "model.safetensors").stat().st_size - 100)


def cut_in_the_header(model: Path) -> None:
    os.truncate(model / "model.safetensors", 50)


def without(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def garbled(name: str) -> Callable[[Path], None]:
    def garble(model: Path) -> None:
        (model / name).write_bytes(b"\xff{")

    return garble


def fewer_rows_than_the_tokenizer(model: Path) -> None:
    save_model(tiny_model("smollm2"), model)


def wrong_width(model: Path) -> None:
    edit_config(model, hidden_size=32)


BAD_MODELS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "unknown family": (unknown_family, ("'mystery'", "supported: ")),
    "truncated weights": (truncated, ("model.safetensors: truncated", "again")),
    "cut in the header": (cut_in_the_header, ("not a whole .safetensors file",)),
    "no config": (without("config.json"), ("config.json is missing",)),
    "no tokenizer": (without("tokenizer.json"), ("tokenizer.json is missing",)),
    "garbled config": (garbled("config.json"), ("config.json is not JSON",)),
    "garbled tokenizer": (garbled("tokenizer.json"), ("tokenizer.json",)),
    "wrong shape": (wrong_width, ("has shape", "expected")),
    "tokenizer beyond the rows": (fewer_rows_than_the_tokenizer, ("the model rows for 0 to 96", "do not belong")),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(command, tmp_path: Path, case: str):
    damage, said = BAD_MODELS[case]
    recipe = write_recipe(tmp_path)
    damage(tmp_path / "model")
    before = contents(tmp_path)
    assert_refused(command("train", recipe), *said)
    assert_refused(command("train", recipe, "--dry-run"), *said)
    assert_refused(command("evaluate", tmp_path / "model", "--suite", "pairs", "--data", tmp_path / "pairs.jsonl"))
    assert contents(tmp_path) == before


def test_a_model_without_weights_can_be_planned_and_not_trained(command, tmp_path: Path):
    recipe = write_recipe(tmp_path)
    without("model.safetensors")(tmp_path / "model")
    assert_refused(command("train", recipe), "has neither model.safetensors")
    planned = command("train", recipe, "--dry-run")
    assert planned.status == 0
    assert "cannot run on this machine: " in planned.out
    assert "has a config and no weights; download the model again" in planned.out


@pytest.mark.parametrize("name", ["nothing-here", "./nothing/here", "no/thing.gguf"])
def test_a_model_that_is_not_there(command, tmp_path: Path, name: str):
    recipe = write_recipe(tmp_path, model={"path": name})
    assert_refused(command("train", recipe), name, "neither an existing directory or .gguf file")


def test_a_file_that_is_no_model(command, tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\0" * 20)
    (tmp_path / "model.bin").write_bytes(b"pickle")
    for name in ("model.gguf", "model.bin"):
        assert_refused(command("train", write_recipe(tmp_path, model={"path": str(tmp_path / name)})), name)


def test_fp16_asked_of_gemma_2(command, tmp_path: Path):
    model = write_model(tmp_path / "model", family="gemma2")
    pairs = write_rows(tmp_path / "pairs.jsonl", rows(4))
    asked = ("evaluate", model, "--suite", "pairs", "--data", pairs, "--device", "cpu")
    assert_refused(command(*asked, "--dtype", "float16"), "float16 overflows in gemma2", "bfloat16 or float32")
    assert_refused(command(*asked, "--dtype", "float8"), "'float8' is unknown")
    assert command(*asked, "--dtype", "bfloat16").status == 0


def test_fp16_files_of_gemma_2_are_read_and_trained_on(command, tmp_path: Path):
    model = write_model(tmp_path / "model", family="gemma2")
    save_model(tiny_model("gemma2"), tmp_path / "other", dtype="float16")
    from hanlin.models.weights import load_model

    save_model(load_model(model), model, dtype="float16")
    answer = command("train", write_recipe(tmp_path, training={"steps": 1}, output={"save_dtype": "float16"}))
    assert answer.status == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--suite", "mmlu"), "'mmlu' is unknown"),
        (("--suite", "pairs", "--data", "nowhere.jsonl"), "nowhere.jsonl does not exist"),
        (("--suite", "pairs", "--device", "abacus"), "abacus"),
        (("--temperature", "-1"), "temperature"),
        (("--max-tokens", "0"), "max_tokens"),
    ],
)
def test_wrong_questions_to_evaluate(command, tmp_path: Path, arguments: tuple[str, ...], said: str):
    model = write_model(tmp_path / "model")
    data = () if "--data" in arguments else ("--data", write_rows(tmp_path / "pairs.jsonl", rows(4)))
    assert_refused(command("evaluate", model, *arguments, *data), said)


# Places --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "run"])
def test_an_unwritable_directory(command, tmp_path: Path, below: str):
    recipe = write_recipe(tmp_path, output={"directory": str(tmp_path / "file" / below)})
    (tmp_path / "file").write_text("mine")
    assert_refused(command("train", recipe), "output.directory", "cannot be written", "choose another")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def small_files():
    """No file of this process may pass 60 kB: writing more fails as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(number_of_bytes: int = 60_000) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (number_of_bytes, limits[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_while_saving(command, tmp_path: Path, small_files: Callable[..., None]):
    recipe = write_recipe(tmp_path, training={"save_every": 2})
    assert command("train", recipe, "--set", f"output.directory={tmp_path / 'whole'}").status == 0
    small_files()
    answer = command("train", recipe)
    assert_failed_at_the_end(answer, "step-000002 could not be written (File too large): free space")
    assert checkpoints(tmp_path / "run") == []
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def assert_failed_at_the_end(answer: Any, said: str) -> None:
    """After some of the run's own lines, one line that is the error."""
    assert answer.status == 2, answer
    (line,) = [line for line in answer.err.splitlines() if line.startswith("error")]
    assert said in line
    assert "--resume" in line
    assert answer.err.strip().endswith(line)


def test_what_fails_at_the_end_loses_no_checkpoint(command, tmp_path: Path):
    recipe = write_recipe(tmp_path, training={"save_every": 2})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").mkdir()  # nothing can be renamed to this
    answer = command("train", recipe)
    assert_failed_at_the_end(answer, f"{tmp_path / 'run'} cannot be written (Is a directory)")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-000002", "step-000004"]
    assert not (tmp_path / "run" / "config.json").exists()
    (tmp_path / "run" / "model.safetensors").rmdir()
    assert command("train", recipe, "--resume").status == 0


def test_the_installed_command_ends_alike(tmp_path: Path):
    """A process of its own: its exit status, and not one line more than the one."""
    answer = subprocess.run(
        [sys.executable, "-m", "hanlin.cli", "train", str(tmp_path / "nowhere.toml")], capture_output=True, text=True
    )
    assert (answer.returncode, answer.stdout) == (2, "")
    assert len(answer.stderr.splitlines()) == 1
    assert "nowhere.toml does not exist" in answer.stderr
