"""The words around a number: what makes 15012345678 a phone, an order or a sum.

Only the 24 characters before a number and the few after it are read, on its own line; of two cues the nearer one wins.
"""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["phone", "number", "identity", "passport", "company", "host", "version", "plate"]

REACH = 24  # characters before a number that may say what it is
FAR = 64  # the same for documents, whose names are long: Exit-Entry Permit for Travelling to and from Hong Kong


@dataclass(frozen=True, slots=True)
class _Cue:
    """Words that say what a number is: Chinese ones as plain alternatives, which `re` searches quickly, and others."""

    han: re.Pattern[str]
    latin: re.Pattern[str]

    def last(self, before: str) -> int:
        """Where the last of the words ends; -1: none is there."""
        ends = [match.end() for match in self.latin.finditer(before)]
        if not before.isascii():
            ends += [match.end() for match in self.han.finditer(before)]
        return max(ends, default=-1)


def _cue(han: str, latin: str) -> _Cue:
    return _Cue(re.compile(han), re.compile(latin))


_PHONE = (
    "手机|电话|座机|固话|固定电话|总机|联系|致电|拨打|热线|传真|来电|短信|打给|微信|手機|電話|聯絡|聯繫|撥打|傳真|客服|号码|號碼|加我"
    "|机主|备用机|前台|总台|[的我新旧老换]号",
    r"(?<![a-z])(?:tel|phone|mobile|cell|call|fax|text me|reach me|contact|dial|sms|hotline|ring|whatsapp)|telephone",
)
_NUMBER = (
    "订单|单号|编号|流水|批号|货号|序列|运单|快递|物流|条码|条形码|型号|版本|时间戳|代码|编码|合同号|发票|案号|文号|货运|学号|工号|准考证"
    "|圆周率|质数|素数|随机数|总和|数字|訂單|單號|編號|流水號|條碼|型號|计算|等于|人口|金额|市值|票号|期号|房号|交易号|凭证|批次|产品|车架|专利"
    "|许可证|标准号|参数|数量|总数|总量|播放|阅读量|点赞|粉丝|资产|资本|营收|销量|料号|工单|出库|入库|库存|主键|房号|房间",
    r"(?<![a-z])(?:isbn|issn|ean|upc|sku|doi|order|invoice|tracking|serial|part|version|timestamp|transaction|ticket"
    r"|reference|ref|case|model|item|random|seed|prime|population|sum|number of|digit|id:|id in|commit|build|batch|lot"
    r"|barcode|compute|calculat(?:e|ing|ion)|patent|product|catalog|receipt|shipment|parcel|awb|license|uuid|hash|integer|value(?!s)"
    r"|epoch|factor|sku)(?:s|es|d|ed|ing|no|id|num|number)?(?![a-z])",
)
_VERSION = (
    "版本|固件|升级|更新|第|章|节|驱动",
    r"version|(?<![a-z])ver|(?<![a-z])v(?![a-z])|firmware|release|build|driver|section|chapter|oid|upgrade|changelog"
    r"|chrome|windows|assembly|sdk|==|>=|~=",
)
_CUES: dict[Kind, tuple[_Cue, _Cue]] = {
    "phone": (_cue(*_PHONE), _cue(*_NUMBER)),
    "number": (
        _cue(*_NUMBER),
        _cue(
            _PHONE[0] + "|银行卡|卡号|账号|帐号|信用卡|借记卡|身份证|身份證|护照",
            _PHONE[1] + "|card|account|ssn|social security",
        ),
    ),
    "identity": (
        _cue(
            "身份证|身份證|证件|證件|公民身份|身分證|身分证|(?<![可考])证号|(?<![可考])證號|[老旧]证|的证[是号为]|一代证",
            r"hkid|identity (?:card|number|no)|(?:15|fifteen)-digit [a-z ]{0,12}id|ssn"
            r"|(?<![a-z])id (?:card )?(?:still )?(?:of|with|has) (?:15|fifteen) digits|(?<![a-z])id (?:card|no|number)"
            r"|social security|(?<![a-z])id[:： ]",
        ),
        _cue(*_NUMBER),
    ),
    "passport": (
        _cue(
            "护照|護照|证件(?!照)|證件|通行证|通行證|回乡[证卡]|回鄉[證卡]|台胞[证證卡]|大通[证證]|入台[证證]|旅行[证證]",
            r"passport|(?:travel|return|compatriot|entry|two-way|visit) (?:permit|document|card)"
            r"|permit (?:for|to) (?:travel|hong kong)|(?:macau|macao|hong kong|taiwan) permit"
            r"|(?<![a-z])(?:mtp|eep)(?![a-z])",
        ),
        _cue(_NUMBER[0].replace("|编号", "").replace("|编码", ""), _NUMBER[1].replace("|number of", "")),
    ),
    "company": (
        _cue(
            "信用代码|信用代碼|营业执照(?:编号|注册号|号)?|统一代码|税号|稅號|识别号",
            r"credit code|uscc|tax(?:payer)? (?:id|no|number)",
        ),
        _cue(_NUMBER[0].replace("|代码", ""), _NUMBER[1]),
    ),
    "host": (
        _cue(
            "服务器|主机|網址|登录|登入|访问|来自|网关|攻击|代理",
            r"(?<![a-z])ips?(?![a-z\d])|host|server|ping|ssh|connect|address|addr|login|from|curl|http|dns|proxy",
        ),
        _cue(*_VERSION),
    ),
    "version": (
        _cue(*_VERSION),
        _cue("服务器|主机", r"(?<![a-z])ips?(?![a-z])|server|host|ping|ssh"),
    ),
    "plate": (
        _cue("车牌|車牌|牌照|车号|号牌|轿车|货车|汽车|的车", r"plate|licen[cs]e"),
        _cue(*_NUMBER),
    ),
}
_UNITS = re.compile(
    r"[ ]?(?:元|美元|人民币|块|吨|公里|千米|米|次|字节|个|人|位|倍|股|亿|万|千|条|年|秒|毫秒|天|度|欧|円|日元|平方"
    r"|立方|hz|km|kg|bytes?"
    r"|dollars?|usd|rmb|people|times|meters?|miles|ms|seconds|years|%|°)"
)
_LETTER = re.compile(r"[^\W\d]|[=~>]")
_OPERATION = re.compile(
    r" ?(?:除以|乘以|加上|减去|[乘除减加](?= ?\d)|的(?:余数|平方|立方|因数|约数|质因数|倒数)|取模"
    r"|mod|divided|times|plus|minus|multiplied|modulo)"
)
_LINKED = re.compile(
    r"(?:护照|護照|[证證卡]|passports?|permit|document|mtp)"
    r"(?: for [a-z ]{0,20}residents)?(?: ?[（(][^（）()\n]{1,12}[）)])?"
    r"(?:[\s:#=“”\"'(（，,、.：）)_/-]|号码?|號碼?|编号|編號|证件|證件|[为為是上印写着]|(?:no|number|num|card|book|is|was|reads|numbered)(?![a-z])){0,12}$"
)
_NUMBERED_AFTER = re.compile(
    r"[\"'”’)）\]]{0,2} ?(?:(?:(?:is|was|are)(?: the| an?| my| our| your)? )?(?:prime|random|order|tracking|serial"
    r"|invoice|ticket|product|part|transaction)|[是为](?:一个)?(?:订单|单号|运单|编号|流水|序列|质数|素数|主键|商品))"
)
_TAG = re.compile(r"</?[a-z][^<>]*> *$", re.I)
_DOCUMENT_AFTER = re.compile(
    r" ?号?的?(?:[（(]|普通|因私|公务|公務)?(?:护照|護照|通行证|通行證|passport)(?![夹套本夾])"
)
_LEFT, _RIGHT = "×÷*/^%<>≈≥≤≠√∑", "×÷*/^%<>≈≥≤≠+="

