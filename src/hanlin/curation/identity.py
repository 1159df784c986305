"""Mistaken self-identification: an answer that says, in the first person, that it is somebody else's model.

我是由OpenAI训练的 is one; GPT-4 是 OpenAI 发布的, 我用 ChatGPT 写作 and "I work at OpenAI" are none. Only a sentence
that names a model or maker is looked at. Its words become letters, one for each class (`identity_words`), and a claim
is a pattern of letters: who says it, of whom, and where the name's phrase ends: 我是ChatGPT is a claim, while
我是ChatGPT的用户 and "I am a ChatGPT user" are none. What no pattern finds is asked of a small classifier that has
learned from labelled sentences (`identity_claims`). Vicuna and open-instruct block names wherever they stand
(`clean_sharegpt.py`, `filter_dataset_by_keywords.py`), which loses every answer about language models.
"""

import re
from collections.abc import Iterator

from hanlin.curation.characters import ACCENTED, HAN
from hanlin.curation.identity_claims import is_likely
from hanlin.curation.identity_words import ANY_NAME, Word, hidden, names_somebody, plainly, read, spelled
from hanlin.curation.rule import KEEP, Around, Rule, Span, Text, Verdict, objection

_FIRST_PERSON_ZH = (
    "我",
    "本",
    "咱",
    "俺",
    "吾",
    "这里是",
    "這裡是",
    "身为",
    "身為",
    "作为",
    "作為",
    "您正",
    "你正",
    "您现",
    "你现",
    "您現",
    "你現",
)
_FIRST_PERSON_EN = frozenset(("i", "im", "my", "me", "this", "here", "you"))

