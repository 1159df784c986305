"""Languages of a prompt and its answer: whether they agree, whether an answer mixes two, emoji, the wrong script.

The judgement is `hanlin.text.language`'s. It strips code and names before it counts, which takes time, so counts of
raw characters decide first where they leave no doubt.
"""

from hanlin.curation.characters import KANA, PICTURE
from hanlin.curation.rule import KEEP, Around, Rule, Span, Text, Verdict, objection
from hanlin.text.language import emoji_in, has_other_script, latin_license, measure
from hanlin.text.lexicon import ORDINARY, OTHER_FUNCTION

_TRANSLATE = (
    "translate",
    "翻译",
    "翻譯",
    "英文",
    "英语",
    "chinese",
    "中文",
    "in english",
    "用英",
    "mandarin",
    "汉语",
    "日语",
    "日文",
    "法语",
    "french",
    "japanese",
    "german",
    "spanish",
    "korean",
    "俄语",
    "德语",
    "韩语",
    "西班牙",
    "convert",
    "language",
    "rewrite",
    "改写",
    "双语",
    "bilingual",
)
_QUESTIONS = frozenset(
    ("who", "what", "when", "where", "which", "why", "how", "is", "are", "does", "do", "did", "can", "explain", "tell")
)
SHARE = 0.02  # of the letters that may be ordinary words of the other language


def quick_language(text: Text) -> str:
    """ "zh" or "en" where raw counts leave no doubt, else what the full measure says ("zh", "en", "other", "none")."""
    return raw_language(text) or text.evidence.language


def raw_language(text: Text) -> str:
    """ "zh" or "en" where raw counts leave no doubt, else ""."""
    if text.num_han > 3 * len(text.words) and text.num_han >= 4 and not text.count(KANA, 400):
        return "zh"
    if len(text.words) >= 8 and not text.num_han and len(ORDINARY.intersection(text.words)) >= 3:
        if text.raw.isascii() and len(text.words) >= 20:
            return "en"
        # Words of French, German, … decide against English only where there are two of them.
        foreign = OTHER_FUNCTION.intersection(text.words)
        if len(foreign) < 2 and sum(map(text.words.count, foreign)) < 2 and "://" not in text.raw:
            return "" if has_other_script(text.raw) else "en"
    return ""


def asks_for_another(prompt: Text) -> bool:
    """Whether the prompt speaks of languages or translation: then the answer's is its own affair."""
    return any(word in prompt.lowered for word in _TRANSLATE)


def _may_be_english(asked: str, prompt: Text) -> bool:
    """Whether a prompt that counts as Chinese asks in English about something Chinese."""
    return asked == "zh" and prompt.num_han < 12 and prompt.raw.split(maxsplit=1)[0].lower() in _QUESTIONS


def check_agreement(text: Text, around: Around) -> Verdict:
    """The rule `language`: an answer in another language than its prompt's, which does not ask for it."""
    if around.prompt is None or "```" in text.raw or (text.size < 4 and not has_other_script(text.head)):
        return KEEP
    sure = raw_language(text)  # takes less than the look for a request, and that less than the full measure
    if (sure and sure == raw_language(around.prompt)) or asks_for_another(around.prompt):
        return KEEP
    asked, answered = quick_language(around.prompt), quick_language(text)
    if asked not in ("zh", "en") or answered == "none" or asked == answered:
        return KEEP
    if (answered == "en" and not text.evidence.english) or _may_be_english(asked, around.prompt):
        return KEEP  # nothing but names: Python, Java, C++; or "Who wrote 红楼梦?"
    return objection(f"asked in {asked}, answered in {answered}")


def check_mixed(text: Text, around: Around) -> Verdict:
    """The rule `mixed`: ordinary English words inside a Chinese answer, beyond 2% of its letters."""
    if not text.num_han or not text.words or text.num_han < len(text.words) or "```" in text.raw:
        return KEEP
    ordinary = [word for word in text.words if word in ORDINARY]
    letters = text.num_han + sum(map(len, text.words))
    if sum(map(len, ordinary)) <= SHARE * letters:
        return KEEP
    if around.prompt and asks_for_another(around.prompt):
        return KEEP
    evidence = measure(text.head, latin_license(around.prompt.head)) if around.prompt else text.evidence
    if evidence.mixed and sum(map(len, evidence.runs)) > SHARE * letters:
        run = evidence.runs[0] if evidence.runs else ""
        at = max(text.raw.find(run), 0)
        return objection("English words in Chinese", (Span(at, at + len(run), "mixed"),))
    return KEEP


def check_emoji(text: Text, around: Around) -> Verdict:
    """The rule `emoji`: pictographs that the prompt did not use."""
    if text.raw.isascii() or (around.prompt and not around.prompt.raw.isascii() and emoji_in(around.prompt.raw)):
        return KEEP
    if not text.has(PICTURE):  # the pattern is slow
        return KEEP
    found = emoji_in(text.raw)
    at = text.raw.find(found[0]) if found else 0
    return objection(f"{len(found)} emoji", (Span(at, at + len(found[0]), "emoji"),)) if found else KEEP


def check_script(text: Text, around: Around) -> Verdict:
    """The rule `script`: Traditional where the prompt is Simplified, or the other way round."""
    if around.prompt is None or text.num_han < 10 or around.prompt.num_han < 4:
        return KEEP
    if any(word in around.prompt.raw for word in ("繁体", "繁體", "简体", "簡體", "粤语", "粵語", "古文", "文言")):
        return KEEP
    asked, answered = around.prompt.variant, text.variant
    return objection(f"asked in {asked}, answered in {answered}") if asked and answered and asked != answered else KEEP


RULES = (
    Rule("language", 2, "answers in another language", "答非所问语", "hanlin.text.language", check_agreement),
    Rule(
        "mixed",
        1,
        "mixes languages",
        "中英混杂",
        "hanlin.text.language",
        check_mixed,
        ("用 Python 写",),
        ("我们 should 一起 discuss 这个 important 问题",),
    ),
    Rule("emoji", 1, "emoji", "表情符号", "Unicode 16, emoji-data", check_emoji, ("好 ✓ ©",), ("好😊",)),
    Rule("script", 1, "the other Chinese script", "简繁不一致", "OpenCC's STCharacters", check_script),
)
