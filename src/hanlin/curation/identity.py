"""Mistaken self-identification: an answer that says, in the first person, that it is somebody else's model.

我是由OpenAI训练的 is one; GPT-4 是 OpenAI 发布的, 我用 ChatGPT 写作 and "I work at OpenAI" are none. A sentence is
looked at only when it names a known model or maker; then its own words decide who speaks of whom. Vicuna and
open-instruct block names wherever they stand (`clean_sharegpt.py`, `filter_dataset_by_keywords.py`), which loses every
answer about language models.
"""

import re
from collections.abc import Iterator

from hanlin.curation.characters import ACCENTED, HAN
from hanlin.curation.rule import KEEP, Around, Rule, Span, Text, Verdict, objection

# Names that mean a model and nothing else; names that are words too want company ("Claude, an AI assistant").
_SURE = (
    r"chat ?gpt(?:[- ]?[345](?:\.5|o)?)?|gpt[- ]?[2-5](?:\.5|o)?(?:[- ]?(?:turbo|mini))?|open ?assistant"
    r"|chatglm\d?(?:-\d+b)?|glm-?4|文心一言|通义千问"
    r"|通义|讯飞星火|星火大模型|豆包|智谱清言|混元|盘古大模型|天工大模型|deep ?seek(?:[- ]?(?:v\d|r\d|chat"
    r"|coder))?|qwen[\d.]*(?:-\w+)?|千问|百川大模型"
    r"|baichuan\d?|internlm|书生·?浦语|minimax|kimi智能助手|文心大模型|ernie ?bot|bing ?chat|github copilot"
    r"|llama[- ]?[23](?:\.\d)?|vicuna|mixtral|mistral|grok"
    r"|gemma[- ]?[123]?|palm ?2|lamda|小冰|moss|必应聊天"
)
_UNSURE = (
    r"claude(?:[- ]?[1-4](?:\.\d)?)?(?: ?(?:sonnet|opus|haiku))?|gemini(?: ?(?:pro|ultra|advanced))?|bard|kimi"
    r"|llama|copilot|alpaca|koala|yi|phi|bing|siri|alexa|cortana|assistant"
)
_MAKER = (
    r"open ?ai|anthropic|google(?: ?deepmind| ai)?|deepmind|谷歌|meta(?: ?ai)?|facebook|脸书|microsoft|微软|阿里"
    r"(?:巴巴|云|达摩院)?(?:集团|公司)?|alibaba(?: cloud)?|达摩院|百度|baidu"
    r"|智谱(?:ai|华章)?|zhipu(?: ?ai)?|清华(?:大学)?|tsinghua(?: university)?|深度求索|deep ?seek|月之暗面"
    r"|moonshot(?: ?ai)?|字节跳动|字节|bytedance|腾讯|tencent|科大讯飞|讯飞|iflytek|华为|huawei|零一万物|01\.ai"
    r"|百川智能|商汤|sensetime|上海人工智能实验室|shanghai ai lab(?:oratory)?|mistral(?: ai)?|xai|x\.ai|cohere"
    r"|stability ai|hugging ?face|lmsys(?: org)?|laion|stanford|斯坦福(?:大学)?|amazon|亚马逊|apple|苹果公司?"
    r"|nvidia|英伟达|minimax|databricks|复旦大学"
)
_NAME = rf"(?:{_SURE}|{_UNSURE})(?![a-z])"
_ANY = re.compile(rf"(?<![a-z])(?:{_SURE}|{_UNSURE}|{_MAKER})(?![a-z])")
_SURE_OR_MAKER = rf"(?<![a-z])(?:{_SURE}|{_MAKER})(?![a-z])"
_SCREEN = (
    *(
        "gpt",
        "openai",
        "open ai",
        "claude",
        "anthropic",
        "gemini",
        "bard",
        "google",
        "谷歌",
        "deepmind",
        "llama",
        "meta",
        "facebook",
        "脸书",
        "mistral",
        "mixtral",
    ),
    *(
        "qwen",
        "千问",
        "通义",
        "阿里",
        "alibaba",
        "达摩院",
        "文心",
        "ernie",
        "百度",
        "baidu",
        "智谱",
        "zhipu",
        "glm",
        "清华",
        "tsinghua",
        "deepseek",
        "deep seek",
        "深度求索",
    ),
    *(
        "kimi",
        "moonshot",
        "月之暗面",
        "豆包",
        "字节",
        "bytedance",
        "混元",
        "腾讯",
        "tencent",
        "星火",
        "讯飞",
        "iflytek",
        "盘古",
        "华为",
        "huawei",
        "百川",
        "baichuan",
    ),
    *(
        "零一万物",
        "01.ai",
        "minimax",
        "copilot",
        "bing",
        "必应",
        "微软",
        "microsoft",
        "grok",
        "xai",
        "gemma",
        "vicuna",
        "alpaca",
        "koala",
        "assistant",
        "internlm",
    ),
    *(
        "书生",
        "商汤",
        "上海人工智能",
        "cohere",
        "stability",
        "hugging",
        "lmsys",
        "laion",
        "stanford",
        "斯坦福",
        "amazon",
        "亚马逊",
        "siri",
        "alexa",
        "apple",
        "苹果",
        "nvidia",
    ),
    *("小冰", "moss", "palm", "lamda", "天工", "x.ai", "databricks", "复旦"),
)

