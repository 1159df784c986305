"""Verdicts on whole replies, the metrics over them, and the reader of prompt files."""

import json
from pathlib import Path

import pytest

from hanlin.errors import DataError
from hanlin.evaluation.language import METRICS, Judgement, Reply, compare, is_looping, judge, summarise
from hanlin.evaluation.prompts import Prompt, expected_language, read_prompts
from hanlin.types import Message

# (prompt, reply, verdicts that a bilingual person gives): P passes line by line, W whole reply in the wrong language,
# M mixed, E emoji.
REPLIES = [
    ("你好", "你好！很高兴见到你。", "P"),
    ("你好", "Hello! How can I help you today?", "W"),
    ("你好", "", ""),
    ("你好", " \n ", ""),
    ("你好", "😀😀😀", "E"),
    ("你好", "……", ""),
    ("你好", "你好！😊 有什么可以帮你？", "PE"),
    ("3 加 4 等于几？", "7", "P"),
    ("3 加 4 等于几？", "$3 + 4 = 7$", "P"),
    ("哪种语言适合数据分析？", "Python 最适合，因为有 NumPy 和 pandas。", "P"),
    ("法国的首都是哪里？", "Paris", "W"),
    ("介绍一下这款手机", "这个 feature 很 powerful，camera 也很 amazing。", "PM"),
    ("给我三条建议", "Certainly! 以下是三条建议：\n1. 早睡\n2. 多喝水\n3. 运动", "PM"),
    (
        "给我三条建议",
        "当然！\n1. 早睡早起，不要熬夜\n2. 多喝水，少喝酒\nI hope these suggestions help you stay healthy.",
        "M",
    ),
    ("给我三条建议", "当然可以！\nHere are three tips:\n1. Sleep early\n2. Drink water\n3. Exercise regularly", "WM"),
    (
        "推荐几部电影",
        "推荐以下电影：\n- 《肖申克的救赎》（The Shawshank Redemption）\n- Inception\n- 《泰坦尼克号》",
        "P",
    ),
    ("写一个打招呼的函数", "```python\ndef greet():\n    print('hello my friend')\n```", "P"),
    ("写一个打招呼的函数", "代码如下：\n```python\n# Say hello\nprint('hi')\n```\n运行后会打招呼。", "P"),
    ("写一个打招呼的函数", "def greet(name):\n    return name\n\n这个函数返回名字。", "P"),
    ("写一个打招呼的函数", "Here is the function:\n```python\nprint('你好')\n```\nIt prints a greeting.", "W"),
    ("请解释 machine learning", "machine learning 就是让计算机从数据中学习。", "P"),
    ("解释机器学习", "machine learning 就是让计算机从数据中学习。", "PM"),
    ("把 “I love you” 翻译成中文", "“I love you” 的意思是“我爱你”。", "P"),
    ("把“我爱你”翻译成英文", "I love you.", "P"),
    ("把“我爱你”翻译成英文", "“我爱你”的英文是很简单的一句话。", "W"),
    ("請介紹臺灣", "臺灣是一個美麗的島嶼，以夜市聞名。", "P"),
    ("请介绍日本", "日本は美しい国です。", "W"),
    ("请介绍日本", "日本是亚洲东部的一个岛国。\n首都は東京です。", "M"),
    ("请介绍俄罗斯", "俄罗斯是世界上面积最大的国家 конечно，横跨欧亚。", "PM"),
    ("对比这两种水果", "| 水果 | 颜色 |\n|---|---|\n| 苹果 | 红 |\n| 香蕉 | 黄 |", "P"),
    ("对比这两种水果", "| Fruit | Color |\n|---|---|\n| An apple | is red |\n| A banana | is yellow |", "W"),
    ("写一首短诗", "“春风又绿江南岸，\n明月何时照我还。”", "P"),
    ("讲个笑话", "“I am a cat and I do not care about your code.”", "W"),
    ("What is the capital of France?", "The capital of France is Paris.", "P"),
    ("What is the capital of France?", "Paris.", "P"),
    ("What is the capital of France?", "法国的首都是巴黎。", "W"),
    ("What is the capital of France?", "", ""),
    ("Tell me about dumplings", "Jiaozi (饺子) are dumplings, eaten at “春节”.", "P"),
    ("Tell me about dumplings", "Dumplings are 非常好吃 and popular in China.", "PM"),
    (
        "Tell me about dumplings",
        "Dumplings are popular all over China and often eaten with vinegar.\n它们通常在春节吃。",
        "M",
    ),
    ("Write hello world in Python", '```python\nprint("你好")  # 打招呼\n```\nThis prints a greeting.', "P"),
    ("Tell me a joke", "Why did the chicken cross the road? 😂", "PE"),
    ("Who won ©2024™?", "Team 1 won with ✓ marks.", "P"),
    ("Translate to Chinese: Good morning", "早上好", "P"),
    ("Please answer in Chinese: what is AI?", "人工智能是计算机科学的一个分支。", "P"),
    ("用英文回答：什么是人工智能？", "Artificial intelligence is a field of computer science.", "P"),
]


