"""Every rule on its own examples, on people's labels, and on rows made to be slow."""

import time

import pytest

from hanlin.curation.checksums import is_company_code, is_hong_kong_id, is_luhn, is_resident_id, is_taiwan_id
from hanlin.curation.masks import LABELS, Masks, synthetic
from hanlin.curation.pairs import check_equal, check_gap
from hanlin.curation.personal import find_personal
from hanlin.curation.policy import SIDE_RULES, curate_row
from hanlin.curation.recipe import CurationSection
from hanlin.curation.rule import Around, Rule, Text
from personal_cases import negatives, positives
from personal_cases import probes as personal_probes

EXAMPLES = [
    (name, text, keep)
    for name, rule in SIDE_RULES.items()
    for texts, keep in ((rule.passes, True), (rule.fails, False))
    for text in texts
]


@pytest.mark.parametrize(("name", "text", "keep"), EXAMPLES)
def test_a_rule_agrees_with_its_own_examples(name: str, text: str, keep: bool) -> None:
    assert SIDE_RULES[name].check(Text(text), Around()).keep is keep


def test_checksums_know_published_numbers() -> None:
    """GB 11643's and GB 32100's own examples, and the usual made-up ones of Taiwan and Hong Kong."""
    assert is_resident_id("11010519491231002X")
    assert not is_resident_id("110105194912310021")
    assert not is_resident_id("11010519491331002X")
    assert is_company_code("91350100M000100Y43")
    assert not is_company_code("91350100M000100Y44")
    assert is_luhn("4111111111111111")
    assert is_taiwan_id("A123456789")
    assert is_hong_kong_id("A", "123456", "3")
    assert not is_hong_kong_id("A", "123456", "4")


def test_personal_data_is_found_and_look_alikes_are_not() -> None:
    found = missed = 0
    for _, text, value in positives(20261121, 60):
        start = text.index(value)
        spans = find_personal(Text(text))
        hit = any(span.start <= start + 1 and span.end >= start + len(value) - 1 for span in spans)
        found, missed = found + hit, missed + (not hit)
    false = sum(bool(find_personal(Text(text))) for text in negatives(20261121, 400))
    assert found / (found + missed) >= 0.98
    assert found / (found + false) >= 0.97


@pytest.mark.parametrize(
    ("name", "precision"), [("personal_probes.txt", 0.99), ("personal_fresh_probes.txt", 0.98)], ids=["usual", "fresh"]
)
def test_an_outsiders_personal_data_is_found_and_look_alikes_are_not(name: str, precision: float) -> None:
    right = wrong = missed = 0
    for text, places in personal_probes(name):
        spans = find_personal(Text(text))
        hit = [any(span.start <= start + 1 and end <= span.end for span in spans) for start, end in places]
        right, missed = right + sum(hit), missed + hit.count(False)
        wrong += sum(not any(span.start < end and start < span.end for start, end in places) for span in spans)
    assert right / (right + missed) >= 0.98
    assert right / (right + wrong) >= precision


