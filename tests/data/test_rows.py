"""Every form of a preference row means the same pair, and every way to be wrong has a reason."""

import random

import pytest

from hanlin.data.messages import BadRow
from hanlin.data.rows import read_row
from hanlin.types import Message, Preference

SYSTEM, ASK, SAID, AGAIN = "你是助手。", "你好？", "在的。", "再见 {🙂}\n`x`"
WHOLE = [("system", SYSTEM), ("user", ASK), ("assistant", SAID), ("user", AGAIN)]
PAIR = Preference(
    prompt=tuple(Message(role, text) for role, text in WHOLE), chosen="好的。", rejected="OK.", id="f.jsonl:3"
)
GOOD = {"prompt": ASK, "chosen": "好的。", "rejected": "OK."}


def share(turns):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[role], "value": text} for role, text in turns]


def roles(turns):
    return [{"role": role, "content": text} for role, text in turns]


def answered(text: str):
    return [*WHOLE, ("assistant", text)]


CHOSEN, REJECTED = ("assistant", "好的。"), ("assistant", "OK.")
TEXTS = {"chosen": "好的。", "rejected": "OK."}
LISTS = {"chosen": roles([CHOSEN]), "rejected": roles([REJECTED])}
WHOLES = {"chosen": roles([*WHOLE, CHOSEN]), "rejected": roles([*WHOLE, REJECTED])}
TRANSCRIPT = f"\n\nHuman: {ASK}\n\nAssistant: {SAID}\n\nHuman: {AGAIN}\n\nAssistant: "


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": share(WHOLE), "chosen": share([CHOSEN])[0], "rejected": share([REJECTED])[0]},
        {"conversations": share(WHOLE), **TEXTS},
        {"conversations": share(WHOLE[1:]), "system": SYSTEM, **TEXTS, "tools": "[]", "images": []},
        {"conversations": roles(WHOLE), "chosen": "好的。", "rejected": roles([REJECTED])[0]},
        {"messages": roles(WHOLE), **TEXTS},
        {"prompt": roles(WHOLE), **LISTS},
        {"prompt": roles(WHOLE), **TEXTS, "conversations": None},
        WHOLES,
        {**WHOLES, "prompt": None, "chosen": share([*WHOLE, CHOSEN])},
        {**WHOLES, "prompt": ASK, "messages": roles([*WHOLE, CHOSEN])},
        {**WHOLES, "prompt": roles(WHOLE)},
        {"prompt": ASK, "system": SYSTEM, **{side: turns[1:] for side, turns in WHOLES.items()}},
        {"system": SYSTEM, "conversations": share(WHOLE), **TEXTS},
        {"conversations": share(WHOLE), **TEXTS, "score": 3.5, "source": {"a": [1]}},
        {"instruction": AGAIN, "input": "", "history": [[ASK, SAID]], "system": SYSTEM, **TEXTS},
        {"instruction": AGAIN.split("\n")[0], "input": AGAIN.split("\n")[1], "history": [[ASK, SAID]], **TEXTS}
        | {"system": SYSTEM, "prompt": None},
        {"prompt": [{"role": "developer", "content": SYSTEM}, *roles(WHOLE[1:])], **TEXTS},
        {
            "input": {"messages": roles(WHOLE), "tools": [], "parallel_tool_calls": True},
            "preferred_output": roles([CHOSEN]),
            "non_preferred_output": roles([REJECTED]),
        },
        {side: TRANSCRIPT + text for side, text in TEXTS.items()} | {"system": SYSTEM},
        {**TEXTS, "prompt": TRANSCRIPT, "system": SYSTEM},
    ],
)
def test_every_form_is_the_same_pair(row):
    assert read_row(row, "f.jsonl:3") == PAIR


def test_plain_text_is_one_user_turn_and_stays_as_it_is():
    pair = read_row({"prompt": " 问\n", "chosen": " 答。\n", "rejected": "a"}, "x:1")
    assert pair == Preference((Message("user", " 问\n"),), " 答。\n", "a", id="x:1")


def test_id_category_and_fault_are_kept():
    pair = read_row({**GOOD, "id": 17, "category": "数学", "fault": "wrong sum"}, "x:1")
    assert (pair.id, pair.category, pair.fault) == ("17", "数学", "wrong sum")
    assert read_row({**GOOD, "id": "", "fault": None}, "x:1").id == "x:1"


def test_empty_system_texts_are_none():
    for row in ({"system": " "}, {"prompt": roles([("system", ""), ("user", ASK)])}):
        assert read_row({**GOOD, **row}, "").prompt == (Message("user", ASK),)


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "甲"}, {"type": "text", "text": "乙", "image": None}]
    row = {**GOOD, "prompt": [{"role": "user", "content": parts}]}
    assert read_row(row, "").prompt[0].content == "甲乙"


