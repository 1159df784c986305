"""Abusive words of Chinese and English, and the expressions that only look like them.

A word list finds what it lists and nothing else; where a classifier weighs a whole text, it points at the word. Words
whose plain sense is common are not on it (dog, pig, ass). English words count whole, Chinese ones wherever they are;
the allow-list names longer expressions in which they mean nothing bad (体操你做得好, 他妈的生日, a Maine Coon). A
user's own words and expressions come with the recipe.
"""

import re
import sys
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

from hanlin.curation.rule import KEEP, Around, Rule, Span, Text, Verdict, objection


def _words(text: str) -> list[str]:
    return text.split()


ENGLISH = frozenset(
    _words(
        """
        fuck fucks fucked fucker fuckers fucking motherfucker motherfuckers motherfucking shithead shitheads asshole
        assholes dickhead dickheads cunt cunts bastard bastards bitchy slut sluts slutty whore whores wanker wankers
        twat twats cocksucker cocksuckers douchebag douchebags dumbass jackass faggot faggots fag fags tranny trannies
        nigger niggers nigga niggas chink chinks gook gooks kike kikes spic spics wetback wetbacks
        raghead ragheads towelhead paki pakis coon coons beaner beaners retard retards retarded libtard libtards
        """
    )
)
CHINESE = (
    *("傻逼", "傻屄", "傻b", "煞笔", "妈逼", "操你", "操他妈", "操她妈", "草泥马", "草你妈", "肏", "日你妈", "干你娘"),
    *(
        "他妈的",
        "特么的",
        "滚你妈",
        "去你妈",
        "狗娘养",
        "狗日的",
        "狗杂种",
        "小杂种",
        "野杂种",
        "王八蛋",
        "王八羔子",
        "龟孙子",
    ),
    *(
        "贱人",
        "贱货",
        "贱婢",
        "婊子",
        "臭婊",
        "绿茶婊",
        "骚货",
        "荡妇",
        "傻叉",
        "脑残",
        "蠢货",
        "人渣",
        "败类",
        "畜生",
        "畜牲",
    ),
    *(
        "死全家",
        "全家死",
        "不得好死",
        "去死吧",
        "支那猪",
        "支那人",
        "黑鬼",
        "棒子国",
        "小日本鬼子",
        "死基佬",
        "死娘炮",
        "鸡巴",
    ),
    *("屌毛", "丑逼", "臭傻", "死三八", "臭三八", "垃圾人", "狗东西", "老不死的"),
)
ALLOWED = (
    *("畜生道", "六畜生", "家畜生", "牲畜生", "人渣反派", "体操你", "早操你", "做操你", "广播操你", "黑鬼面具"),
    *(
        f"他妈的{word}"
        for word in ("生日", "电话", "手机", "话", "意思", "名字", "身体", "菜", "工作", "病", "手", "眼睛", "照片")
    ),
    *("maine coon", "maine coons", "coon cat", "coon cats", "chink in", "chinks in", "chink of", "chinks of"),
)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


@lru_cache(maxsize=8)
def _patterns(
    extra: tuple[str, ...], allowed: tuple[str, ...]
) -> tuple[frozenset[str], re.Pattern[str], re.Pattern[str]]:
    """English words, all Chinese ones, and the expressions in which neither counts."""
    latin = frozenset(word.lower() for word in extra if word.isascii())
    han = (*CHINESE, *(word.lower() for word in extra if not word.isascii()))
    longest_first = sorted({*ALLOWED, *(word.lower() for word in allowed)}, key=len, reverse=True)
    return (
        ENGLISH | latin,
        re.compile("|".join(map(re.escape, sorted(han, key=len, reverse=True)))),
        re.compile("|".join(map(re.escape, longest_first))),
    )


def find_abuse(text: Text, *, extra: tuple[str, ...] = (), allowed: tuple[str, ...] = ()) -> tuple[Span, ...]:
    """Where the words of the list stand; `extra` words count too, `allowed` expressions do not."""
    english, chinese, exempt = _patterns(extra, allowed)
    found = list(_found(text, english, chinese))
    if not found:
        return ()
    free = [match.span() for match in exempt.finditer(text.lowered)]
    return tuple(span for span in found if not _is_within(span, free))


def _is_within(span: Span, free: list[tuple[int, int]]) -> bool:
    """Whether one of the stretches, which are in order and apart, holds the span."""
    before = bisect_right(free, (span.start, sys.maxsize)) - 1
    return before >= 0 and span.end <= free[before][1]


def _found(text: Text, english: frozenset[str], chinese: re.Pattern[str]) -> Iterator[Span]:
    if not english.isdisjoint(text.vocabulary):
        for match in _WORD.finditer(text.lowered):
            if match[0] in english:
                yield Span(*match.span(), "abuse")
    if text.num_han:
        for match in chinese.finditer(text.lowered):
            yield Span(*match.span(), "abuse")


def check_lexicon(text: Text, around: Around) -> Verdict:
    """The rule `lexicon`: a word of the list outside the expressions of the allow-list."""
    return _verdict(text, find_abuse(text))


def _verdict(text: Text, spans: tuple[Span, ...]) -> Verdict:
    return objection(f"{len(spans)} × an abusive word", spans) if spans else KEEP


def check_words(text: Text, *, extra: tuple[str, ...], allowed: tuple[str, ...]) -> Verdict:
    """The rule with the recipe's own words."""
    return _verdict(text, find_abuse(text, extra=extra, allowed=allowed))


LEXICON = Rule(
    "lexicon",
    1,
    "abusive words",
    "辱骂用语",
    "this project",
    check_lexicon,
    (
        *("Scunthorpe United", "assess the class", "体操你做得很好", "他妈的生日", "杂种优势", "a Maine Coon"),
        *("flame retardant", "日本鬼怪故事", "傻瓜相机", "a chink in the armour", "牲畜生病了"),
    ),
    ("you fucking idiot", "你这个傻逼", "他妈的！", "a bunch of RETARDS", "王八蛋"),
)
