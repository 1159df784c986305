"""What a bilingual reader says of short texts, and what must hold of any text."""

import re

import pytest

from hanlin.text.language import (
    chinese_variant,
    emoji_in,
    evidence_by_line,
    han_license,
    language_of,
    latin_license,
    line_language,
    measure,
    strip_code,
    strip_uncounted,
)
from hanlin.text.lexicon import SIMPLIFIED, TRADITIONAL

CHINESE = r"""
你好。
好的
优点：
1. 准备材料
- **优点**：速度快
| 名称 | 价格 |
我使用 Python 和 NumPy 处理数据。
iPhone 15 Pro Max 比较贵。
请连接 Wi-Fi 后再试。
他有一台 MacBook Air 和一台 ThinkPad。
大家好，我叫 Tom，来自 New York。
使用 Visual Studio Code 编辑文件
在 VS Code 中按 Ctrl+C 复制。
Transformer 由 Google 的 Ashish Vaswani 等人在 2017 年提出。
电影 Lord of the Rings 很好看。
他订阅了 The Economist 和 The New York Times。
用 pandas 读取文件，再用 matplotlib 画图。
用 token 计费，每个 prompt 都要算。
打开 app，登录 email 账号。
for 循环和 while 循环的区别
attention 机制和 embedding 层是关键
这是一个 end-to-end 的系统。
K-means 是一种聚类算法
C++ 和 C# 都是编程语言。
机器学习（Machine Learning）是人工智能的一个分支。
自然语言处理（Natural Language Processing，简称 NLP）研究语言。
**深度学习** (deep learning) 需要大量数据。
世界卫生组织（WHO）发布了报告。
《Harry Potter》是一部小说。
他读过《The Great Gatsby》和“To Kill a Mockingbird”。
他说：“I love you.”
“我们走吧，天要黑了。”Tom 说。
GDP 增长了 5.2%，CPU 占用 80%，支持多个 APIs。
距离约 12 km，重 5kg，速度 100 km/h，带宽 300Mbps。
设 x 为鸡的数量，y 为兔的数量，则 x + y = 35。
根据公式 $E = mc^2$，能量与质量成正比。
由 \(a^2 + b^2 = c^2\) 可知 \[ \text{the answer is } c \] 成立。
使用 `print("hello my friend")` 输出。
程序会输出 Hello, World!
先运行 pip install numpy 安装依赖
把文件保存为 report.pdf 或 data.csv，放在 /home/user/my-documents 里。
请访问 https://www.example.com/how-to-use-this 了解更多。
联系我：someone.nice@example.com
变量 max_length 和 getUserName() 的用法
你好 (nǐ hǎo) 是问候语。
鲜の味餐厅很好吃
ＡＢＣ公司发布了新产品
臺灣的夜市很熱鬧，小吃種類繁多。
好的。<br>下一步
周末可以去 Costco 买牛排，再用 Airbnb 订房。
NBA 总决赛由 Boston Celtics 对阵 Dallas Mavericks。
MySQL 的 SELECT 语句与 WHERE 子句
GPT-4o、Claude 3.5 Sonnet 和 Llama 3 都是大模型。
维生素 C 每日建议摄入 100 毫克（mg）。
这本书的英文名是 "Thinking, Fast and Slow"。
DNA 由 A、T、C、G 四种碱基组成。
打开终端输入 ls -la 查看文件。
卡拉OK很受欢迎，T恤也便宜。
公式为：F = ma
第 1 步：点击 File > Save As 保存。
请点击“Save”按钮。
作者：J.K. Rowling
邮箱：test@qq.com，QQ：123456
她在 Stanford University 读博士，研究 computer vision（计算机视觉）。
安装 Node.js 之后运行 npm install。
时间复杂度是 O(n log n)。
Wow，太棒了！
廣東話同普通話有好多分別。
“Carpe diem”意为“及时行乐”。
小明说："Let's play football!" 然后就跑了。
推荐使用 pandas.DataFrame 和 sklearn.linear_model。
iOS app 和 Android app 都可以下载。
CEO 和 CFO 都出席了会议，讨论了 KPI 和 ROI。
TypeScript 是 JavaScript 的超集
这款车 0-100 km/h 加速只要 3.5s。
把 apple 这个单词读三遍。
请看下图 Figure 1。
HTTP 404 表示页面不存在（Not Found）。
git commit -m "fix bug" 用来提交代码
α 和 β 是两个角，∠A = 30°
vitamin C 很重要
《三体》的英文版叫 The Three-Body Problem。
"""

