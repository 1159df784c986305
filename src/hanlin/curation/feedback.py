"""One row of weak feedback as opinions about answers to a prompt.

    several answers   prompt, answers: [text or {text, score, votes}], scores or ratings or ranks beside them
    ranked            prompt, ranking: [best, …, worst]
    SHP               history, human_ref_A and human_ref_B, score_A and score_B
    HelpSteer2 and 3  prompt or context, response_1 and response_2, preference_strength or overall_preference
    one answer        prompt, answer, score (or ratings, label, thumbs, upvotes and downvotes); the answer may be the
                      last turn of messages

What people call these columns is listed below; UltraFeedback, KTO, HelpSteer and arena votes are of these forms. An
opinion has a value, the higher the better, and a number of votes: of scores the mean and how many there are; of counts
and thumbs the share of up votes, one of each kind added (Laplace), so that 9 of 10 outweighs 1 of 1; of ranks the
place, below zero; of a preference between two answers (-3 to 3, above zero for the second) half of it, for one and
against the other. Where each of several answers has nothing but votes, those for the others are votes against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hanlin.config import shown
from hanlin.data.alpaca import turns_of
from hanlin.data.messages import BadRow, check_characters, checked_turns, messages_of, with_system_column
from hanlin.data.transcripts import prompt_turns
from hanlin.types import Message

Scale = Literal["score", "thumbs", "rank", "preference"]
_CONVERSATIONS = ("messages", "conversations")
_PROMPTS = ("prompt", "messages", "conversations", "instruction", "question", "query", "context", "history")
_SEVERAL = ("answers", "responses", "completions", "candidates", "outputs", "generations")
_RANKED = ("ranking", "ranked")
_ONE = ("answer", "response", "completion", "output")
_TEXTS = ("text", "content", *_ONE, "value")
_SCORES = ("score", "rating", "overall_score", "reward", "helpfulness")
_MANY_SCORES = ("scores", "ratings")
_RANKS = ("rank", "ranks")
_THUMBS = ("label", "thumbs", "thumb", "feedback", "liked", "vote", "kto_tag")
_COUNTS = (("upvotes", "downvotes"), ("likes", "dislikes"), ("thumbs_up", "thumbs_down"), ("up", "down"))
_VOTES = ("votes", "num_votes", "num_ratings", "count")
_TWO_ANSWERS = (("response_1", "response_2"), ("response1", "response2"), ("human_ref_A", "human_ref_B"))
_PREFERENCES = ("preference_strength", "overall_preference")
_MEASURES = (*_SCORES, *_MANY_SCORES, *_RANKS, *_THUMBS, *(name for pair in _COUNTS for name in pair))
_BESIDE = (*_MEASURES, "labels", *_VOTES)
_UP = {"up", "good", "like", "liked", "yes", "true", "+1", "1", "positive", "desirable", "👍", "赞", "好", "顶", "喜欢"}
_DOWN = {"down", "bad", "dislike", "no", "false", "-1", "0", "negative", "undesirable", "👎", "踩", "差", "不喜欢"}


@dataclass(frozen=True, slots=True)
class Opinion:
    """What was said of one answer: `total` over `votes` votes. Of thumbs the total is the number of up votes."""

    answer: str
    scale: Scale
    total: float
    votes: int


def value_of(scale: Scale, total: float, votes: int) -> float:
    """How good an answer is, by all that was said of it."""
    return (total + 1) / (votes + 2) if scale == "thumbs" else total / votes


def read_feedback(row: Any) -> tuple[tuple[Message, ...], list[Opinion]]:
    """The prompt and the opinions in one parsed row. Raises BadRow."""
    if not isinstance(row, dict):
        raise BadRow(
            "the row is not an object", f"{shown(row)}; expected a prompt, answers and what was thought of them"
        )
    columns = {key: value for key, value in row.items() if value is not None}
    columns = _with_answer_apart(columns)
    prompt = _prompt(columns)
    if (column := _first(columns, _RANKED)) is not None:
        answers = [_text(item, column) for item in _listed(columns[column], column)]
        found = [Opinion(answer, "rank", -float(place), 1) for place, answer in enumerate(answers, start=1)]
    elif two := next((names for names in _TWO_ANSWERS if all(name in columns for name in names)), None):
        found = _of_two([_text(columns[name], name) for name in two], columns)
    elif (column := _first(columns, _SEVERAL)) is not None:
        found = _several(columns, _listed(columns[column], column), column)
    elif (column := _first(columns, _ONE)) is not None:
        found = [_opinion(_text(columns[column], column), columns)]
    else:
        expected = f"expected one of {', '.join((*_SEVERAL, *_RANKED, *_ONE))}"
        raise BadRow("the answers are missing", f"{expected}; the columns are {', '.join(map(str, columns))[:120]}")
    for opinion in found:
        check_characters(opinion.answer)
    return prompt, found


def _of_two(answers: Sequence[str], columns: Mapping[str, Any]) -> list[Opinion]:
    """A preference between two answers, or a score of each."""
    if (name := _first(columns, _PREFERENCES)) is not None:
        half = _number(columns[name], name) / 2
        return [Opinion(answer, "preference", value, 1) for answer, value in zip(answers, (-half, half), strict=True)]
    if "score_A" in columns and "score_B" in columns:
        scores = [_number(columns[name], name) for name in ("score_A", "score_B")]
        return [Opinion(answer, "score", score, 1) for answer, score in zip(answers, scores, strict=True)]
    expected = ", ".join((*_PREFERENCES, "score_A and score_B"))
    raise BadRow("nothing says how good an answer is", f"expected {expected}")


def _with_answer_apart(columns: dict[str, Any]) -> dict[str, Any]:
    """A whole conversation and no answer beside it (KTO in LLaMA-Factory's form): its last turn is the answer."""
    column = _first(columns, _CONVERSATIONS)
    turns = columns.get(column) if column else None
    if not isinstance(turns, list) or len(turns) < 2 or _first(columns, (*_RANKED, *_SEVERAL, *_ONE)):
        return columns
    *asked, last = turns
    if not isinstance(last, dict) or not {"assistant", "gpt"} & {str(last.get("role")), str(last.get("from"))}:
        return columns
    return columns | {column: asked, "answer": last}


def _first(columns: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _listed(value: Any, column: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"{column} is not a list", f"{shown(value)}; expected answers")
    return value


def _prompt(columns: Mapping[str, Any]) -> tuple[Message, ...]:
    column = _first(columns, _PROMPTS)
    if column is None:
        raise BadRow("the prompt is missing", f"expected one of {', '.join(_PROMPTS)}")
    value = columns[column]
    if column == "instruction":
        prompt = turns_of(columns)
    else:
        prompt = prompt_turns(value) if isinstance(value, str) else messages_of(value, column)
    prompt = checked_turns(with_system_column(columns, prompt))
    for message in prompt:
        check_characters(message.content)
    return prompt


def _text(item: Any, where: str) -> str:
    """An answer's text: itself, a field of an object, or the one message of a list."""
    if isinstance(item, list) and len(item) == 1:
        item = item[0]
    if isinstance(item, dict):
        field = _first({key: value for key, value in item.items() if value is not None}, _TEXTS)
        item = item.get(field) if field else None
    if not isinstance(item, str):
        raise BadRow("an answer is not text", f"in {where}: {shown(item)}")
    return item


def _several(columns: Mapping[str, Any], items: list[Any], column: str) -> list[Opinion]:
    """Answers with what was thought of them inside each, or in columns of equal length beside them."""
    beside: dict[str, list[Any]] = {}
    for name in _BESIDE:
        value = columns.get(name)
        if isinstance(value, list):
            if len(value) != len(items):
                raise BadRow(f"{name} and {column} differ in length", f"{len(value)} and {len(items)}")
            beside[_singular(name)] = value
    answers, told = [], []
    for index, item in enumerate(items):
        own = {key: value for key, value in item.items() if value is not None} if isinstance(item, dict) else {}
        told.append(own | {name: values[index] for name, values in beside.items() if values[index] is not None})
        answers.append(_text(item, f"{column}[{index}]"))
    if all(_first(said, _VOTES) and not _first(said, _MEASURES) for said in told):
        return _votes_shared(answers, told)
    return [_opinion(answer, said) for answer, said in zip(answers, told, strict=True)]


def _votes_shared(answers: Sequence[str], told: Sequence[Mapping[str, Any]]) -> list[Opinion]:
    """Nothing but votes for each answer: those for the others are votes against it."""
    votes = [_count(said[name], name) for said in told if (name := _first(said, _VOTES))]
    return [Opinion(answer, "thumbs", float(own), sum(votes)) for answer, own in zip(answers, votes, strict=True)]


def _singular(name: str) -> str:
    return {"scores": "score", "ratings": "rating", "ranks": "rank", "labels": "label"}.get(name, name)


def _opinion(answer: str, said: Mapping[str, Any]) -> Opinion:
    """What is said of an answer in columns or fields."""
    for up, down in _COUNTS:
        if up in said and down in said:
            ups, downs = _count(said[up], up), _count(said[down], down)
            return Opinion(answer, "thumbs", float(ups), ups + downs)
    if (name := _first(said, _RANKS)) is not None:
        return Opinion(answer, "rank", -_number(said[name], name), 1)
    if (name := _first(said, (*_SCORES, *_MANY_SCORES))) is not None:
        if isinstance(said[name], list):
            numbers = [_number(one, name) for one in said[name]]
            return Opinion(answer, "score", sum(numbers), len(numbers))
        counted = _first(said, _VOTES)
        votes = _count(said[counted], counted) if counted else 1
        return Opinion(answer, "score", _number(said[name], name) * votes, votes)
    if (name := _first(said, _THUMBS)) is not None:
        return Opinion(answer, "thumbs", float(_is_up(said[name], name)), 1)
    known = ", ".join((*_SCORES, *_RANKS, *_THUMBS, *(f"{up} and {down}" for up, down in _COUNTS)))
    raise BadRow("nothing says how good an answer is", f"expected one of {known}")


def _number(value: Any, name: str) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number - number != 0:  # neither nan nor infinite
        raise BadRow(f"{name} is not a number", shown(value))
    return number


def _count(value: Any, name: str) -> int:
    number = _number(value, name)
    if number < 0 or number != int(number):
        raise BadRow(f"{name} is not a count", shown(value))
    return int(number)


def _is_up(value: Any, name: str) -> bool:
    told = str(int(value) if isinstance(value, float) and value == int(value) else value).strip().lower()
    if told in _UP or told in _DOWN:
        return told in _UP
    raise BadRow(
        f"{name} is neither up nor down", f"{shown(value)}; expected true or false, 1 or -1, up or down, 赞 or 踩"
    )
