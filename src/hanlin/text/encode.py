"""A conversation or a preference becomes ids, and where the loss looks.

Surprises: control ids are looked up by name, never parsed out of text, so nobody can type one. Text between two
control pieces is encoded in one go, as the official template is tokenised, except that an assistant's content is
encoded apart from its header: the ids of a prompt are then always a prefix of the ids of its training text.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from hanlin.errors import ConfigError, DataError, TemplateError
from hanlin.text.chat import ChatFormat, Kind
from hanlin.text.tokenizer import Tokenizer
from hanlin.types import Conversation, EncodedPair, Message, Preference, Tokens


def encode_prompt(
    messages: Sequence[Message], format: ChatFormat, tokenizer: Tokenizer, *, tools: Sequence[dict[str, Any]] = ()
) -> list[int]:
    """Ids of a conversation up to and with the assistant's header: what a model continues. `tools` are declared.

    Raises:
        TemplateError: the conversation ends with an answer, the format cannot hold it, or the tokenizer lacks a
        control piece.
    """
    if messages and messages[-1].role == "assistant":
        raise TemplateError("the prompt ends with an assistant turn; expected a user turn last; remove the answer")
    return [id for id, _ in _encode(format.spans(messages, tools=tools, generation_prompt=True), tokenizer)]


def encode_pair(preference: Preference, format: ChatFormat, tokenizer: Tokenizer) -> EncodedPair:
    """The prompt with the assistant's header, and both answers with their stop piece.

    Raises:
        TemplateError: as `encode_prompt`, or an answer is empty.
        DataError: as `Tokenizer.encode`. Both messages begin with the pair's id.
    """
    with naming(preference.id):
        return EncodedPair(
            prompt=tuple(encode_prompt(preference.prompt, format, tokenizer)),
            chosen=encode_answer(preference.chosen, format, tokenizer),
            rejected=encode_answer(preference.rejected, format, tokenizer),
            id=preference.id,
            category=preference.category,
            fault=preference.fault,
        )


def encode_conversation(
    conversation: Conversation, format: ChatFormat, tokenizer: Tokenizer, *, score: Literal["last", "every"]
) -> Tokens:
    """The whole training text; scored are the answers with their stop pieces, of the last or of every assistant turn.

    Raises:
        TemplateError: the conversation does not end with an answer, or as `encode_prompt`.
    """
    messages = conversation.messages
    with naming(conversation.id):
        if not messages or messages[-1].role != "assistant":
            raise TemplateError("the conversation does not end with an assistant turn; add the answer")
        encoded = list(_encode(format.spans(messages, tools=conversation.tools), tokenizer))
    scored = [kind in ("answer", "stop") for _, kind in encoded]
    if score == "last":
        stops = [at for at, (_, kind) in enumerate(encoded) if kind == "stop"]
        earlier = stops[-2] + 1 if len(stops) > 1 else 0
        scored[:earlier] = [False] * earlier
    return Tokens(ids=tuple(id for id, _ in encoded), scored=tuple(scored), id=conversation.id)


def stop_ids(format: ChatFormat, tokenizer: Tokenizer, extra: Iterable[int] = ()) -> tuple[int, ...]:
    """Ids that end an answer, ascending: the format's stop pieces that the tokenizer has, and `extra`
    (generation_config's EOS).
    """
    known = {id for piece in format.stops if (id := tokenizer.id(piece)) is not None}
    return tuple(sorted(known.union(extra)))


def control_ids(format: ChatFormat, tokenizer: Tokenizer) -> dict[str, int]:
    """The control pieces that the format writes, and their ids; those that the tokenizer has. A stop that it only
    reads (ChatML's <|endoftext|>) is not among them.
    """
    pieces = (format.bos, format.opening, format.closing, format.stop)
    return {piece: tokenizer.control[piece] for piece in pieces if piece in tokenizer.control}


@contextmanager
def naming(id: str) -> Iterator[None]:
    """Puts the example's id before the message of what is wrong with it."""
    try:
        yield
    except (TemplateError, DataError) as error:
        raise type(error)(f"{id}: {error}" if id else str(error)) from None


def check_vocabulary(tokenizer: Tokenizer, num_rows: int) -> None:
    """Refuse a tokenizer that can produce ids the model has no row for.

    Spare rows are normal, and so are further control pieces that no text becomes (Gemma 3's image token). Raises
    ConfigError.
    """
    beyond = tokenizer.size - num_rows
    if beyond > len(tokenizer.control) or any(
        tokenizer.piece(id) not in tokenizer.control for id in range(num_rows, tokenizer.size)
    ):
        raise ConfigError(
            f"the tokenizer has ids up to {tokenizer.size - 1}, the model rows for 0 to {num_rows - 1}: they do not "
            "belong together; take the tokenizer that came with these weights"
        )


def encode_answer(content: str, format: ChatFormat, tokenizer: Tokenizer) -> tuple[int, ...]:
    """An answer with its stop piece. Raises TemplateError for an empty one."""
    spans: list[tuple[str, Kind]] = [(format.answer(content), "answer"), (format.stop, "stop")]
    return tuple(id for id, _ in _encode(iter(spans), tokenizer))


def _encode(spans: Iterator[tuple[str, Kind]], tokenizer: Tokenizer) -> Iterator[tuple[int, Kind]]:
    """Ids with the kind of span they come from; neighbouring "text" spans are encoded as one text."""
    waiting = ""
    for text, kind in spans:
        if kind == "text":
            waiting += text
            continue
        for id in tokenizer.encode(waiting):
            yield id, "text"
        waiting = ""
        for id in tokenizer.encode(text) if kind == "answer" else [_control_id(text, tokenizer)]:
            yield id, kind
    for id in tokenizer.encode(waiting):
        yield id, "text"


def _control_id(piece: str, tokenizer: Tokenizer) -> int:
    id = tokenizer.control.get(piece)
    if id is None:
        raise TemplateError(
            f"the tokenizer has no control piece {piece!r}, which the chat format writes; use this model's own format"
        )
    return id