_SCREENS = (
    tuple(name.encode() for name in _SCREEN if name.isascii()),
    tuple(name for name in _SCREEN if not name.isascii()),
)
_FIRST_PERSON_ZH = ("我", "本", "咱", "俺", "这里是", "這裡是", "在下", "身为", "作为", "作為")
_FIRST_PERSON_EN = frozenset(("i", "im", "my", "me"))

_MADE_ZH = (
    r"(?:训练|开发|研发|创造|打造|设计|推出|发布|提供|构建|制造|研制|创建|創造|開發|訓練|研發|設計|推出|所有"
    r"|運營|运营|支持|驱动)"
)
_THING_ZH = (
    r"(?:人工智能|人工智慧|AI|ai|智能|语言模型|語言模型|大模型|模型|助手|助理|机器人|機器人|聊天|程序|llm|系统|系統)"
)
_ME = r"(?:我|本人|本模型|本助手|本ai|咱|俺)"
_GAP = r"[^，,。；;：:！!？?\n“”\"「」]"
_ZH = tuple(
    re.compile(pattern)
    for pattern in (
        # 我是ChatGPT / 我的名字叫文心一言 / 你可以叫我豆包
        rf"{_ME}(?:其实|就|正|确实|实际上|當然|当然)?(?:是|叫做?|名叫|名为|的名字(?:是|叫做?)|的名稱是|的名称是|的身份是|乃)(?!通过|用|使用|靠|跟|和|与|在|从|被|把|听|看|拿|让|给|请|说|因|指)(?:一个|一款|一種|一种|一名|你的|您的)?{_GAP}{{0,10}}?(?<![a-z])(?:{_SURE})(?![a-z])",
        rf"(?:叫我|称呼我为?|稱呼我為?|这里是|這裡是|我为|在下){_GAP}{{0,4}}?(?<![a-z])(?:{_SURE}|claude|gemini|kimi)(?![a-z])",
        rf"{_ME}(?:是|叫做?|名叫|的名字(?:是|叫)){_GAP}{{0,8}}?(?<![a-z]){_NAME}[，,（(。！ "
        rf"]{{0,2}}{_GAP}{{0,18}}{_THING_ZH}",
        rf"{_ME}(?:是|叫做?|名叫)(?<![a-z])(?:claude|gemini|kimi|bard)(?![a-z])[。！，,!]",
        # 我是(一个)由OpenAI训练的 / 我由…开发 / 作为由…开发的
        rf"(?:{_ME}(?:是|作为|作為|本身是|，)|{_ME}(?=由|被|出自|来自|來自)|作为|作為|身为)(?!用|在|通过|使用)[^。！？\n“”\"]{{0,40}}?(?:由|被|出自|来自|來自|是){_GAP}{{0,12}}?(?<![a-z])(?:{_MAKER}|{_SURE})(?![a-z]){_GAP}{{0,16}}?{_MADE_ZH}{_GAP}{{0,20}}",
        rf"{_ME}(?:是|是?来自|是?來自|是?隶属于|属于)(?:一个|一款)? ?(?<![a-z])(?:{_MAKER})"
        rf"(?![a-z])[^。！？\n“”\"]{{0,14}}?{_THING_ZH}",
        rf"{_ME}是(?:一个|一款)? ?(?<![a-z])(?:{_MAKER})(?![a-z]){_GAP}{{0,6}}?{_MADE_ZH}的",
        rf"作[为為](?:一个|一個|一款)?{_GAP}{{0,8}}?(?<![a-z])(?:{_MAKER}|{_SURE})(?![a-z]){_GAP}{{0,14}}?{_THING_ZH}[^。！？\n]{{0,8}}我",
        rf"作[为為](?:一个|一個|一款)?{_GAP}{{0,4}}?(?<![a-z])(?:{_SURE})(?![a-z])[，,]?{_GAP}{{0,3}}(?:我|本)",
        rf"(?<![a-z])(?:{_MAKER})(?![a-z]){_GAP}{{0,8}}?{_MADE_ZH}(?:了|出|出了|的)?(?:我$|我[，,。！ ]|了我|我的)",
        rf"{_ME}的(?:开发者|創造者|创造者|开发商|訓練者|训练者|制造商|母公司|开发团队|研发团队|研发公司|主人|公司|創建者|作者|开发公司|開發者|創建公司|底层模型|基础模型|模型|核心){_GAP}{{0,4}}?(?:是|为|来自|叫){_GAP}{{0,6}}?{_SURE_OR_MAKER}",
        rf"{_ME}(?:是)?(?:基于|基於|使用的是|运行在|依托|采用的是|搭载){_GAP}{{0,14}}?(?<![a-z])(?:{_SURE}|{_MAKER})(?![a-z]){_GAP}{{0,10}}?(?:架构|模型|技术|架構|技術|构建|训练|开发|的|$|。)",
    )
)
_THING_EN = (
    r"(?:(?:ai|artificial intelligence|large|virtual|helpful|conversational|machine learning|neural|natural"
    r"|language|multimodal|intelligent|digital|generative|advanced|powerful|friendly|chat)[ -]?)*"
    r"(?:language model|model|llm|chatbot|chat ?bot|assistant|ai|artificial intelligence|bot|program|system|agent"
    r"|tool)(?! (?:researcher|engineer|developer|student|scientist|enthusiast|user|expert|fan|trainer|lead|team|and ))"
)
_MADE_EN = (
    r"(?:trained|developed|created|built|made|designed|powered|fine-tuned|released|maintained|provided"
    r"|produced|engineered|programmed|owned|operated|hosted|launched|trained and \w+|developed and \w+|created and \w+)"
)
_I = r"(?<![a-z])(?:i am|i'm|im|i was|i have been|i've been)"
_WITHIN = r"[^.!?;\n\"“”]"
_EN = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?<![a-z])(?:i am|i'm|i was|my name is|my name's|you can call me|call me|you may call me|this is|i go "
        rf"by|known as me)(?: actually| indeed| really| just| in fact)?(?: called| named| known as)? (?:the |an? "
        rf")?(?:ai |language model |assistant |chatbot |model |openai's |google's |anthropic's |meta's |alibaba's "
        rf"|microsoft's |version of |instance of |variant of |large |artificial intelligence |virtual |called "
        rf"|named |known as ){{0,6}}(?:{_SURE})(?![a-z])(?! (?:fan|user|expert|enthusiast|developer|researcher"
        rf"|subscriber|engineer|power|skeptic))(?:(?! user| fan))",
        rf"(?<![a-z])(?:i am|i'm|my name is|you can call me|call me|this is) (?:the |an? )?{_NAME}(?:,|\.| -| –|:| "
        rf"—)? ?(?:an?|the|your)?,? ?(?:new |helpful |friendly |large |powerful )*{_THING_EN}",
        r"(?<![a-z])(?:i am|i'm|my name is) (?:claude|gemini|bard|kimi)(?:[.!]|,? (?:made|created|built|developed"
        r"|trained) by|$)",
        rf"{_I} (?:not human,? but |just |only |also |actually |essentially |simply )?(?:an?|the|your)? "
        rf"?{_WITHIN}{{0,30}}?{_THING_EN}{_WITHIN}{{0,90}}?{_MADE_EN}(?: and \w+)?(?: [a-z]+ly)? (?:by|at) (?:the "
        rf")?(?:{_WITHIN}{{0,30}}? )?(?:{_MAKER})(?![a-z])",
        rf"{_I} (?:[a-z]+ly )?(?:being )?{_MADE_EN}(?: [a-z]+ly)?(?: (?:and|or) {_MADE_EN})? (?:by|at) (?:the "
        rf"|researchers at |engineers at |scientists at |people at |folks at |a (?:team|group) (?:of \w+ )?(?:at"
        rf"|from) |the team at |a company called |the company )?(?:{_MAKER})(?![a-z])",
        rf"(?<![a-z])as an? (?:{_WITHIN}{{0,24}}?)?{_THING_EN}{_WITHIN}{{0,40}}?{_MADE_EN} (?:by|at) (?:the )?"
        rf"(?:{_MAKER})(?![a-z]){_WITHIN}{{0,80}}?(?<![a-z])(?:i|my)(?![a-z])",
        rf"(?<![a-z])as (?:an? )?(?:{_MAKER})(?:'s)? {_THING_EN}{_WITHIN}{{0,30}}?(?<![a-z])i(?![a-z])",
        rf"(?<![a-z])as (?:an? |the )?(?:ai |language model |assistant |chatbot )*(?:{_SURE}),? (?:i(?![a-z])|my )",
        rf"(?<![a-z])(?:{_MAKER})(?: (?:is|was) the (?:company|organization|team|lab) (?:that|which|who))? (?:has "
        rf"|originally |first )?(?:trained|developed|created|built|made|designed) me(?![a-z])",
        rf"(?<![a-z])my (?:creators?|developers?|makers?|trainers?|parent company|company|designers?|development "
        rf"team|underlying model|base model|model|architecture|name)(?:,? (?:at|is|are|was|were|comes from|being))"
        rf"(?: called| based on| named)? (?:the |an? )?(?:team at |researchers at |company |version of )?"
        rf"(?:{_SURE}|{_MAKER})(?![a-z])(?! (?:and|stock|car))",
        rf"{_I} (?:currently |actually )?(?:based on|built on|built upon|running on|powered by|using the|derived "
        rf"from|a version of|an instance of|a variant of|part of|a product of|a creation of|a fine-tuned version "
        rf"of|a member of) (?:the |openai's |an? |google's |meta's )*(?:{_WITHIN}{{0,12}} )?(?:{_SURE})(?![a-z])",
        rf"(?<![a-z])i run on (?:the |openai's |google's )*(?:{_SURE}|{_MAKER})(?![a-z])",
        rf"{_I} (?:a product of|a creation of|from|part of|an ai (?:from|by|of)|an assistant (?:from|by)|(?:the"
        rf"|an?) {_THING_EN} (?:from|by|of)) (?:{_MAKER})(?![a-z])(?! (?:and|drive))",
        rf"{_I} (?:an? |the )?(?:{_MAKER})(?:'s)? (?:ai(?: [a-z]+)? |large |virtual |chat )?(?:language model"
        rf"|assistant|chatbot|llm|gpt\S*|model)(?![a-z])(?! (?:researcher|engineer))",
    )
)
_DENIED = re.compile(
    r"不是|并非|並非|不叫|而非|没有被|不是由|如果|假如|假设|假設|假装|倘若|扮演|想象|若我|要是|以为我|是不是|是否|之前|曾|粉丝|用户|员工|工程师|认为|觉得|使用(?!的是)|在用|说我|问我"
    r"|(?<![a-z])(?:am not|i'm not|was not|wasn't|isn't|is not|not made|never|if i|imagine|pretend|suppose|were i"
    r"|as if|whether i|instead of|rather than|unlike|fan of|work(?:ing|ed)? (?:at|for|on)|employee|engineer at"
    r"|thought)(?![a-z])"
)
_SENTENCE_END = re.compile(r"[。！？!?\n]|\.(?=\s|$)")
_REACH = 240
_MOST_SENTENCES = 500  # with a name in them; no answer has as many, a hostile row must not take minutes
_QUOTES = ("“”", "「」", "『』")