ENGLISH = """
Hello, how can I help you today?
Sure!
Paris is the capital of France.
OK, let me think about it.
Introduction
Key Features:
THIS IS A TEST
The word “你好” means hello.
Peking duck (北京烤鸭) is a famous dish.
“I am fine, thank you very much.”
Beijing has more than 21 million people.
Sure thing, I'd be glad to help with that.
Xi'an is famous for the Terracotta Army.
The dish is called mapo tofu (麻婆豆腐).
1. Preheat the oven to 180 °C.
Yes.
"""

MIXED = """
这个 feature 很 powerful
这个功能非常 powerful。
答案是 yes。
Sure! 以下是答案：
Certainly! 以下是三条建议。
我们需要 schedule 一个 meeting 来 discuss 这个 project。
machine learning 是人工智能的一个分支，应用很广。
今天天气很好，我们一起去公园散步吧。Have a nice day!
当然可以。I would be happy to help you with that question today.
总的来说，this is a good idea，值得一试。
他说 I love you 的时候哭了，大家都很感动。
好的（Sure, I can help you with that）
臭氧是一种色less味less的气体
我觉得это好的，因为时间比较充足。
The Chinese word 你好 means hello in English.
I think 这个方法 is very good for beginners.
我今天有点 busy，晚点 call 你。
Okay，我明白了。
总之，practice makes perfect。
Let's go! 我们出发吧。
首先，让我们了解 what is blockchain。
该模型使用 large language model 技术来生成文本内容。
In conclusion, 我们应该保护环境。
The answer is 四十二.
我 think 你是对的。
保持 positive 的 attitude 很重要。
让我们 step by step 地分析。
"""

OTHER = """
これは日本語の文です。
東京タワーへ行きたいです。
안녕하세요, 반갑습니다.
Привет, как дела?
สวัสดีครับ ยินดีที่ได้รู้จัก
Je ne sais pas où est la bibliothèque de la ville.
Ich habe heute keine Zeit, weil ich nach Berlin fahren muss und das Auto nicht fährt.
El tribunal superior no se ha pronunciado sobre el recurso de los demandantes.
감사합니다
"""

NONE = r"""
42
3.14159
😀😀
---
| 1 | 2 | 3 |
|---|---|
$x^2 + y^2 = z^2$
https://example.com/a/long/path
x = 5
import numpy as np
for i in range(10):
NumPy
12:30
✅
"""

LABELLED = [
    (text, label)
    for label, block in (("zh", CHINESE), ("en", ENGLISH), ("mixed", MIXED), ("other", OTHER), ("none", NONE))
    for text in block.strip().split("\n")
]


@pytest.mark.parametrize(("text", "label"), LABELLED)
def test_language_agrees_with_a_bilingual_reader(text: str, label: str) -> None:
    assert language_of(text) == label


def test_the_labelled_list_is_long_enough_to_mean_something() -> None:
    assert len(LABELLED) >= 80


def test_empty_text_is_no_language() -> None:
    assert language_of("") == language_of(" \n\t\n") == "none"


def test_fenced_code_is_no_language_but_fenced_prose_is() -> None:
    code = "```python\n# say hello to my friend\nprint('hello')\n```"
    assert language_of(code) == "none"
    assert language_of(f"{code}\n上面的代码会打招呼。") == "zh"
    assert language_of("```\ndef f(x):\n    return x + 1\n```") == "none"
    assert language_of("```\nDear Sir,\nI am writing to apply for the position.\n```") == "en"
    assert language_of("好的：\n```js\nconst answer = 'I never closed the fence';") == "zh"


