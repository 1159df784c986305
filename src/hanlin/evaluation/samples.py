"""What a model says to a few fixed prompts while it is trained, and how well it keeps to their language.

The answers are greedy: the same weights say the same words, and no random number is used up.
"""

from collections.abc import Sequence
from dataclasses import replace

from hanlin.data.prepare import with_system
from hanlin.evaluation.language import Reply, judge
from hanlin.evaluation.prompts import Expected, Prompt
from hanlin.evaluation.replies import collect_replies
from hanlin.generation.assistant import Assistant
from hanlin.generation.sampling import Sampling
from hanlin.types import Message


def _prompt(id: str, text: str, language: Expected) -> Prompt:
    return Prompt(id=id, messages=(Message("user", text),), language=language)


SAMPLE_PROMPTS: tuple[Prompt, ...] = (
    _prompt("zh-sky", "天空为什么是蓝色的？", "zh"),
    _prompt("en-sleep", "How can I fall asleep more easily?", "en"),
    _prompt("zh-leave", "帮我写一条向老师请假的短信。", "zh"),
    _prompt("en-train", "A train goes 180 km in 1.5 hours. How fast is it?", "en"),
    _prompt("zh-code", "用 Python 写一个函数，判断一个数是不是质数，并解释思路。", "zh"),
    _prompt("en-tea", "Explain to a friend how to make a good cup of green tea.", "en"),
    _prompt("zh-idiom", "“画蛇添足”是什么意思？请造一个句子。", "zh"),
    _prompt("en-poem", "Write four lines about the sea in autumn.", "en"),
)


def sample_replies(assistant: Assistant, num_prompts: int, *, max_tokens: int, system: str = "") -> list[Reply]:
    """Greedy replies to the first `num_prompts` fixed prompts, each after the system text where there is one."""
    sampling = Sampling(temperature=0, max_tokens=max_tokens)
    asked = [replace(prompt, messages=with_system(prompt.messages, system)) for prompt in SAMPLE_PROMPTS[:num_prompts]]
    return collect_replies(assistant, asked, sampling)


def language_numbers(replies: Sequence[Reply]) -> dict[str, float]:
    """Rates by language under the names that go into a run's metrics.jsonl: "eval_language/zh/pass" and so on."""
    numbers: dict[str, float] = {}
    for language in ("zh", "en"):
        judged = [judgement for reply in replies if (judgement := judge(reply)) and judgement.expected == language]
        if judged:
            rates = {
                "pass": [one.passed for one in judged],
                "mixed": [one.mixed for one in judged],
                "emoji": [one.num_emoji > 0 for one in judged],
                "ended": [one.ended for one in judged],
                "looping": [one.looping for one in judged],
            }
            for name, values in rates.items():
                numbers[f"eval_language/{language}/{name}"] = sum(values) / len(values)
    return numbers
