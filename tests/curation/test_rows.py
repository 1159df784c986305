"""Rows of every form as texts with sides: calls of tools, lists of parts, damage; and what is written back."""

import json
from pathlib import Path

import polars
import pytest

from hanlin.curation.explain import explain
from hanlin.curation.policy import curate_row
from hanlin.curation.recipe import CurationSection, DecontaminationSection
from hanlin.curation.rows import read_slots, without_system
from hanlin.curation.rule import KEEP, objection
from hanlin.curation.shards import parse_row, read_rows, source_names
from hanlin.data.messages import BadRow

CALL = {
    "id": "call_13812345678",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"phone": 13812345678}'},
}
OPENAI = {
    "messages": [
        {"role": "user", "content": "帮我查一下这个号码的归属地，谢谢。"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_13812345678", "content": '{"city": "Beijing", "owner": "a@qq.com"}'},
        {"role": "assistant", "content": "这个号码的归属地是北京，机主的信息不便透露。"},
    ]
}


def test_a_call_without_content_is_a_turn_and_what_tools_say_is_no_question() -> None:
    kind, slots, _ = read_slots(OPENAI, "x:1")
    assert kind == "conversation"
    assert [side for side, _ in slots] == ["user", "tool", "tool", "assistant"]
    outcome = curate_row(OPENAI, "x:1", CurationSection())
    assert outcome.row is not None, outcome.decisions
    messages = outcome.row["messages"]
    call = messages[1]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"phone": "[手机号]"}
    assert call["id"] == "call_13812345678" == messages[2]["tool_call_id"]
    assert json.loads(messages[2]["content"]) == {"city": "Beijing", "owner": "[邮箱]"}
    assert messages[1]["content"] is None
    again = curate_row(outcome.row, "x:1", CurationSection())
    assert not again.changed
    assert not again.decisions


def test_sharegpts_calls_and_observations_are_tools_too() -> None:
    turns = (("human", "天气？"), ("function_call", '{"name": "w"}'), ("observation", "{}"), ("gpt", "今天是晴天。"))
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    assert [side for side, _ in read_slots(row, "x")[1]] == ["user", "tool", "tool", "assistant"]
    assert curate_row(row, "x", CurationSection()).row == row


def test_parts_of_text_are_read_and_pictures_are_refused() -> None:
    parts = [{"type": "text", "text": "你好，我的手机是13812345678。"}, {"type": "text", "text": "请记住。"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "好的，我记住了。"}]}
    made = curate_row(row, "x", CurationSection()).row
    assert made is not None
    assert made["messages"][0]["content"][0]["text"] == "你好，我的手机是[手机号]。"
    picture = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}
    with pytest.raises(BadRow, match="a message is not text"):
        read_slots(picture, "x")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": None, "content": "hi"}]},
        {"messages": ["hi"]},
        {"messages": [{"role": "user", "content": "\ud83d"}]},
        {"text": "half \udc00"},
        {"text": None},
        {"instruction": "a", "input": ["b"], "output": "c"},
        {"chosen": None, "rejected": "b", "prompt": "c"},
        {},
        [],
        "text",
        None,
    ],
)
def test_damaged_rows_are_refused_with_a_reason(row) -> None:
    with pytest.raises(BadRow):
        curate_row(row, "x:1", CurationSection())


def test_files_of_one_name_are_told_apart() -> None:
    assert source_names([Path("a/x.jsonl"), Path("b/y.jsonl")]) == ["x.jsonl", "y.jsonl"]
    assert source_names([Path("d/a/x.jsonl"), Path("d/b/x.jsonl")]) == ["a/x.jsonl", "b/x.jsonl"]


def test_explaining_knows_the_recipes_names_words_and_guard(tmp_path: Path) -> None:
    row = {"prompt": "你是谁呀？", "chosen": "我是由OpenAI训练的，别问了，笨笨。", "rejected": "我不知道。"}
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n" + json.dumps(row, ensure_ascii=False), encoding="utf-8")
    plain = {(line.side, line.rule): line.keep for line in explain(f"{file}:2")}
    assert plain["chosen", "lexicon"]
    assert not plain["chosen", "identity"]
    assert ("chosen", "toxic") in plain
    config = CurationSection(maker="OpenAI", words=("笨笨",))
    lines = explain(
        f"{file}:2",
        config,
        guard=lambda prompt, answer: objection("rude") if answer else KEEP,
        guarded=("prompt", "chosen"),
    )
    told = {(line.side, line.rule): line.keep for line in lines}
    assert not told["chosen", "lexicon"]
    assert told["chosen", "identity"]
    assert told["prompt", "guard"]
    assert not told["chosen", "guard"]