# What a name's phrase ends at; I am, my name is, call me; words before a name, and with 的 or 's.
_END = r"(?=$|[bpctq])"
_AM = r"(?:I[apqty]{0,6}?(?:T[aq]*)?B|Y[aq]{0,4}n(?:[aq]{0,4}B|e)|I[^IpMKNUY]{0,10}pZ)"
_CALLED = rf"(?:{_AM}|Vp?)"
_BEFORE, _OF = r"[adqp]{0,5}", r"[adeq]{0,8}"
_MODEL, _MAKER, _NAME = "[MN]", "[KN]{1,2}", "[MNU]"
_BY = rf"D(?:[cB]{{0,2}}D)*a*y(?:d?[aeq]){{0,6}}{_MAKER}(?:e?[ah])*(?=$|[bpctqUMN])"
_FROM = rf"y?f?[aq]{{0,4}}{_MAKER}[abdeqfMNUKR]{{0,6}}x?[abdeqfMNUKR]{{0,6}}D"
_KIND = rf"(?:[aeq]*T)*{_END}"
# R stands for makers and firms (RF) in the patterns, r for makers alone: my company belongs to Google says nothing.
_CLAIMS = tuple(
    re.compile(pattern.replace("R", "RF").replace("r", "R"))
    for pattern in (
        # 我是由OpenAI训练的大模型ChatGPT; I'm OpenAI's language model ChatGPT
        rf"{_CALLED}[adeqyfBKDTRN]*{_MODEL}{_KIND}",
        # 我是微软的Copilot; I am Claude, made by ...; Yes, I am Bard.
        rf"{_CALLED}[adq]*(?:f?{_MAKER}[adeqDf]*|[adT]*Ta*)U{_KIND}",
        rf"{_CALLED}[aq]*U(?:[acq]*[bp]?$|[bpctq]{{0,3}}o|[bpctq]{{1,3}}(?:I[aq]*)?B?[adeqKNf]{{0,6}}T|"
        rf"[bpctq]{{0,3}}(?:I[aq]*)?B?[adeq]*(?:{_BY}|y?{_FROM}))",
        rf"{_AM}[adqB]*U[aeq]*T{_END}",
        rf"V{_MODEL}a{_END}",
        # 我由OpenAI训练; 我是阿里云自主研发的...; I was trained by Google
        rf"(?:I[apq]*|{_AM}){_BEFORE}{_FROM}(?![^p]*h)",
        rf"{_AM}[adq]{{0,4}}{_BY}",
        # 我是一个人工智能助手，由OpenAI开发; I'm an AI assistant that was created by Anthropic
        rf"{_AM}(?!a*j)[^pIYhwMKNU]{{0,24}}T[acdeqBTp]{{0,8}}(?:y[ade]*{_MAKER}[adeqR]*D|{_BY})",
        rf"{_AM}(?!a*j)[^pIYhwMKNU]{{0,16}}T[acBq]{{0,4}}G[adeqK]*{_MODEL}",
        rf"{_AM}[adT]*T[acdef]{{1,3}}(?:{_MAKER}[ae]*)?{_NAME}[aeq]*T{_END}",
        rf"{_AM}(?!a*j)[^pIYhwMKNU]{{0,16}}Tc?a*{_MAKER}a*D",
        rf"{_AM}(?!a*j)[adq]*T+[bp]+[acq]*(?:{_MODEL}|(?:Y?n)?[aq]*B{_NAME}){_KIND}",
        # 我是OpenAI的语言模型; an assistant from Google
        rf"{_AM}[adqyf]*{_MAKER}{_OF}T[Taeq]*{_END}",
        rf"{_AM}[adqT]*T[ad]*[yf][adeq]*{_MAKER}{_END}",
        rf"I[aq]*B?[aq]*f{_BEFORE}{_MAKER}[aeR]*p[acq]*B[adeq]*T{_END}",
        # OpenAI创造了我; the company that trained me
        rf"(?<!d)(?<!d[ax]){_MAKER}[acdefnhBRpq]{{0,8}}D(?:[ac]{{0,2}}D)*a*I(?:{_END}|A[ad]*T)",
        rf"D[ac]*Y[aR]*(?:B|B?f|l){_BEFORE}(?:{_MAKER}|{_NAME}[aeT]*{_END})",
        rf"[Rh][acq]*(?:D[ac]*)*I[aq]*(?:B|B?f|l){_BEFORE}(?:{_MAKER}|[RT][acq]*{_MODEL}){_END}",
        rf"(?:[RT][acq]*)?D[ac]*I[aq]*B{_BEFORE}{_NAME}[aeRT]*{_END}",
        # 我的开发者是OpenAI; my creators at OpenAI
        rf"{_MAKER}[aeq]*B[aq]*Y[aq]*r{_END}",
        rf"Y[aq]*rl{_MAKER}[xj]{{1,2}}I",
        rf"Y[aq]*(?:[RT][acq]*p?[acq]*B|[rT][acq]*p?[acq]*B?[fly]){_BEFORE}(?:K[aeq]*)?(?:{_MAKER}|{_MODEL})(?:e?[aRT]|f)*(?:De?)?{_END}",
        # 我基于GPT-4架构; I run on GPT-4; I'm powered by ...
        rf"(?:I[aq]*B?|{_AM})[adq]*G[adeqfKN]*[MKNU][aeRTq]*(?:{_END}|De(?:T|{_END})|Dae|Dc|[Dx]?y)",
        rf"Y[aq]*rB[adq]*G[adeq]*(?:{_MAKER}[ae]*)?{_NAME}{_END}",
        rf"I[aq]*Ge[RT]B(?:{_MAKER}[ae]*)?{_NAME}{_END}",
        # 我隶属于阿里云; 我出自百度之手
        rf"O{_BEFORE}(?:{_MAKER}[aR]*{_END}|{_NAME}[ade]*T)",
        rf"I[aq]*B?[aq]*f{_BEFORE}{_MAKER}[aR]*m",
        rf"(?:I[aq]*B?)[adq]*f[adeq]*[KN][adeq]*M[RTadefq]*{_END}",
        # 我属于LLaMA系列
        rf"I[aq]*B?[adq]*f{_BEFORE}{_NAME}[ade]*T",
        # 作为ChatGPT，我; as an AI made by Google, I
        rf"A[ad]*(?:{_MODEL}|(?<=A)U(?=p)|{_NAME}{_OF}[RT]|y?f?{_MAKER}{_OF}T|{_FROM}[adeqT]*|[acT]*T[acBjx]{{0,4}}(?:{_BY}|"
        rf"G[adeqK]*M)|[acdT]*Ta*[fl]{_BEFORE}{_MAKER}|G[adeqf]*[KMN])"
        rf"T*p?[acx]{{0,4}}(?:[IY]|$)",
        # I, ChatGPT, am; ChatGPT here
        rf"(?:^|[^p])Ip(?:{_MODEL}p|Up[Bc])",
        rf"^[ap]*s?(?:{_MODEL}|U)a?H{_END}",
    )
)
# What stands before a claim may take it back or give it to somebody else.
_TAKEN_BACK = re.compile(
    r"如果|假如|假设|假若|假装|倘若|若|要是|即使|即便|就算|哪怕|扮演|想象|以为|认为|觉得|误会|当成|当作|声称|自称|"
    r"宣称|说我|说过|说.?$|听说|告诉|问|称.?$|猜|是否|是不是|不能|谁|怎么|为什么"
    r"|从未|从来|没有|不要|别|梦见|希望|但愿|怀疑|谣|传言|回答|回复|输出|喊|叫道|写道"
    r"|(?<![a-z])(?:if|imagine|pretend|suppose|assume|whether|wish|think|thinks|thought|believe|believes|believed|"
    r"believing|doubt|doubts|doubted|told|heard|claim|claims|claimed|say|says|said"
    r"|saying|ask|asks|asked|wonder|replied|replies|answered|myth|wrong|false|rumou?r|lie|neither|nobody|no one|not|"
    r"never|don't|call|dreamed|as though)(?![a-z])"
)
# For what the classifier finds, looked for in the whole sentence: a supposition; and names that are all denied.
_SUPPOSED = re.compile(
    r"如果|假如|假设|倘若|若是|要是|即使|就算"
    r"|(?<![a-z])(?:if|had|hypothetically|suppose|imagine|pretend|act as)(?![a-z])"
)
_DENIED = re.compile(r"(?:不是|并非|而非|不叫|(?<![a-z])(?:not|unlike|than))[^，,。]{0,6}$")
_NOT_IT = re.compile(
    r"(?:不是|并非|而非|不叫|没有|从未|从来没|不具备|不同于|(?:和|跟|与|像)(?=[^，,。；;]{0,8}$)|(?<![a-z])(?:not|no|nor|neither|never"
    r"|unlike|like|than|without)|n't)[^，,。；;:：]{0,24}$"
)
_SAID_BEFORE = re.compile(
    r"(?:说|道|(?<=\S)答|称|问|喊|写|(?<![a-z])(?:said|says|say|replied|answered|added|asked|wrote|shouted|"
    r"whispered))\s*[，,：:]?\s*$"
)
_SENTENCE_END = re.compile(r"[。！？!?\n]|\.(?=\s|$)")
_CLAUSE_END = re.compile(r"[，,；;：:—(（]|(?<![a-z])(?:but|because|so)(?![a-z])")
_SPEAKER = re.compile(r"^[ \t>*#-]{0,6}([^\s：:，,。“\"][^：:\n，,。“\"]{0,11})[：:]", re.M)
_OF_A_LIST = re.compile(r"[我你您]|谁|什么|^\d|(?<![a-z])(?:you|i|my|who|what)(?![a-z])")
_ANSWERS = frozenset(("答", "回答", "答案", "a", "answer", "assistant", "助手", "注", "说明", "提示", "note", "ai"))
_SPEAKING = frozenset("IYVAOH")  # classes of words by which the assistant speaks of itself
_REACH = 240
_MOST_CHARACTERS = 60_000  # in sentences with a name; no answer has as many, a hostile row must not take minutes
_PAIRED = ("“”", "「」", "『』")


