"""The diary of a run: every step once, whatever killed it, under TRL's names."""

import json
from functools import partial
from pathlib import Path

import pytest

from hanlin.errors import TrainingError
from hanlin.objectives.scores import PairScore, held_out_metrics
from hanlin.training.checkpoint import Progress
from hanlin.training.metrics import Diary, MetricsLog, plot_metrics, read_metrics

SCORES = [PairScore(-1.0, -3.0, 2.5), PairScore(-2.0, -1.5, -0.7), PairScore(-0.5, -0.5, 0.0)]


def steps(run: Path) -> list[int]:
    return [record["step"] for record in read_metrics(run)]


def write(run: Path, numbers: range, *, first_step: int = 0) -> None:
    log = MetricsLog(run, first_step=first_step)
    for step in numbers:
        log.write({"step": step, "loss": 1 / step})


def test_what_a_resumed_run_repeats_is_dropped_first(tmp_path: Path):
    write(tmp_path, range(1, 9))
    write(tmp_path, range(6, 12), first_step=5)
    assert steps(tmp_path) == list(range(1, 12))


def test_a_half_written_line_and_what_follows_is_dropped(tmp_path: Path):
    write(tmp_path, range(1, 6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    write(tmp_path, range(5, 8), first_step=4)
    assert steps(tmp_path) == list(range(1, 8))
    assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")


def test_a_run_from_the_beginning_starts_a_new_diary(tmp_path: Path):
    write(tmp_path, range(1, 4))
    write(tmp_path, range(1, 3))
    assert steps(tmp_path) == [1, 2]
    assert read_metrics(tmp_path / "nowhere") == []


def test_numbers_are_short_and_whole_numbers_stay_whole(tmp_path: Path):
    MetricsLog(tmp_path).write({"step": 3, "loss": 1 / 3, "tokens": 123456789})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "loss": 0.3333333, "tokens": 123456789}\n'


def test_a_diary_that_cannot_be_written_says_so(tmp_path: Path):
    log = MetricsLog(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"metrics\.jsonl cannot be written \(Is a directory\)"):
        log.write({"step": 1})
    with pytest.raises(TrainingError, match="cannot be written"):
        MetricsLog(tmp_path)


def test_held_out_metrics_by_hand():
    metrics = held_out_metrics(SCORES, weight=0.1)
    assert metrics == pytest.approx(
        {
            "eval_nll_loss": 3.5 / 3,
            "eval_rewards/accuracies": 1 / 3,  # equal is not better
            "eval_rewards/margins": 0.1 * 1.5 / 3,
            "eval_logps/chosen": -3.5 / 3,
            "eval_logps/rejected": -5 / 3,
            "eval_log_odds_chosen": 1.8 / 3,
        }
    )


class Listener:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def step(self, progress: Progress, num_steps: int, metrics: dict[str, float]) -> None:
        self.heard.append((progress.step, num_steps, metrics["loss"]))

    def evaluated(self, progress: Progress, scores: object) -> None:
        self.heard.append((progress.step, scores))

    def saved(self, path: Path) -> None:
        self.heard.append(path)


def test_the_diary_writes_and_passes_on(tmp_path: Path):
    listener = Listener()
    diary = Diary(MetricsLog(tmp_path), listener, partial(held_out_metrics, weight=0.1))
    diary.step(Progress(step=1), 9, {"loss": 2.0})
    diary.evaluated(Progress(step=1), SCORES)
    diary.saved(tmp_path / "x")
    assert listener.heard == [(1, 9, 2.0), (1, SCORES), tmp_path / "x"]
    first, second = read_metrics(tmp_path)
    assert first == {"step": 1, "loss": 2.0}
    assert second["eval_rewards/margins"] == pytest.approx(0.05)


@pytest.mark.parametrize("count", [0, 1, 30])
def test_the_plot_is_a_picture_of_any_number_of_steps(tmp_path: Path, count: int):
    log = MetricsLog(tmp_path)
    for step in range(1, count + 1):
        log.write({"step": step, "nll_loss": 1 / step, "rewards/accuracies": 0.5})
        if step % 10 == 0:
            log.write({"step": step, **held_out_metrics(SCORES, weight=0.1)})
    path = plot_metrics(tmp_path)
    assert path.name == "metrics.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["metrics.jsonl", "metrics.png"]


def test_the_diary_is_plain_json_lines(tmp_path: Path):
    write(tmp_path, range(1, 4))
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
