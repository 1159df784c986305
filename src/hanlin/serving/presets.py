"""The Gemma prompt guide's ways to put a question, as data: what goes before it, after it, and around it.

A preset never writes turns: it gives system text, examples and a wording, and the model's `ChatFormat` places them
(Gemma, which has no system role, gets the text in its first user turn). Only base models are given raw text, because
they know no turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hanlin.errors import ConfigError
from hanlin.text.language import language_of

Shot = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One way to ask.

    Attributes:
        meaning: what it does, for people.
        system: the system text; `{text}` is the user's own.
        default: what `{text}` is when the user gives none; "" means no system text then.
        hint_zh, hint_en: a last paragraph of every question, in the question's language.
        examples: question and answer pairs that come first.
        continues: the text is not a question but a beginning, which the model carries on.
    """

    name: str
    meaning: str
    system: str = "{text}"
    default: str = ""
    hint_zh: str = ""
    hint_en: str = ""
    examples: tuple[Shot, ...] = ()
    continues: bool = False


# Sources: ai.google.dev/gemma/docs/core/prompt-structure (system text in the first user turn); "Let's think step by
# step" is from Kojima et al., arXiv 2205.11916. The examples show one thing: brief, in the question's language.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(name="zero-shot", meaning="the question as it stands 直接提问"),
        Preset(
            name="system",
            meaning="instructions first, in the first user turn where a family has no system role 系统提示",
            default="请用提问所用的语言准确、简洁地回答。Answer briefly and correctly, in the question's language.",
        ),
        Preset(
            name="role-play",
            meaning="plays the role that --system names 角色扮演",
            system="请你扮演{text}，始终保持这个角色的身份和语气，用对方的语言回答。"
            "Play this role, stay in it, and answer in the user's language.",
            default="唐代诗人李白",
        ),
        Preset(
            name="chain-of-thought",
            meaning="asks for the steps before the answer 思维链",
            hint_zh="让我们一步一步地思考，最后给出答案。",
            hint_en="Let's think step by step, and give the answer at the end.",
        ),
        Preset(
            name="few-shot",
            meaning="examples before the question; raw text for base models 少样本",
            examples=(
                ("中国的首都是哪里？", "中国的首都是北京。"),
                ("What is the capital of France?", "The capital of France is Paris."),
                ("用一句话解释什么是光合作用。", "光合作用是植物利用阳光，把水和二氧化碳变成养分和氧气的过程。"),
                ("How many days are there in a week?", "There are seven days in a week."),
            ),
        ),
        Preset(
            name="raw",
            meaning="carries a text on, without turns; for base models 续写",
            continues=True,
        ),
    )
}

_QUESTION, _ANSWER = "问 Q:", "答 A:"
RAW_STOPS = (f"\n{_QUESTION}", f"\n\n{_ANSWER}", "\n\n\n")
"""What ends an answer in `raw_shots`: the model begins the next question by itself."""


def named_preset(name: str) -> Preset:
    """The preset of a name in `PRESETS`; ConfigError for another name."""
    if name not in PRESETS:
        raise ConfigError(f"--preset {name!r} is unknown; known 可用: {', '.join(PRESETS)}")
    return PRESETS[name]


def system_text(preset: Preset, text: str) -> str:
    """The system text for what the user gave, possibly "". Raises ConfigError where the preset has no place for it."""
    if preset.continues:
        if text:
            raise ConfigError(
                "raw continuation has no system text; write it at the beginning of the text 续写没有系统提示"
            )
        return ""
    filled = text or preset.default
    return preset.system.replace("{text}", filled) if filled else ""


def phrase(preset: Preset, question: str) -> str:
    """The question as the preset words it."""
    hint = preset.hint_zh if language_of(question) in ("zh", "mixed") else preset.hint_en
    return f"{question}\n\n{hint}" if hint else question


def raw_shots(system: str, shots: Sequence[Shot], question: str) -> str:
    """Instructions, examples and the question as one text that a base model carries on with an answer."""
    parts = [system] if system else []
    parts += [f"{_QUESTION} {asked}\n{_ANSWER} {answered}" for asked, answered in shots]
    return "\n\n".join([*parts, f"{_QUESTION} {question}\n{_ANSWER}"])