def find_identity(text: Text, *, own: tuple[str, ...] = ()) -> tuple[Span, ...]:
    """The names of models and makers that the text claims for itself; `own` names (the user's) are no mistake."""
    if not _is_in_the_first_person(text):
        return ()
    plain = plainly(text)
    if not names_somebody(text, plain):
        return ()
    plain = hidden(plain, own)
    spans: list[Span] = []
    for start, end in _named_sentences(plain):
        claimed = _claim(plain, start, end)
        if claimed >= 0:
            spans += _names(plain, claimed, end)
    return tuple(spans)


def sentences(text: Text, *, own: tuple[str, ...]) -> list[list[Word]]:
    """The sentences that name a model or maker and in which the assistant itself speaks, as words."""
    plain = hidden(plainly(text), own)
    found = []
    for start, end in _named_sentences(plain):
        words = read(plain[start:end])
        if _speaks(plain, start, end, words):
            found.append(words)
    return found


def _named_sentences(plain: str) -> Iterator[tuple[int, int]]:
    done = looked = 0
    for match in ANY_NAME.finditer(plain):
        if looked > _MOST_CHARACTERS:
            break
        if match.start() < done:
            continue
        start, done = _sentence(plain, match.start(), match.end(), done)
        looked += done - start
        yield start, done


def _is_in_the_first_person(text: Text) -> bool:
    """Whether a word is there without which no pattern finds a claim."""
    if text.has(HAN) and any(word in text.raw for word in _FIRST_PERSON_ZH):
        return True
    return text.has(ACCENTED) or not text.vocabulary.isdisjoint(_FIRST_PERSON_EN)