def test_system_columns_and_earlier_rounds_are_curated_too() -> None:
    row = {
        "instruction": "请再说一遍我的号码。",
        "input": "",
        "output": "好的，您的号码已经记下来了。",
        "system": "有事请打电话13812345678联系管理员。",
        "history": [["我的手机号是13912345678，请记住。", "好的，我记住了您的手机号。"]],
    }
    assert [side for side, _ in read_slots(row, "x")[1]] == ["user", "user", "assistant", "user", "assistant"]
    made = curate_row(row, "x", CurationSection()).row
    assert made is not None
    assert made["system"] == "有事请打电话[手机号]联系管理员。"
    assert made["history"][0][0] == "我的手机号是[手机号2]，请记住。"
    kind, slots, _ = read_slots(row, "x")
    assert without_system(row, kind, slots) == slots[1:]
    turns = [{"from": "human", "value": "天气如何呢？"}, {"from": "gpt", "value": "今天是晴天。"}]
    kind, slots, _ = read_slots(shared := {"system": "你是助手。", "conversations": turns}, "x")
    assert without_system(shared, kind, slots) == [("user", "天气如何呢？"), ("assistant", "今天是晴天。")]


def test_utf16_without_its_mark_is_no_row_and_bytes_of_a_table_are_text(tmp_path: Path) -> None:
    assert parse_row("x", 1, '{"text": "a"}'.encode("utf-16-le")).trouble
    columns = {"prompt": ["问".encode(), b"q"], "picture": [b"\x89PNG", None], "score": [float("nan"), 1.5]}
    polars.DataFrame(columns).write_parquet(tmp_path / "rows.parquet")
    rows = [row.value for row in read_rows([tmp_path / "rows.parquet"])]
    assert rows[0] == {"prompt": "问", "picture": "data:application/octet-stream;base64,iVBORw==", "score": None}
    assert rows[1] == {"prompt": "q", "picture": None, "score": 1.5}


PHONE, MASK = "我的手机是13812345678，请记住它。", "我的手机是[手机号]，请记住它。"
ALSO, ALSO_MASKED = "请把号码13812345678再说一遍吧。", "请把号码[手机号]再说一遍吧。"
GOOD, BAD_ONE = "好的，我已经记住了您的手机号码。", "好的，您的手机号码是13812345678。"
BAD_MASKED = "好的，您的手机号码是[手机号]。"


def foreign(first: str, second: str, rejected: str) -> list[dict]:
    """One pair in every form that is not our own."""
    rounds = [("user", first), ("assistant", "请讲。"), ("user", second)]
    transcript = f"\n\nHuman: {first}\n\nAssistant: 请讲。\n\nHuman: {second}\n\nAssistant: "
    return [
        {"instruction": second, "input": "", "history": [[first, "请讲。"]], "chosen": GOOD, "rejected": rejected},
        {"instruction": "照做：\n两行。", "input": second, "chosen": GOOD, "rejected": rejected},
        {
            "input": {"messages": [{"role": role, "content": text} for role, text in rounds], "tools": []},
            "preferred_output": [{"role": "assistant", "content": GOOD}],
            "non_preferred_output": [{"role": "assistant", "content": rejected}],
        },
        {"chosen": transcript + GOOD, "rejected": transcript + rejected},
        {"prompt": transcript, "chosen": f" {GOOD}", "rejected": f" {rejected}"},
    ]


@pytest.mark.parametrize("index", range(5))
def test_a_pair_of_any_form_keeps_its_form_when_it_is_masked(index: int) -> None:
    row, masked = (foreign(*texts)[index] for texts in ((PHONE, ALSO, BAD_ONE), (MASK, ALSO_MASKED, BAD_MASKED)))
    config = CurationSection()
    outcome = curate_row(row, "x:1", config)
    assert outcome.kind == "pair"
    assert outcome.row == masked
    assert not curate_row(outcome.row, "x:1", config).changed


def test_answers_with_opinions_are_no_pairs() -> None:
    with pytest.raises(BadRow, match="hanlin data pairs"):
        read_slots({"prompt": "a", "response": "b", "helpfulness": 4}, "x:1")


def test_a_developers_text_is_a_systems() -> None:
    turns = [
        {"role": role, "content": text} for role, text in (("developer", "规则"), ("user", "问"), ("assistant", "答"))
    ]
    kind, slots, _ = read_slots({"messages": turns}, "x:1")
    assert without_system({"messages": turns}, kind, slots) == [("user", "问"), ("assistant", "答")]


def test_explaining_tells_of_the_pair_and_of_benchmarks(tmp_path: Path) -> None:
    asked = "小明有二十三个苹果，他给了小红七个，请问他现在还有多少个苹果？"
    (tmp_path / "bench.txt").write_text(asked, encoding="utf-8")
    row = {"prompt": asked, "chosen": "答案是十六个苹果，算法很简单。", "rejected": "答案是：十六个苹果——算法很简单！"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row), encoding="utf-8")
    section = DecontaminationSection(files=(str(tmp_path / "bench.txt"),))
    lines = explain(f"{tmp_path / 'pairs.jsonl'}:1", decontamination=section)
    told = {(line.side, line.rule): line.reason for line in lines if not line.keep}
    assert told["pair", "pair_equal"] == "equal answers"
    assert told["row", "contaminated"] == "bench.txt:1, 100% of it"
    assert ("pair", "pair_gap") in {(line.side, line.rule) for line in lines if line.keep}