_BEFORE_OPERATOR = tuple("0123456789=(")


def says(lowered: str, start: int, kind: Kind, *, reach: int = REACH) -> bool:
    """Whether the words before position `start` say that a `kind` follows; the text is in lower case."""
    before = words_before(lowered, start, reach=reach)
    return bool(before) and says_in(before, kind)


def words_before(lowered: str, start: int, *, reach: int = REACH) -> str:
    """What stands before position `start` on its line, within reach; "" where it has no letters."""
    before = lowered[max(0, start - reach) : start]
    before = before[before.rfind("\n") + 1 :]
    return before if _LETTER.search(before) else ""


def says_in(before: str, kind: Kind) -> bool:
    """`says` for words that were cut out already."""
    wanted, other = _CUES[kind]
    near = wanted.last(before)
    return near >= 0 and near >= other.last(before)


def is_arithmetic(text: str, start: int, end: int) -> bool:
    """Whether the number stands in a sum: an operator beside it, and a number or bracket beyond."""
    left = text[max(0, start - 4) : start].rstrip(" ")
    right = text[end : end + 4].lstrip(" ")
    if left.endswith(">") and _TAG.search(text, max(0, start - REACH), start):
        return False
    if left and (left[-1] in _LEFT or (left[-1] in "+-−=" and left[:-1].rstrip(" ")[-1:] in _BEFORE_OPERATOR)):
        return not left.endswith("/")  # a path: tel/13812345678
    if not right:
        return False
    if _OPERATION.match(text, end):
        return True
    if right[0] in "+-−=":
        return right[1:].lstrip(" ")[:1].isdigit() or right[1:].lstrip(" ")[:1] in ("?", "？", "(")
    return (right[0] in _RIGHT and right[0] not in "<>/") or right.startswith(("/ ", "< ", "> "))


def is_quantity(lowered: str, end: int) -> bool:
    """Whether a unit follows the number."""
    return bool(_UNITS.match(lowered, end))


def is_numbered_after(lowered: str, end: int) -> bool:
    """Whether the words after a number say that it counts or orders something: 15812345678 is the order id."""
    return bool(_NUMBERED_AFTER.match(lowered, end))


def is_document_after(lowered: str, end: int) -> bool:
    """Whether a passport or permit is named right after its number: 持G12345678号护照."""
    return bool(_DOCUMENT_AFTER.match(lowered, end))


def digits_of(text: str) -> str:
    """The ASCII digits of a text."""
    if text.isascii() and text.isdigit():
        return text
    return "".join(char for char in text if "0" <= char <= "9")


def is_linked(lowered: str, start: int) -> bool:
    """Whether only words such as "No.", "number is" or 号码为 stand between a document's name and position `start`."""
    return bool(_LINKED.search(words_before(lowered, start, reach=FAR)))


def is_after_letter(text: str, start: int) -> bool:
    """Whether an ASCII letter or underscore stands right before a position."""
    return start > 0 and text[start - 1].isascii() and (text[start - 1].isalpha() or text[start - 1] == "_")