def find_identity(text: Text, *, own: tuple[str, ...] = ()) -> tuple[Span, ...]:
    """The names of models and makers that the text claims for itself; `own` names (the user's) are no mistake."""
    if not _is_in_the_first_person(text) or not _names_somebody(text):
        return ()
    lowered = text.lowered.replace("’", "'")
    spans: list[Span] = []
    done = 0
    looked = 0
    for match in _ANY.finditer(lowered):
        if looked == _MOST_SENTENCES:
            break
        if match.start() < done or match[0] in own:
            continue
        start, done = _sentence(lowered, match.start(), match.end(), done)
        looked += 1
        claim = _claim(lowered[start:done])
        if claim and not _is_reported(lowered, start + claim.start()):
            spans += _names(lowered, start, done, own)
    return tuple(spans)


def _is_in_the_first_person(text: Text) -> bool:
    """Whether a word is there without which no pattern finds a claim."""
    if text.has(HAN) and any(word in text.raw for word in _FIRST_PERSON_ZH):
        return True
    return text.has(ACCENTED) or not text.vocabulary.isdisjoint(_FIRST_PERSON_EN) or b"this is" in text.outline


def _names_somebody(text: Text) -> bool:
    in_latin, in_han = _SCREENS
    if any(name in text.outline for name in in_latin):
        return True
    return text.has(HAN) and any(name in text.lowered for name in in_han)