def test_inline_code_and_fences_are_stripped_for_emoji_too() -> None:
    assert emoji_in(strip_code("`🎉` 和\n```python\nprint('🎉')\n```\n完成 🎉")) == ["🎉"]


def test_money_is_no_formula() -> None:
    assert language_of("It costs $5 today and maybe $10 tomorrow.") == "en"
    assert "today" in strip_uncounted("It costs $5 today and $10 tomorrow")


def test_a_line_of_names_decides_nothing_but_a_text_of_names_is_latin() -> None:
    lines = dict(evidence_by_line("- iPhone\n- Tom Hanks\n- 北京\n- Important Features"))
    assert [line_language(evidence) for evidence in lines.values()] == ["none", "none", "zh", "en"]
    assert language_of("Paris") == "en"


def test_the_prompts_own_terms_are_licensed_in_its_own_order() -> None:
    license = latin_license("请解释 feature store 是什么")
    assert not measure("feature store 是存放特征的地方", license).mixed
    assert measure("store feature 是存放特征的地方", license).mixed
    assert measure("machine learning 需要特征", license).mixed


def test_a_long_echo_of_the_prompt_is_not_licensed() -> None:
    source = "the quick brown fox jumps over the lazy dog near the river"
    assert measure(source, latin_license(f"总结：{source}")).language == "en"


def test_the_prompts_han_characters_are_licensed_in_english() -> None:
    license = han_license("What does 加油 mean?")
    assert not measure("The phrase 加油 is an encouragement.", license).mixed
    assert measure("The phrase 努力 is an encouragement.", license).mixed


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("你好 😊", 1),
        ("❤ ❤️ ♥ ☀ ☺", 5),
        ("👍🏽👩🏽‍🚀👨‍👩‍👧‍👦🤷‍♀️❤️‍🔥", 5),
        ("🇨🇳🇺🇸🏴󠁧󠁢󠁥󠁮󠁧󠁿", 3),
        ("✅ ❌ ⭐ ✨ ⚠️ ❓", 6),
        ("✔️ ➡️ ☑️", 3),
        ("✓ ✔ ✗ → ↔ ★ ♪ ☑ ■ • ①②③ ㊗", 0),
        ("© ® ™ ©️ 1️⃣ #️⃣ 0 5⃣ °C §", 0),
        ("中文 English :-) (^_^)", 0),
    ],
)
def test_emoji_are_pictographs_counted_as_a_reader_sees_them(text: str, count: int) -> None:
    assert len(emoji_in(text)) == count


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("请问这个怎么说？", "Hans"),
        ("請問這個怎麼說？", "Hant"),
        ("臺灣國語", "Hant"),
        ("“國”的简体是“国”，这是规则。", "Hans"),
        ("你好，中文。", None),
        ("皇后在台上", None),
        ("hello", None),
    ],
)
def test_chinese_variant_is_the_majority_of_what_differs(text: str, variant: str | None) -> None:
    assert chinese_variant(text) == variant


def test_the_variant_tables_are_sets_of_600_with_nothing_in_common() -> None:
    assert len(SIMPLIFIED) == len(TRADITIONAL) == 600
    assert not SIMPLIFIED & TRADITIONAL


@pytest.mark.parametrize(
    "piece", ["a", "a.", "a-", "1.", "\\[ ", "<a ", '"x ', "` a", "import a b ", "> ", "(", "```\n", "$a "]
)
def test_stripping_is_linear_enough_for_hostile_text(piece: str) -> None:
    """Quadratic patterns need minutes here; the bound is the test run's own patience, not a clock."""
    assert re.fullmatch("zh|en|none|mixed", language_of(piece * (100_000 // len(piece))))
