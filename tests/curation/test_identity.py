"""Self-identification: the lines that its classifier learned from, rows that it has not seen, training."""

from pathlib import Path

import numpy as np
import pytest

from hanlin.curation.identity import find_identity, rewritten
from hanlin.curation.identity_claims import WEIGHTS, features
from hanlin.curation.identity_training import OWN, main, read_lines, train
from hanlin.curation.identity_words import ANY_NAME, Word, hidden, names_somebody, plainly, read, spelled
from hanlin.curation.linear import read_linear
from hanlin.curation.linear_training import run_command
from hanlin.curation.rule import Text
from hanlin.errors import DataError

LINES = Path(__file__).parent.parent.parent / "data" / "identity-lines.tsv"
PROBES = Path(__file__).parent.parent / "identity_probes.tsv"


def precision_and_recall(path: Path) -> tuple[float, float]:
    judged = [(label, bool(find_identity(Text(text), own=OWN))) for text, label in read_lines(path)]
    right = sum(label and found for label, found in judged)
    return right / sum(found for _, found in judged), right / sum(label for label, _ in judged)


def test_claims_are_found_and_talk_of_models_is_not() -> None:
    """Lines by people who had not seen the rule; the classifier has not seen them."""
    precision, recall = precision_and_recall(PROBES)
    assert precision >= 0.97
    assert recall >= 0.9


def test_the_lines_that_the_classifier_learned_from() -> None:
    precision, recall = precision_and_recall(LINES)
    assert precision >= 0.97
    assert recall >= 0.85  # indirect wordings among them, and names that the rule does not know


def test_the_quick_look_lets_every_name_through() -> None:
    names = "ChatGPT GPT-4o Qwen2.5-72B 通义千问 豆包 Kimi DeepSeek-V3 文心一言 讯飞星火 Llama-3 Grok 谷歌 OpenAI 01.AI"
    for text in [*names.split(), *(text for text, _ in read_lines(LINES))]:
        plain = plainly(Text(text))
        assert names_somebody(Text(text), plain) >= bool(ANY_NAME.search(plain)), text
    assert all(ANY_NAME.search(name.lower()) for name in names.split())


def test_the_users_own_model_is_no_mistake_and_rewriting_leads_to_it() -> None:
    text = "我是ChatGPT，一个由OpenAI训练的大型语言模型。"
    made = rewritten(text, find_identity(Text(text)), name="翰林", maker="本社")
    assert made == "我是翰林，一个由本社训练的大型语言模型。"
    assert find_identity(Text(made)) == ()
    assert find_identity(Text("我是由OpenAI训练的。"), own=("openai",)) == ()


def test_rewriting_leaves_what_was_denied_as_it_stood() -> None:
    for text, made in (
        ("我不是ChatGPT，我是Claude。", "我不是ChatGPT，我是翰林。"),
        ("I'm Gemini, made by Google, not ChatGPT.", "I'm 翰林, made by 本社, not ChatGPT."),
    ):
        assert rewritten(text, find_identity(Text(text)), name="翰林", maker="本社") == made


def test_names_stand_for_their_class_in_what_the_classifier_sees() -> None:
    one, other = "我是由openai训练的gpt-4。", "我是由百度训练的llama-3。"
    assert spelled(read(one))[0] == spelled(read(other))[0]
    assert features(read(one)).tolist() == features(read(other)).tolist()
    own = hidden("我是翰林，由本社训练。", OWN)
    assert features(read(own)).tolist() != features(read("我是千问，由百度训练。")).tolist()
    assert [word.letters for word in read("gpt-4")] == ["M"]
    assert isinstance(read("我")[0], Word)


def test_the_classifier_is_small_and_can_be_trained_anew(tmp_path: Path) -> None:
    assert WEIGHTS.stat().st_size < 300_000
    lines = [f"1\t我是第{number}代助手，由OpenAI训练。" for number in range(150)]
    lines += [f"0\t我在OpenAI训练了{number}天模型。" for number in range(150)]
    (tmp_path / "lines.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="no claims with language en"):
        train(tmp_path / "lines.tsv", tmp_path / "made.npz")
    lines += [f"1\tI am assistant {number}, made by OpenAI." for number in range(150)]
    lines += [f"0\tI am teacher {number} of a class that OpenAI pays." for number in range(150)]
    (tmp_path / "lines.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    told = train(tmp_path / "lines.tsv", tmp_path / "made.npz")
    assert told["zh recall"] == told["en recall"] == 1.0
    model = read_linear(tmp_path / "made.npz")
    assert model.score(features(read("我是助手，由openai训练。"))) > model.score(features(read("我在openai训练模型。")))
    assert np.count_nonzero(model.weights) < 1000


def test_bad_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "lines.tsv").write_text("1\tgood\nbad\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"lines\.tsv:2"):
        train(tmp_path / "lines.tsv", tmp_path / "made.npz")
    with pytest.raises(DataError, match="cannot be read"):
        main([str(tmp_path / "none.tsv")])
    with pytest.raises(DataError, match="one file"):
        main([])


def test_the_command_says_a_mistake_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["identity_training", "nowhere.tsv"])
    assert run_command(main) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error 错误: nowhere.tsv cannot be read")
    assert said.err.count("\n") == 1
