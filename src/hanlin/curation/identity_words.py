"""The words in which a model says what it is, by class: one letter for each, so that a claim is a pattern of letters.

Traditional characters are read as Simplified ones. A word of no class is `x`; see `identity` for the patterns
and `identity_claims` for what has learned from labelled sentences.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hanlin.curation.characters import TRADITIONAL
from hanlin.curation.fingerprints import simplified_characters
from hanlin.curation.rule import Text

# Names that mean a model and nothing else (M); that are other words too (U: "Claude Monet"); of makers (K); of a model
# and its maker alike (N).
_SUFFIX = (
    r"(?:[- ]?(?:v|r|o|k)?\d[\d.]*(?:[- ]?x?\d*[bo](?![a-z]))?)?(?:[- ](?:turbo|mini|chat|plus|max|pro|"
    r"instruct|coder|flash|lite|preview|sonnet|haiku|opus|\d+b)(?![a-z]))*"
)
_NAMES = {
    "M": (
        rf"(?:chat ?gpt|gpt|open ?assistant|chatglm|glm|qwen|qwq|internlm|minicpm|hunyuan|doubao|llama(?=[- ]?\d)|"
        rf"code ?llama|vicuna|mixtral"
        rf"|mistral(?=[- ](?:7b|large|small|nemo|medium))|grok|gemma|wizardlm|zephyr|stablelm|starcoder|dolly|olmo|"
        rf"falcon(?=[- ]?\d)|yi(?=-\d)"
        rf"|phi(?=-\d)|command[- ]r\+?|baichuan(?=[- ]?\d)|skywork|gemini(?=[- ](?:\d|pro|ultra))|"
        rf"claude(?=[- ]\d)){_SUFFIX}"
        r"|text-davinci(?:-\d+)?|chatrtx|nemotron|molmo|exaone|hyperclova(?: ?x)?|gigachat|yandexgpt|tigerbot|xverse|"
        r"telechat|blenderbot|openchat(?:kit)?|guanaco|xgen|sensenova|360 ?zhinao|wps ?ai|notion ai|bixby|tülu"
        r"|mpt(?=-\d)|granite(?=[- ]\d)|orca(?=[- ]\d)|jamba|google assistant|quillbot|youchat"
        r"|palm ?2|lamda|tongyi(?: ?qianwen)?|ernie ?bot|wenxin yiyan|spark ?desk|sensechat|le chat|bing ?chat|"
        r"bard ai"
        r"|(?:github|microsoft|bing) ?copilot|openhermes|tulu|replika|cortana"
        r"|文心一言|文心大模型|文小言|通义千问|通义(?!实验室)|千问|讯飞星火|星火(?:认知)?大模型|豆包|智谱清言|混元|"
        r"盘古(?:大模型|ai)"
        r"|天工(?:大模型|ai)|百川(?:大模型|ai)|书生·?浦语|海螺ai|日日新|360智脑|紫东太初|小爱同学|小度|天猫精灵|"
        r"小冰|必应聊天|腾讯元宝"
        r"|书生·?万象|书生大模型|星辰语义大模型|安第斯大模型|蓝心大模型|海螺问问|知海图|百灵大模型|商量(?=sensechat)|智脑大模型"
        r"|kimi智能助手|跃问|悟道大模型|序列猴子|言犀|百小应|万知|moss"
    ),
    "U": (
        r"(?:claude|gemini|bard|kimi|llama|copilot|alpaca|koala|yi|phi|pi|bing|siri|alexa|ernie|天工|星火|falcon|palm|"
        r"bloomz?|starling|luminous|arctic|aquila|jovi|celia|o1|o3|aya|poe|reka flash|tiangong|xiao ?ai|盘古|猎鹰|百灵|"
        rf"小布|小艺|商量|书生|文心|智脑){_SUFFIX}"
    ),
    "N": rf"(?:deep ?seek|minimax|mistral(?! ai)|baichuan|meta ai|讯飞星火){_SUFFIX}",
    "K": (
        r"open ?ai|anthropic|google(?: ?deepmind| ai| research| brain)?|deep ?mind|谷歌|meta(?: ?ai)?|"
        r"facebook(?: ai)?|脸书|microsoft|微软|阿里"
        r"(?:巴巴|云|达摩院)*|alibaba(?: cloud| group)?|达摩院|通义实验室|百度|baidu|智谱(?:ai|华章)?|"
        r"zhipu(?: ?ai)?|清华(?:大学)?"
        r"|tsinghua(?: university)?|深度求索|月之暗面|moonshot(?: ?ai)?|字节跳动|字节|bytedance|腾讯|tencent|"
        r"科大讯飞|讯飞|iflytek|华为|huawei"
        r"|零一万物|01\.ai|百川智能|商汤|sensetime|上海人工智能实验室|shanghai ai lab(?:oratory)?|mistral ai|xai|"
        r"x\.ai|cohere|stability ai"
        r"|hugging ?face|lmsys(?: org)?|laion|stanford(?: university)?|斯坦福(?:大学)?|amazon|亚马逊|apple|苹果公司|"
        r"nvidia|英伟达|databricks"
        r"|复旦(?:大学)?|昆仑万维|阶跃星辰|stepfun|面壁智能|智源(?:研究院)?|京东|小米|快手|美团|网易|三六零|360公司|"
        r"inflection(?: ?ai)?"
        r"|technology innovation institute|allen institute(?: for ai)?|ai2|ai21(?: labs)?|qihoo(?: ?360)?"
        r"|奇虎(?: ?360)?|kunlun(?: tech)?|samsung|三星|snowflake|bigscience|aleph alpha|baai|reka(?: ai)?|mosaicml"
        r"|beijing academy of artificial intelligence|北京智源|nous ?research|sarvam(?: ai)?|浪潮(?:信息)?|蚂蚁集团"
        r"|稀宇(?:科技)?|金山办公|学而思|好未来|vivo|oppo|荣耀|上海 ?ai ?(?:实验室|lab)|浦江实验室|技术创新研究所"
        r"|艾伦研究所|(?<!海纳)百川|幻方(?:量化)?|xiaomi|character\.?ai|perplexity(?: ai)?|eleuther ?ai|salesforce|ibm"
        r"|sber|yandex|naver|tii"
    ),
}
ANY_NAME = re.compile(r"(?<![a-z0-9])(?:" + "|".join(_NAMES.values()) + r")(?![a-z])")
# A text without one of these names nobody: the names' first words in Latin letters, and pieces of the Chinese ones.
_LATIN_NAMES = (
    "chat chatgpt gpt open openassistant openai chatglm glm qwen qwq internlm minicpm hunyuan doubao llama code"
    " codellama vicuna mixtral mistral grok"
    " gemma wizardlm zephyr stablelm starcoder dolly olmo falcon yi phi command baichuan skywork gemini claude palm"
    " lamda tongyi ernie erniebot wenxin"
    " spark sparkdesk sensechat le bing bingchat bard github microsoft openhermes tulu replika cortana moss kimi"
    " copilot alpaca koala pi siri alexa deep"
    " deepseek minimax meta metaai anthropic google googledeepmind googleai deepmind facebook alibaba baidu zhipu"
    " zhipuai tsinghua moonshot moonshotai"
    " bytedance tencent iflytek huawei sensetime shanghai xai x cohere stability hugging huggingface lmsys laion"
    " stanford amazon apple nvidia"
    " databricks stepfun inflection inflectionai character characterai perplexity eleuther eleutherai"
    " salesforce ibm sber yandex naver tii"
    " davinci chatrtx nemotron molmo exaone hyperclova gigachat yandexgpt tigerbot xverse telechat blenderbot openchat"
    " openchatkit guanaco xgen sensenova zhinao wps notion bixby tülu mpt granite orca jamba quillbot youchat"
    " bloom bloomz starling luminous arctic aquila jovi celia o aya poe reka tiangong xiao xiaoai innovation allen ai"
    " qihoo kunlun samsung snowflake bigscience aleph baai beijing mosaicml nous nousresearch sarvam"
    " vivo oppo xiaomi hyperclovax"
)
_HAN_NAMES = (
    "文心 文小言 通义 千问 讯飞 星火 豆包 智谱 混元 盘古 天工 百川 书生 海螺 日日新 360 紫东 小爱 小度 天猫 小冰"
    " 必应 元宝 跃问 悟道 序列猴子 言犀 百小应 万知"
    " 谷歌 脸书 微软 阿里 达摩院 百度 清华 深度求索 月之暗面 字节 腾讯 华为 零一万物 商汤 上海人工 斯坦福 亚马逊"
    " 苹果 英伟达 复旦 昆仑 阶跃 面壁 智源 京东 小米"
    " 快手 美团 网易 三六零 安第斯 蓝心 知海图 百灵 商量 智脑 猎鹰 小布 小艺 奇虎 三星 北京智源 浪潮 蚂蚁集团 稀宇"
    " 金山办公 学而思 好未来 荣耀 浦江实验室 技术创新研究所 艾伦研究所 幻方 星辰语义"
)
_LATIN, _HAN = frozenset(_LATIN_NAMES.split()), re.compile("|".join(_HAN_NAMES.split()))
_WORDS = {
    # Who speaks: I and me; whose name, maker or base is spoken of.
    "I": "本人 本模型 本助手 本ai 本机器人 咱 俺 吾 在下 i me",
    "IB": "我系 i'm im i've.been",
    "O": "我隶属于 我隶属 我从属于",
    "m": "之手 之作 的手笔",
    "Y": "我的 我背后的 我所使用的 我使用的 我的背后 俺的 my",
    "n": "名字 名称 全名 大名 名 身份 代号 name identity",
    "R": "开发者 开发商 开发团队 开发公司 研发者 研发团队 研发公司 研发单位 开发单位 创造者 创建者 创始公司"
    " 训练者 训练团队 制造商"
    " 制造者 设计者 母公司 东家 主人"
    " 底层模型 基础模型 基座模型 基座 底座模型 底座 模型版本 版本 型号 核心 架构 技术 引擎 内核 幕后团队"
    " creator creators developer developers maker makers trainer trainers designers parent.company"
    " development.team underlying.model base.model foundation.model backbone architecture model.name"
    " model.version engine",
    "F": "公司 团队 机构 组织 company organization organisation lab team people folks",
    "B": "happen.to.be 是 叫做 叫 名叫 名为 名唤 称作 称为 唤作 乃 即 就是 为 am 'm is 's.name.is was were"
    " have.been 've.been"
    " has.been are identify.as go.by go.by.the.name",
    "Z": "而是",
    "V": "叫我 称呼我为 称我为 称呼我 这里是 我这里是 call.me it's.me known.as.me think.of.me.as know.me.as"
    " refer.to.me.as",
    "A": "作为 身为 作为一个 as being",
    "H": "here speaking",
    "s": "this.is",
    # What a maker does, and through whom.
    "D": "训练 开发 研发 研制 创造 打造 设计 推出 发布 构建 制造 创建 创立 微调 制作 提供 做 造 出品 孵化 培育 自研"
    " 编写 驱动 支撑 brought.to.life brought.into.being"
    " trained developed created built made designed powered fine-tuned finetuned released engineered programmed"
    " launched produced maintained"
    " owned operated introduced",
    "y": "由 被 by",
    "f": "来自 出自 隶属于 属于 隶属 源自 源于 from of belong.to belongs.to comes.from come.from",
    "l": "at works.at work.at works.for work.for",
    "G": "基于 使用的是 使用的模型是 用的是 诞生于 运行在 运行于 依托 采用的是 采用 搭载 based.on built.on"
    " built.upon run.on running.on powered.by"
    " using derived.from a.version.of an.instance.of a.variant.of the.latest.version.of version.of instance.of"
    " variant.of part.of"
    " a.product.of a.creation.of a.fine-tuned.version.of a.member.of fine-tuned.from owe.my.existence.to",
    "T": "人工智能 人工智慧 ai智能 ai助手 ai助理 ai ai模型 智能 智能体 语言模型 大模型 模型 助手 助理 机器人"
    " 聊天机器人 聊天程序 程序 llm llms 系统 系列 家族 产品 版 作品 experiment line lineup"
    " language.model model models chatbot chat.bot assistant assistants artificial.intelligence bot program system"
    " agent family series companion"
    " machine.learning.model neural.network",
    "h": "工程师 员工 用户 粉丝 学生 研究员 科学家 经理 专家 爱好者 股东 投资人 老师 学员 实习生 程序员 记者"
    " researcher researchers engineer engineers"
    " developer.at developers student students scientist scientists enthusiast user users expert experts fan fans"
    " employee employees customer"
    " subscriber manager shareholder director consultant contractor",
    # Words that may stand between, and that end a name's phrase.
    "d": "a an",
    "e": "的 嘅 之 's s'",
    "a": "一个 一款 一种 一名 一位 一套 一 个 款 其实 就 正 确实 实际上 事实上 当然 只 只不过 不过 便 也 的确 可"
    " 本身 本来 真的 仅仅 仅 目前 现在 当前"
    " 最新 新一代 强大 大型 大规模 超大规模 自主 独立 全新 开源 多模态 旗下 集团 实验室 研究院 研究人员 工程师团队"
    " 科学家们 研究者 科技 有限公司"
    " 人员 所 了 出来 出 并 和 及 以及 知识增强 对话 中文 英文 国产 专业 高级 友好 可爱 超级 先进 免费 认知 预训练"
    " 生成式 通用 语言 聊天 虚拟 在线"
    " 您 你 支持 支援 公司的 团队的 共同 联合 一手 亲手 精心 大型语言 背后 幕后 北京 杭州 深圳 上海 美国 中国 知名"
    " 著名 叫作 成 一群 一家 一支 您说的 你说的 您提到的 你提到的 那个 那款 这个 这款 真实 真正 正式 大名鼎鼎"
    " 鼎鼎大名 而来 full real actual true official"
    " one.of 自然语言处理 自然语言 处理 式 交流"
    " the your just only also actually really indeed simply essentially currently now still in.fact of.course large"
    " new helpful harmless friendly powerful"
    " advanced virtual conversational multimodal intelligent digital generative language chat smart open-source"
    " opensource latest own called named known.as"
    " originally first proudly recently specifically primarily carefully jointly company.called team.at"
    " team.of.engineers.at research.team.at"
    " researchers.at engineers.at scientists.at people.at folks.at group.at group.of.researchers.at"
    " team.of.researchers.at team.of.scientists.at team.of.engineers.and.researchers.at team.from good.folks.at"
    " team.behind behind based large-scale natural.language.processing chinese american startup company.named"
    " not.a.human.but not.human.but"
    " research.company ai.company tech.company ai.lab"
    " company.that company.which has had have kind.of sort.of trained.and",
    "w": "不 没 没有 非 未 别 无 not never isn't wasn't no neither nor without don't didn't",
    "c": "并且 而且 但 但是 所以 因此 可以 能够 能 很 会 专门 有 让 来 以 用于 用来 旨在 拥有 随时 愿意 请 并不 and"
    " will can but so to with on in for using that which who"
    " through because when since until or while designed.to capable ready your.friendly.ai",
    "o": "有什么 很高兴 请问 可以帮 能帮 愿意为 很荣幸 how.can.i how.may.i what.can.i happy.to here.to"
    " ready.to glad.to nice.to.meet"
    " pleased.to.meet at.your.service",
    "t": "呀 哦 呢 啦 啊 哟 嘛 喔 诶 噢 而已 罢了 之上 上 是也 behind.the.scenes under.the.hood after.all",
}
_CODE = {word.replace(".", " "): code for code, words in _WORDS.items() for word in words.split()}
OWN = "\ue000"  # stands for each character of the user's own names
_PUNCTUATION = "，,。；;：:！!？?\n—–…、~～|/"
_BRACKETS = "()（）[]【】"
_QUOTES = "“”\"'「」『』*_`《》‘’"


def _alternatives(words: Iterator[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_TOKEN = re.compile(
    r"(?P<name>(?<![a-z0-9])(?:" + "|".join(f"(?P<{code}>{names})" for code, names in _NAMES.items()) + r")(?![a-z]))"
    r"|(?P<you>(?:you are|you're)(?: currently| now| actually| really)? "
    r"(?:talking|chatting|speaking|conversing|interacting) (?:to|with)(?![a-z])"
    r"|you(?:'ve| have) reached(?![a-z])|[你您](?:(?:现在|正在|在|目前)+[与和跟同]|(?:现在|正在|在|目前)*(?:聊天"
    r"|对话|交谈|交流|沟通)的?对象是?))"
    rf"|(?P<han>{_alternatives(word for word in _CODE if not word.isascii())})"
    r"|(?P<me>我(?![们国国校司院省方家军辈]))"
    rf"|(?P<latin>(?:(?<![a-z0-9])|"
    rf"(?=['’]))(?:{_alternatives(word for word in _CODE if word.isascii())})(?![a-z0-9]))"
    rf"|(?P<pause>[{re.escape(_PUNCTUATION)}]|\.(?=\s|$)| -+ )"
    rf"|(?P<bracket>[{re.escape(_BRACKETS)}])"
    rf"|(?P<quote>[{re.escape(_QUOTES)}])"
    r"|(?P<doing>[a-z]{2,}ing(?![a-z]))"
    r"|(?P<other>[a-z0-9][a-z0-9'.-]*|[^\s])"
)


def plainly(text: Text) -> str:
    """A text in lower case with straight apostrophes and Simplified characters, each in its place."""
    lowered = text.lowered.translate(simplified_characters()) if text.has(TRADITIONAL) else text.lowered
    return lowered.replace("’", "'")


def names_somebody(text: Text, plain: str) -> bool:
    """Whether a name can be there at all; quick."""
    if not text.vocabulary.isdisjoint(_LATIN) or ".ai" in plain:
        return True
    return not plain.isascii() and _HAN.search(plain) is not None


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a sentence: its class's letters, what it is written as, where it begins."""

    letters: str
    text: str
    place: int
    is_name: bool = False


def read(sentence: str) -> list[Word]:
    """The words of a sentence; the sentence as `plainly` makes it, own names hidden by `OWN`."""
    return [
        Word(_letters(match), match[0], match.start(), match.lastgroup == "name") for match in _TOKEN.finditer(sentence)
    ]


def spelled(words: list[Word]) -> tuple[str, list[int]]:
    """The letters of words one after the other, and where the word of each begins."""
    places = [word.place for word in words for _ in word.letters]
    return "".join(word.letters for word in words), places


def hidden(text: str, own: tuple[str, ...]) -> str:
    """A text without the user's own names, every other character in its place."""
    for name in own:
        text = text.replace(name, OWN * len(name))
    return text


def _letters(match: re.Match[str]) -> str:
    kind = match.lastgroup
    if kind in ("han", "latin"):
        return _CODE[match[0]]
    if kind == "name":
        return next(code for code in _NAMES if match[code] is not None)
    return {"me": "I", "you": "V", "doing": "j", "pause": "p", "bracket": "b", "quote": "q"}.get(kind or "", "x")