def _sentence(text: str, start: int, end: int, floor: int) -> tuple[int, int]:
    """The sentence around a name, at most `_REACH` characters each way, not before `floor`."""
    low = max(floor, start - _REACH)
    before = 0
    for stop in _SENTENCE_END.finditer(text, low, start):
        before = stop.end()
    after = _SENTENCE_END.search(text, end, min(len(text), end + _REACH))
    return max(low, before), after.end() if after else min(len(text), end + _REACH)


def _claim(text: str, start: int, end: int) -> int:
    """Where in the text a claim of this sentence begins; -1: there is none."""
    sentence = text[start:end]
    words = read(sentence)
    letters, places = spelled(words)
    if _SPEAKING.isdisjoint(letters):
        return -1
    for pattern in _CLAIMS:
        for match in pattern.finditer(letters):
            place = places[match.start()]
            if not _is_taken_back(sentence, place) and not _is_reported(text, start + place):
                return start + place
    return start if _speaks(text, start, end, words) and is_likely(words) else -1


def _speaks(text: str, start: int, end: int, words: list[Word]) -> bool:
    """Whether the assistant says something of itself: nobody else's words, nothing that is supposed or taken back, and
    not only what it is not.
    """
    sentence = text[start:end]
    if _SUPPOSED.search(sentence) or all(
        _NOT_IT.search(sentence, 0, match.start()) for match in ANY_NAME.finditer(sentence)
    ):
        return False
    return any(
        word.letters[0] in _SPEAKING
        and not _is_taken_back(sentence, word.place)
        and not _is_reported(text, start + word.place)
        for word in words
    )


def _is_taken_back(sentence: str, at: int) -> bool:
    clause = 0
    for stop in _CLAUSE_END.finditer(sentence, 0, at):
        clause = stop.end()
    return bool(_TAKEN_BACK.search(sentence, clause, at) or _SAID_BEFORE.search(sentence, 0, at))


def _is_reported(text: str, at: int) -> bool:
    """Whether the claim is somebody else's words: inside quotation marks, or a turn of a dialogue."""
    line = text.rfind("\n", 0, at) + 1
    before = text[max(line, at - 300) : at]
    if any(before.rfind(pair[0]) > before.rfind(pair[1]) for pair in _PAIRED) or before.count('"') % 2 == 1:
        return True
    speaker = _SPEAKER.match(text, line, at)
    if speaker is None or _OF_A_LIST.search(speaker[1]) or (speaker[1].strip("* ") in _ANSWERS and line == 0):
        return False
    nearby = {one[1] for one in _SPEAKER.finditer(text, max(0, line - 400), at + 400)}
    return len(nearby) > 1


def _names(text: str, start: int, end: int) -> Iterator[Span]:
    for match in ANY_NAME.finditer(text, start, end):
        if not _DENIED.search(text[start : match.start()]):
            maker = read(match[0])[0].letters == "K"
            yield Span(match.start(), match.end(), "maker" if maker else "name", "contextual")


def rewritten(text: str, spans: tuple[Span, ...], *, name: str, maker: str) -> str:
    """The text with the names in `spans` replaced by the user's own model's name and maker."""
    for span in reversed(spans):
        text = text[: span.start] + (maker if span.kind == "maker" else name) + text[span.end :]
    return text


def own_names(*names: str) -> tuple[str, ...]:
    """The user's own names as `find_identity` wants them."""
    return tuple(name.lower() for name in names if name)


def check_identity(text: Text, around: Around) -> Verdict:
    """The rule `identity`: objects to a first-person claim to be another maker's model."""
    return check_claims(text, own=())


def check_claims(text: Text, *, own: tuple[str, ...]) -> Verdict:
    """The rule with the recipe's own names."""
    spans = find_identity(text, own=own)
    return objection(f"claims to be {text.raw[spans[0].start : spans[0].end]}", spans) if spans else KEEP


IDENTITY = Rule(
    name="identity",
    version=4,
    english="says that it is another model",
    chinese="自称是别的模型",
    source="patterns and a classifier of this project; names after Chatbot Arena's and open-instruct's lists",
    check=check_identity,
    passes=(
        "GPT-4 是 OpenAI 发布的。",
        "I work at OpenAI.",
        "我不是ChatGPT。",
        "我用 ChatGPT 写作文。",
        "Claude Monet painted it.",
    ),
    fails=(
        "我是由OpenAI训练的语言模型。",
        "I am ChatGPT, a large language model trained by OpenAI.",
        "As an AI developed by Google, I can't.",
    ),
)