def messages(*turns):
    return {**GOOD, "prompt": roles(turns)}


HH = "\n\nHuman: a\n\nAssistant:"
ALPACA = {"instruction": "a", "chosen": "b", "rejected": "c"}
OPENAI = {
    "input": {"messages": [{"role": "user", "content": "a"}]},
    "preferred_output": [{"role": "assistant", "content": "b"}],
    "non_preferred_output": [{"role": "assistant", "content": "c"}],
}
DIFFERENT = "chosen and rejected have different prompts"
BAD = [
    ([], "the row is not an object", "expected prompt, chosen and rejected"),
    ("text", "the row is not an object", '"text"'),
    ({}, "chosen and rejected are missing", "the columns are none"),
    ({"instruction": "a", "input": "", "output": "b"}, "chosen and rejected are missing", "this is SFT data"),
    ({"conversations": share(answered("a"))}, "chosen and rejected are missing", "this is SFT data"),
    ({"prompt": "a", "completion": "b", "label": True}, "chosen and rejected are missing", "KTO"),
    ({"prompt": "a", "chosen": "b"}, "rejected is missing", "the columns are prompt, chosen"),
    ({"prompt": "a", "choosen": "b", "rejected": "c"}, "chosen is missing", "rename the column 'choosen' to 'chosen'"),
    ({**GOOD, "rejected": None}, "rejected is null", "both answers"),
    ({**GOOD, "chosen": ""}, "chosen is empty", "needs text"),
    ({**GOOD, "rejected": " \n　"}, "rejected is empty", "needs text"),
    ({**GOOD, "chosen": []}, "chosen is empty", "no message"),
    ({**GOOD, "chosen": 4.5}, "chosen is not text", "4.5"),
    ({**GOOD, "chosen": ["好", "坏"]}, "chosen is a list of texts", "2 of them"),
    ({**GOOD, "rejected": "好的。\n"}, "equal answers", '"好的。"'),
    ({**GOOD, "chosen": {"from": "human", "value": "a"}}, "chosen does not end with an assistant turn", "user's"),
    ({**GOOD, "chosen": {"value": "a"}}, "a message has no role", "chosen[0] has the fields value"),
    ({**GOOD, "chosen": {"role": "assistant", "content": None}}, "a message has no text", "chosen[0]"),
    ({**GOOD, "prompt": None}, "the prompt is missing", "expected prompt"),
    ({"question": "a", "chosen": "b", "rejected": "c"}, "the prompt is missing", "rename the column 'question'"),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "x"}, DIFFERENT, "1 messages before the chosen"),
    ({"chosen": HH + " b\n\nHuman: c", "rejected": HH + " x"}, "chosen does not end with an assistant turn", "user's"),
    ({"chosen": HH, "rejected": HH + " x"}, "chosen is empty", "needs text"),
    ({"chosen": HH + HH + " b", "rejected": HH + HH + " x"}, "a message is empty", "assistant turn 2"),
    ({**ALPACA, "input": 3}, "input is not text", "3"),
    ({**ALPACA, "history": "earlier"}, "history is not rounds", '"earlier"'),
    ({**OPENAI, "preferred_output": None}, "preferred_output is not one message", "null"),
    ({**OPENAI, "non_preferred_output": []}, "non_preferred_output is not one message", "[]"),
    ({**OPENAI, "input": "a"}, "the prompt is missing", '"a"'),
    ({**OPENAI, "input": {"messages": [{"role": "user", "content": "a"}], "tools": [1]}}, "tools", "column 'tools'"),
    ({"history": "a", "human_ref_A": "b", "labels": 1}, "chosen and rejected are missing", "hanlin data pairs"),
    ({"prompt": "a", "response": "b", "helpfulness": 4}, "chosen and rejected are missing", "hanlin data pairs"),
    ({**GOOD, "prompt": ""}, "the prompt is empty", "user turn 1"),
    ({**GOOD, "prompt": []}, "the prompt is empty", "at least one user turn"),
    (messages(("system", "a")), "the prompt is empty", "at least one user turn"),
    ({**GOOD, "prompt": 3}, "prompt is not a list of messages", "3"),
    ({**GOOD, "prompt": ["a"]}, "a message is not an object", "prompt[0]"),
    ({**GOOD, "prompt": [{"role": 3, "content": "a"}]}, "a message has no role", "prompt[0]"),
    ({**GOOD, "prompt": [{"role": ["user"], "content": "a"}]}, "a message has no role", "prompt[0]"),
    (messages(("User", "a")), "unknown role", "'User' in prompt[0]; known are system, developer, human, user, gpt, a"),
    (messages(("user", "a"), ("tool", "b")), "tools", "'tool' turn"),
    (messages(("user", "a"), ("assistant", "b")), "the prompt does not end with a user turn", "assistant's"),
    (messages(("assistant", "b"), ("user", "a")), "turns do not alternate", "turn 1 is the assistant's"),
    (messages(("user", "b"), ("user", "a")), "turns do not alternate", "turn 2 is the user's"),
    (messages(("user", "a"), ("system", "b"), ("user", "c")), "a system message is not the first", "at its start"),
    (messages(("user", "a"), ("assistant", ""), ("user", "b")), "a message is empty", "assistant turn 2"),
    ({**GOOD, "system": ["a"]}, "system is not text", '["a"]'),
    ({**GOOD, "system": "x", "prompt": roles(WHOLE)}, "two system texts", "'system'"),
    ({**GOOD, "tools": [{"name": "f"}]}, "tools", "column 'tools'"),
    ({**GOOD, "images": ["a.png"]}, "images or other media", "column 'images'"),
    ({**GOOD, "prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "images or other media", "prompt[0]"),
    ({**GOOD, "prompt": [{"role": "user", "content": {"a": 1}}]}, "a message is not text", "prompt[0]"),
    ({**GOOD, "prompt": [{"role": "user", "content": [{"type": "text"}]}]}, "a message is not text", "prompt[0]"),
    ({**GOOD, "prompt": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "tools", "calls a tool"),
    ({**GOOD, "prompt": "a\0b"}, "a NUL character", "a\\u0000b"),
    ({**GOOD, "chosen": "half \ud83d"}, "half a character", "\\ud83d at character 5"),
    ({**GOOD, "id": {"a": 1}}, "id is not text", '{"a": 1}'),
    ({**GOOD, "fault": True}, "fault is not text", "true"),
    ({**WHOLES, "prompt": "other"}, "the prompt is not in the messages", '"other"'),
    ({**WHOLES, "prompt": roles([("user", "other")])}, "the prompt is not in the messages", "begin with other"),
    ({**WHOLES, "rejected": roles([("user", "x"), REJECTED])}, DIFFERENT, "4 messages"),
    ({**WHOLES, "rejected": "b"}, DIFFERENT, "0 before"),
    ({**WHOLES, "rejected": roles([*WHOLE[:3], ("user", "y"), REJECTED])}, DIFFERENT, "message 4"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "detail"), BAD)
def test_a_bad_row_has_a_reason(row, reason, detail):
    with pytest.raises(BadRow) as caught:
        read_row(row, "x:1")
    assert caught.value.reason == reason
    message = str(caught.value)
    assert detail in message
    assert "\n" not in message
    message.encode()


def test_a_reason_holds_no_value_of_the_row():
    marked = {**GOOD, "prompt": [{"role": "秘密", "content": "秘密"}]}
    with pytest.raises(BadRow) as caught:
        read_row(marked, "秘密:1")
    assert "秘密" not in caught.value.reason


def test_any_json_is_a_pair_or_a_bad_row():
    """Damage good rows at random: nothing but BadRow may come out, and what is read obeys the noun's promises."""
    rng = random.Random(3)
    junk = [
        None,
        "",
        " ",
        "a",
        0,
        -1.5,
        True,
        [],
        {},
        [None],
        ["a"],
        [[]],
        {"role": "user"},
        {"from": "gpt", "value": "z"},
    ]
    good = [
        {"conversations": share(WHOLE), "chosen": share([("assistant", "b")])[0], "rejected": "c", "system": ""},
        {"prompt": roles(WHOLE), "chosen": roles([("assistant", "b")]), "rejected": roles([("assistant", "c")])},
        {"prompt": ASK, "chosen": roles(answered("a")), "rejected": roles(answered("b")), "id": 3, "tools": None},
    ]

    def damaged(node, depth=0):
        if depth and rng.random() < 0.03:
            return rng.choice(junk)
        if isinstance(node, dict):
            return {key: damaged(value, depth + 1) for key, value in node.items() if rng.random() > 0.02}
        return [damaged(item, depth + 1) for item in node if rng.random() > 0.02] if isinstance(node, list) else node

    outcomes = {True: 0, False: 0}
    for _ in range(3000):
        try:
            pair = read_row(damaged(rng.choice(good)), "x:1")
        except BadRow:
            outcomes[False] += 1
            continue
        outcomes[True] += 1
        assert pair.prompt[-1].role == "user"
        assert pair.chosen.strip() != pair.rejected.strip()
        assert all(message.content.strip() for message in pair.prompt)
        assert pair.id
    assert min(outcomes.values()) > 200


def test_an_answer_that_quotes_a_dialogue_is_an_answer():
    quoted = "Human: Hi!\n\nAssistant: Hello!"
    pair = read_row({"prompt": "Write a dialogue.\n\nAssistant: like this", "chosen": quoted, "rejected": "no"}, "x:1")
    assert (len(pair.prompt), pair.chosen) == (1, quoted)