def prompt(text: str, *, id: str = "1") -> Prompt:
    messages = (Message("user", text),)
    return Prompt(id=id, messages=messages, language=expected_language(messages))


def verdict(judgement: Judgement) -> str:
    flags = (judgement.passed, judgement.wrong, judgement.mixed, judgement.num_emoji > 0)
    return "".join(letter for letter, flag in zip("PWME", flags, strict=True) if flag)


@pytest.mark.parametrize(("question", "answer", "expected"), REPLIES)
def test_verdict_agrees_with_a_bilingual_reader(question: str, answer: str, expected: str) -> None:
    judgement = judge(Reply(prompt=prompt(question), text=answer, ended=True))
    assert judgement is not None
    assert verdict(judgement) == expected, judgement


def test_a_judgement_shows_its_evidence() -> None:
    reply = Reply(prompt=prompt("给我建议"), text="多喝水。\nSleep is very important.\n这很 important。", ended=True)
    judgement = judge(reply)
    assert judgement is not None
    assert judgement.wrong_lines == ("Sleep is very important.",)
    assert judgement.foreign == ("Sleep is very important", "important")


def test_an_empty_reply_has_not_ended_by_itself_in_any_useful_sense() -> None:
    judgement = judge(Reply(prompt=prompt("你好"), text="", ended=True))
    assert judgement is not None
    assert not judgement.ended
    assert judgement.num_characters == 0


def test_emoji_of_the_prompt_and_of_code_do_not_count() -> None:
    reply = Reply(prompt=prompt("😂 是什么意思？"), text="😂 表示大笑，`🎉` 表示庆祝。", ended=True)
    judgement = judge(reply)
    assert judgement is not None
    assert judgement.num_emoji == 0


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("我喜欢吃苹果。" * 8, True),
        ("开头正常的一句话，讲了些道理，后面就坏了。" + "好的，没问题。" * 10, True),
        ("I am so sorry. " * 12, True),
        ("\n".join(f"{number}. 保持健康的生活方式" for number in range(1, 8)), True),
        ("哈" * 40, True),
        ("哈哈哈哈哈哈！太好笑了。", False),
        ("| 1 | 2 |\n|---|---|\n" + "| 3 | 4 |\n" * 30, False),
        ("床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 2, False),
        ("1. 早睡早起，保证充足的睡眠。\n2. 多吃蔬菜水果。\n3. 每天运动半小时。\n4. 保持好心情，多和朋友聊天。", False),
        ("", False),
    ],
)
def test_loops(text: str, looping: bool) -> None:
    assert is_looping(text) is looping


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("今天天气怎么样？", "zh"),
        ("How is the weather?", "en"),
        ("请用英文介绍北京", "en"),
        ("用英语写一封道歉信", "en"),
        ("写一封英文邮件给客户", "en"),
        ("把下面的话翻译成英文：你好", "en"),
        ("介绍北京，英文回答", "en"),
        ("不要用英文，介绍一下 Python", "zh"),
        ("Please answer in Chinese. What is a transformer?", "zh"),
        ("Translate the following into Chinese: good night", "zh"),
        ("In Chinese, please: what is love?", "zh"),
        ("用中文解释 overfitting", "zh"),
        ("把 “break a leg” 译成中文", "zh"),
        ("How did tea spread in Chinese culture?", "en"),
        ("Describe the role of jade in Chinese history.", "en"),
        ("他用英语写了一封信，后来怎么样了？", "zh"),
        ("如何学好英语？", "zh"),
        ("英译中：Time flies.", "zh"),
        ("“谢谢”用英语怎么说？", ""),
        ("How do you say thank you in Chinese?", ""),
        ("把这句话翻译成法语：你好", ""),
        ("Translate this to Spanish: good night", ""),
        ("Summarize this:\n北京是中国的首都。", ""),
        ("修复代码：\n```python\nfor x in range(3): print('hello there my friend')\n```", "zh"),
        ("今日はいい天気ですね。散歩に行きましょう。", ""),
    ],
)
def test_expected_language(text: str, language: str) -> None:
    assert expected_language((Message("user", text),)) == language