def _sentence(text: str, start: int, end: int, floor: int) -> tuple[int, int]:
    """The sentence around a name, at most `_REACH` characters each way, not before `floor`."""
    low = max(floor, start - _REACH)
    before = 0
    for stop in _SENTENCE_END.finditer(text, low, start):
        before = stop.end()
    after = _SENTENCE_END.search(text, end, min(len(text), end + _REACH))
    return max(low, before), after.end() if after else min(len(text), end + _REACH)


def _claim(sentence: str) -> re.Match[str] | None:
    for pattern in (*_ZH, *_EN):
        match = pattern.search(sentence)
        # What stands before the claim or in it may take it back: 我不是…, if I were ...
        if match and not _DENIED.search(sentence[max(0, match.start() - 12) : match.end() + 4]):
            return match
    return None


def _is_reported(text: str, at: int) -> bool:
    """Whether the claim stands inside quotation marks: somebody else's words."""
    before = text[max(0, at - 300) : at]
    before = before[before.rfind("\n") + 1 :]
    if any(before.rfind(pair[0]) > before.rfind(pair[1]) for pair in _QUOTES):
        return True
    return before.count('"') % 2 == 1


def _names(text: str, start: int, end: int, own: tuple[str, ...]) -> Iterator[Span]:
    for match in _ANY.finditer(text, start, end):
        if match[0] not in own and match[0] != "assistant":
            maker = re.fullmatch(_MAKER, match[0]) and not re.fullmatch(_SURE, match[0])
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
    version=1,
    english="says that it is another model",
    chinese="自称是别的模型",
    source="patterns of this project; names after Chatbot Arena's and open-instruct's lists",
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