HOSTILE = (
    *("1", "13812345678 ", "1-", "a@", "a.", "@", "1.", "62", "sk-", "eyJa.", "://a:", "粤A", "微信:", "qq "),
    *("A1", "::", "2001:", "a@a.", "+1 ", "(010)", "我是openai", "openai ", "i am an ai by google ", "<div", "&", "的"),
    *("8.8.4.5 ", "“我是gpt", "i am gpt. ", "A123456(sorry \n", "SG.", "a\nb\n", "x^2+", "微信号他说：13812345678 "),
    *(
        "手机13812345678，",
        "QQ12345678 ",
        "护照E12345678 ",
        "13812345678 47.93.12.200 a@b.cn ",
        "(212) 555-2368 ",
        "他妈的手机",
    ),
    *("微信搜a_1", "加我", "t.me/abcde ", "my wechat, a_1 ", "ping a_1 on wechat ", "+33 6 47 81 25 39 ", "0033 6 47 "),
    *(
        "手机1381 234 5678 ",
        "身份证110 105 1949 1231 002X ",
        "卡4111 11111 1111111 ",
        "护照号码是的是，，",
        "passport (aaaa",
    ),
    *("wechat add me 1 ", "护照号12345678 ", "香港身份证A 123456 (3) ", "群号12345 ", "wechat id is is ", "＋86 138"),
    *("哈", "\u200b", "```", "!", "=", "😀", "作为", "is ", "[", "-----BEGIN PRIVATE KEY-----\n"),
)


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_rule_is_slow_on_a_megabyte(piece: str) -> None:
    """Under 0.8 seconds for each rule by CPU time where this is written; up to two for slower machines."""
    text = Text(piece * (1_000_000 // len(piece)))
    slow = []
    for name, rule in SIDE_RULES.items():
        spent = min(seconds_of(rule, text) for _ in range(2))
        if spent > 2:
            slow.append(f"{name}: {spent:.1f} s")
    assert not slow


def seconds_of(rule: Rule, text: Text) -> float:
    begin = time.process_time()
    rule.check(text, Around(Text("你好")))
    return time.process_time() - begin


@pytest.mark.parametrize("replace", [False, True])
def test_what_stands_for_personal_data_is_none(replace: bool) -> None:
    for kind, text, _ in positives(5, 20):
        made, _ = Masks(chinese=True, replace=replace).apply(text, find_personal(Text(text)))
        assert made != text
        assert find_personal(Text(made)) == (), f"{kind}: {text} became {made}"


@pytest.mark.parametrize(("action", "is_dropped"), [("mask", True), ("replace", True), ("drop", True), ("flag", False)])
def test_a_list_of_numbers_is_not_looked_through_but_dropped_for_that_reason(action: str, is_dropped: bool) -> None:
    config = CurationSection.model_validate({"document": {"personal": action}})
    few, many = ("".join(f"13{n:09} " for n in range(123_450_000, 123_450_000 + count)) for count in (19_000, 21_000))
    assert len(find_personal(Text(few))) == 19_000
    assert [(span.start, span.end, span.kind) for span in find_personal(Text(many))] == [(0, len(many), "list")]
    outcome = curate_row({"text": many}, "a", config)
    (decision,) = (one for one in outcome.decisions if one.rule == "personal")
    assert decision.action == ("drop" if is_dropped else "flag")


def test_masking_ten_thousand_different_numbers_takes_no_time_squared() -> None:
    text = "".join(f"13{n:09} " for n in range(123_450_000, 123_468_000))
    spans = find_personal(Text(text))
    begin = time.process_time()
    made, put = Masks(chinese=True).apply(text, spans, is_data=True)
    assert time.process_time() - begin < 2
    assert made.endswith(f"{put[-1]} ")
    assert put[-1] == "[手机号18000]"


def test_masks_are_stable_in_a_row_and_numbered() -> None:
    masks = Masks(chinese=True)
    assert masks.of("13812345678", "cn_mobile") == masks.of("+86 138-1234-5678", "cn_mobile") == "[手机号]"
    assert masks.of("13912345678", "cn_mobile") == "[手机号2]"
    assert Masks(chinese=False).of("a@b.cn", "email") == "[email]"
    assert synthetic("a@b.cn", "email") == synthetic("a@b.cn", "email") != synthetic("c@b.cn", "email")


def test_every_kind_has_a_label() -> None:
    found = {span.kind for _, text, _ in positives(1, 5) for span in find_personal(Text(text))}
    assert found <= set(LABELS)


@pytest.mark.parametrize(
    ("prompt", "answer", "agrees"),
    [
        ("列出五种编程语言。", "Python\nJava\nC++\nRust\nGo", True),
        ("Who wrote 红楼梦?", "Cao Xueqin (曹雪芹) wrote Dream of the Red Chamber (红楼梦) in the 18th century.", True),
        ("请介绍一下北京的历史。", "Beijing was the capital of five dynasties and is still the capital.", False),
        ("请介绍一下北京的历史。", "Пекин — столица Китая с более чем трёхтысячелетней историей.", False),
    ],
)
def test_an_answer_agrees_with_the_language_of_its_prompt(prompt: str, answer: str, agrees: bool) -> None:
    assert SIDE_RULES["language"].check(Text(answer), Around(Text(prompt))).keep is agrees


def test_pairs_are_equal_when_only_layout_differs() -> None:
    assert not check_equal(Text("你好，世界！"), Text("你好 世界")).keep
    assert check_equal(Text("你好，世界！"), Text("再见")).keep
    assert check_equal(Text("你好，世界！"), Text("你好😀，世界🎉！")).keep  # a pair about emoji
    assert not check_gap(Text("长" * 400), Text("短")).keep


def test_each_side_has_its_own_policy() -> None:
    row = {
        "prompt": "你是谁？",
        "chosen": "我是翰林，一个双语助手。",
        "rejected": "I am ChatGPT, trained by OpenAI 13812345678.",
    }
    outcome = curate_row(row, "x:1", CurationSection(name="翰林"))
    assert outcome.row is not None
    assert outcome.row["rejected"] == "I am ChatGPT, trained by OpenAI [手机号]."
    swapped = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    assert curate_row(swapped, "x:1", CurationSection()).row is None


def test_a_mistaken_answer_can_become_the_rejected_one() -> None:
    config = CurationSection.model_validate(
        {"name": "翰林", "maker": "本社", "chosen": {"identity": "to_rejected", "language": "keep"}}
    )
    row = {"prompt": "你是谁？", "chosen": "我是由OpenAI训练的ChatGPT。", "rejected": "不知道。", "source": "made up"}
    outcome = curate_row(row, "x:1", config)
    assert outcome.row == {**row, "chosen": "我是由本社训练的翰林。", "rejected": row["chosen"]}
    again = curate_row(outcome.row, "x:1", config)
    assert again.row == outcome.row
    assert not again.decisions


def test_an_override_of_one_rule_leaves_the_others_as_they_were() -> None:
    config = CurationSection.model_validate({"chosen": {"emoji": "drop"}})
    assert config.chosen.identity == "drop"
    assert config.rejected.identity == "keep"


def test_edits_keep_the_rows_form_and_columns() -> None:
    row = {
        "conversations": [{"from": "human", "value": "我的手机13812345678，怎么办？"}],
        "chosen": {"from": "gpt", "value": "请别公开13812345678。"},
        "rejected": {"from": "gpt", "value": "不知道"},
        "extra": [1, None],
    }
    made = curate_row(row, "x:1", CurationSection()).row
    assert made is not None
    assert made["conversations"][0]["value"] == "我的手机[手机号]，怎么办？"
    assert made["chosen"] == {"from": "gpt", "value": "请别公开[手机号]。"}
    assert made["extra"] == row["extra"]