def test_a_standing_request_holds_until_another_one() -> None:
    system, hello = Message("system", "请始终用英文回答。"), Message("user", "你好")
    assert expected_language((system, hello)) == "en"
    assert expected_language((system, Message("user", "请用中文回答：你好"))) == "zh"
    turns = (Message("user", "从现在起请用英文回答"), Message("assistant", "Sure."), hello)
    assert expected_language(turns) == "en"
    turns = (Message("user", "用英文回答：你是谁"), Message("assistant", "I am Hanlin."), hello)
    assert expected_language(turns) == "zh"


def replies(texts: list[str], question: str = "你好", *, ended: bool = True) -> list[Reply]:
    return [Reply(prompt=prompt(question, id=str(n)), text=text, ended=ended) for n, text in enumerate(texts)]


def test_summary_keeps_chinese_and_english_apart_and_counts_what_it_leaves_out() -> None:
    mixed = [
        *replies(["你好。", "Hello there, friend."]),
        Reply(prompt=prompt("Hello there!", id="e"), text="Hi, nice to meet you.", ended=False),
        Reply(prompt=prompt("“谢谢”用英语怎么说？", id="b"), text="Thank you.", ended=True),
    ]
    summary = summarise(mixed)
    assert summary.unjudged == 1
    assert set(summary.estimates) == {"zh", "en"}
    assert set(summary.estimates["zh"]) == set(METRICS)
    assert summary.estimates["zh"]["pass"].value == 0.5
    assert summary.estimates["zh"]["wrong"].value == 0.5
    assert summary.estimates["zh"]["characters"].value == (3 + 20) / 2
    assert (summary.estimates["en"]["pass"].value, summary.estimates["en"]["ended"].value) == (1.0, 0.0)


def test_comparison_pairs_by_prompt_whatever_the_order() -> None:
    before, after = replies(["Hello there, friend."] * 12), replies(["你好。"] * 12)
    difference = compare(before, after[::-1]).estimates["zh"]["pass"]
    assert difference.value == 1.0
    assert difference.excludes_zero


def test_comparison_of_different_prompts_is_refused() -> None:
    with pytest.raises(DataError, match="one side only, such as '1'"):
        compare(replies(["你好。"]), replies(["你好。", "你好。"]))
    with pytest.raises(DataError, match="2 replies to 1 different prompts"):
        compare(replies(["你好。"]) * 2, replies(["你好。"]))


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_prompts_and_preference_pairs_are_read_alike(tmp_path: Path) -> None:
    rows: list[object] = [
        {"id": "a", "prompt": "你好", "language": "en", "category": "chat"},
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Hello there"}], "chosen": "x"},
        {"id": 7, "prompt": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "嗯"}]},
    ]
    found = read_prompts(write(tmp_path / "p.jsonl", rows))
    assert [(one.id, one.language) for one in found] == [("a", "en"), ("p.jsonl:2", "en"), ("7", "zh")]
    assert found[0].category == "chat"
    assert [message.role for message in found[2].messages] == ["user"]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    assert [one.messages for one in read_prompts(tmp_path / "a.json")] == [one.messages for one in found]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no prompts"),
        (b"{", "line 1, no JSON"),
        (b"3\n", "row 1 is 3"),
        (b'{"text": "x"}\n', "row 1 has no `prompt`, only text"),
        (b'{"prompt": "x"}\n{"prompt": 3}\n', "row 2 has the prompt 3"),
        (b'{"prompt": [{"role": "robot", "content": "x"}]}\n', "expected role"),
        (b'{"prompt": ""}\n', "no user message"),
        (b'{"prompt": []}\n', "no user message"),
        (b'{"prompt": "x", "language": "fr"}\n', 'has language "fr"'),
        (b'{"prompt": "x", "id": "1"}\n{"prompt": "y", "id": "1"}\n', "row 2 has the id '1' of row 1"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_bad_prompt_file_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_prompt_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")


@pytest.mark.assets
@pytest.mark.parametrize(("name", "language"), [("dpo_zh_200", "zh"), ("dpo_en_200", "en")])
def test_chosen_answers_of_real_pairs_nearly_all_pass(shared_data: Path, name: str, language: str) -> None:
    """Read by hand: what fails here is in the wrong language (translations, an English outline) or names only."""
    rows = json.loads((shared_data / f"{name}.json").read_text(encoding="utf-8"))
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    found = []
    for number, row in enumerate(rows):
        messages = tuple(Message(roles[turn["from"]], turn["value"]) for turn in row["conversations"])
        one = Prompt(id=str(number), messages=messages, language=expected_language(messages))
        found.append(Reply(prompt=one, text=row["chosen"]["value"], ended=True))
    summary = summarise(found)
    assert summary.unjudged <= 8
    assert summary.estimates[language]["pass"].count >= 190
    assert summary.estimates[language]["pass"].value >= 0.985
    assert summary.estimates[language]["mixed"].value <= 0.01
    assert summary.estimates[language]["looping"].value == 0
