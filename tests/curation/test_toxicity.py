"""The bundled classifier and the command that trains it."""

import csv
from pathlib import Path

import numpy as np
import pytest

from hanlin.curation.linear_training import best_threshold
from hanlin.curation.rule import Text
from hanlin.curation.toxicity import WEIGHTS, features, judge_toxicity, score
from hanlin.curation.toxicity_training import main, train
from hanlin.errors import DataError

COLD = Path("/work/shared/data/cold_dev.csv")


def test_the_weights_are_small_and_tell_insults_from_thanks() -> None:
    assert WEIGHTS.stat().st_size < 500_000
    assert score("you are a fucking idiot") > 0.9
    assert score("Thank you for your help") < 0.2
    assert score("你这个傻逼，滚出去") > 0.6
    assert score("你好，很高兴认识你") < 0.2
    assert judge_toxicity(Text("")).keep
    assert judge_toxicity(Text("今天我们学习如何做西红柿炒鸡蛋。" * 100)).keep


@pytest.mark.skipif(not COLD.exists(), reason="COLD is not here")
def test_accuracy_on_rows_it_has_not_seen() -> None:
    with COLD.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = [(row["TEXT"], int(row["label"])) for row in csv.DictReader(file)][::4]
    assert np.mean([(score(text) >= 0.5) == label for text, label in rows]) >= 0.78


def test_it_can_be_trained_anew(tmp_path: Path) -> None:
    for name, header, good, bad in (
        ("zh.csv", ("TEXT", "label"), "谢谢你的帮助", "滚开你这个混蛋"),
        ("en.csv", ("text", "is_offensive"), "thank you so much", "get lost you moron"),
    ):
        rows = [
            header,
            *((f"{text}{number}", label) for number in range(150) for text, label in ((good, 0), (bad, 1), (good, 0))),
        ]
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    told = train(tmp_path / "zh.csv", tmp_path / "en.csv", tmp_path / "made.npz")
    assert told["zh accuracy"] == told["en accuracy"] == 1.0
    assert (tmp_path / "made.npz").stat().st_size < 500_000
    with pytest.raises(DataError, match="two files"):
        main([])
    with pytest.raises(DataError, match="no table"):
        train(tmp_path / "none.csv", tmp_path / "en.csv", tmp_path / "made.npz")


def test_features_fold_width_script_and_case() -> None:
    assert features("ＡＢＣ").tolist() == features("abc").tolist()
    assert features("罵人").tolist() == features("骂人").tolist()


def test_a_threshold_is_the_lowest_with_the_wanted_precision() -> None:
    scores = np.linspace(1, 0, 1000)
    labels = (np.arange(1000) < 400).astype(np.int64)
    assert best_threshold(scores, labels, 0.8) == pytest.approx(scores[499])
