"""What a user gets wrong is one message and status 2."""

from functools import partial
from pathlib import Path

import decode
import family_step
import memory
import orpo_step
import pytest
import ranks
from harness import BenchmarkError, find_pairs, require_package, run_main, run_worker
from orpo_systems import Conditions, choose, hindrance, systems

WRONG = [
    (orpo_step, ["--steps", "0"], "at least 1"),
    (orpo_step, ["--shape", "llama3-8b"], "go together"),
    (orpo_step, ["--random-init"], "go together"),
    (orpo_step, ["--shape", "llama3-9b", "--random-init"], "llama3-8b"),
    (orpo_step, ["--lora", "wide"], "a rank such as 64"),
    (orpo_step, ["--case", "easy"], "no-shared-prompt"),
    (decode, ["--rounds", "0"], "at least 1"),
    (decode, ["--model", "nowhere.gguf"], "make assets"),
    (decode, ["--systems", "vllm"], "llama.cpp-q8"),
    (memory, ["--sizes", "700"], "multiples of --pair-tokens 512"),
    (family_step, ["--steps", "0"], "at least 1"),
    (family_step, ["--systems", "trl-packed"], "trl-packed-1024"),
    (family_step, ["--objective", "reward", "--systems", "trl-packed-1024"], "there are hanlin, trl"),
    (family_step, ["--data", "pairs.jsonl"], "goes with one --objective"),
    (ranks, ["--steps", "2"], "expected more than 2"),
]


@pytest.mark.parametrize(
    ("benchmark", "given", "said"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_wrong_argument(benchmark, given, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.parse_arguments(given)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_quick_writes_no_page():
    for benchmark in (orpo_step, memory, family_step, ranks):
        assert benchmark.parse_arguments(["--quick"]).output is None
        assert benchmark.parse_arguments([]).output.parent.name == "results"


def test_a_page_for_each_shape():
    given = ["--shape", "gemma2-9b", "--random-init", "--device", "cuda", "--lora", "64"]
    arguments = orpo_step.parse_arguments(given)
    assert arguments.output.name == "orpo_step-gemma2-9b-lora64.md"
    assert (arguments.case, arguments.no_gate, arguments.lora) == (["random"], True, 64)
    assert orpo_step.parse_arguments(given[:3]).lora == 0


def test_a_failed_benchmark_ends_with_one_message(capsys):
    def fail(workspace: Path) -> None:
        assert workspace.is_dir()
        raise BenchmarkError("no pairs; give some")

    assert run_main(fail, name="test", needs={}) == 2
    assert capsys.readouterr().err == "error: no pairs; give some\n"
    assert run_main(lambda workspace: None, name="test", needs={"pytest": "1"}) == 2
    assert "make bench" in capsys.readouterr().err
    assert run_main(lambda workspace: None, name="test", needs={}) == 0


def test_other_errors_keep_their_traceback():
    def fail(workspace: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main(fail, name="test", needs={})


def test_a_release_is_not_a_prefix_of_its_number():
    with pytest.raises(BenchmarkError, match=r"expected 9\.1"):
        require_package("pytest", release="9.1")
    with pytest.raises(BenchmarkError, match="is not installed"):
        require_package("no-such-package-here", release="1")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BenchmarkError, match=r"nowhere\.json does not exist"):
        find_pairs([tmp_path / "nowhere.json"])


def test_an_unknown_system_lists_the_known_ones():
    with pytest.raises(BenchmarkError, match=r"no system is called trl-b3; there are hanlin.*trl-b4.*ladder"):
        choose(["hanlin", "trl-b3"])


def test_why_a_system_is_not_measured():
    known = systems(Conditions())
    on_cpu, on_cuda = Conditions(), Conditions(device="cuda", random_init=True)
    assert hindrance(known["hanlin"], on_cpu) is None
    assert hindrance(known["unsloth"], on_cpu) == "needs a GPU"
    assert "no worker" in (hindrance(known["unsloth"], on_cuda) or "")
    assert hindrance(known["hanlin-compile"], on_cpu) == "needs a GPU"
    assert hindrance(known["hanlin-compile"], on_cuda) is None
    assert "real model" in (hindrance(known["llamafactory"], on_cuda) or "")


def test_every_worker_is_there():
    folder = Path(orpo_step.__file__).parent / "workers"
    scripts = {one.worker for one in systems(Conditions()).values()} - {""}
    scripts |= {one.worker for one in decode.SYSTEMS.values()}
    assert {name for name in scripts if not (folder / name).exists()} == set()


def test_a_failed_worker_shows_the_end_of_its_log(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("print('almost')\nraise ValueError('the reason')\n", encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"(?s)worker.py failed with status 1.*almost.*the reason"):
        run_worker(script, {}, workspace=tmp_path)


def test_a_worker_is_given_its_settings_and_its_environment(tmp_path):
    script = tmp_path / "worker.py"
    lines = ("import json, os, sys", "given = json.load(open(sys.argv[1]))", "given['seen'] = os.environ['SEEN']")
    script.write_text("\n".join([*lines, "json.dump(given, open(sys.argv[2], 'w'))"]), encoding="utf-8")
    run = partial(run_worker, script, workspace=tmp_path, environment={"SEEN": "yes"})
    assert run({"a": 1}) == {"a": 1, "seen": "yes"}
    assert run({"a": 2}) == {"a": 2, "seen": "yes"}, "each run has files of its own"
