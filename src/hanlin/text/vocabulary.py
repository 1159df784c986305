"""What a tokenizer's vocabulary says before any text is encoded: which one it is, and how much text one id can be."""

import hashlib
import json

from tokenizers import Tokenizer as Backend

from hanlin.text.tokenizer import Tokenizer

# No character decomposes canonically into more than four (UAX #15, section on expansion factors), so composing (NFC)
# leaves a quarter of the characters or more.
_MOST_COMPOSED = 4


def fingerprint(tokenizer: Tokenizer) -> str:
    """Hash of all that decides which ids a text becomes. Half a second for Gemma's 262,144 pieces."""
    whole = tokenizer._source or tokenizer._backend.to_str()
    return hashlib.sha256(whole.encode()).hexdigest()


def first_difference(one: Tokenizer, other: Tokenizer) -> tuple[int, str | None, str | None] | None:
    """The first id that stands for different pieces, and these; None in the place of a piece is no piece. None where
    both mean the same by every id, whatever else tells them apart.
    """
    for id in range(max(one.size, other.size)):
        pieces = one._backend.id_to_token(id), other._backend.id_to_token(id)
        if pieces[0] != pieces[1]:
            return id, *pieces
    return None


def longest_run(tokenizer: Tokenizer) -> int | None:
    """The most characters of a text that any one id stands for: n characters become n / this many ids or more.

    None where that cannot be known: the tokenizer may leave characters out or fold any number of them into one id.
    """
    backend = tokenizer._backend
    shrinks = _shrinks(backend)
    if shrinks is None or not _keeps_all(backend) or not _spells_all_bytes(tokenizer):
        return None
    longest = 1
    for id in range(tokenizer.size):
        spelled = tokenizer.token_bytes(id, keep_control=True)
        longest = max(longest, sum(byte & 0xC0 != 0x80 for byte in spelled))  # every character has one first byte
    return shrinks * longest


def _parts(part: object, key: str) -> list[dict]:
    """The states of a backend's part, sequences taken apart."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())  # pyright: ignore[reportArgumentType]
    return state[key] if state.get("type") == "Sequence" else [state]


def _shrinks(backend: Backend) -> int | None:
    """How many characters a normalized one may stand for; None where a normalizer is not known."""
    factor = 1
    for state in _parts(backend.normalizer, "normalizers"):
        if state["type"] == "NFC":
            factor = _MOST_COMPOSED
        elif state["type"] != "Replace" or len(state["pattern"].get("String", "")) != 1 or not state["content"]:
            return None
    return factor


def _keeps_all(backend: Backend) -> bool:
    """Whether every normalized character reaches the model: no split drops any, no added token swallows spaces."""
    splits = _parts(backend.pre_tokenizer, "pretokenizers")
    known = all(state["type"] in ("ByteLevel", "Digits", "Split") for state in splits)
    added = backend.get_added_tokens_decoder().values()
    return (
        known
        and not any(state.get("behavior") == "Removed" for state in splits)
        and not any(token.lstrip or token.rstrip for token in added if not token.special)
    )


def _spells_all_bytes(tokenizer: Tokenizer) -> bool:
    """Whether no character is unknown: unknown ones are left out, or fused into one id."""
    if tokenizer._byte_level is not None:
        return all(tokenizer.id(char) is not None for char in tokenizer._byte_level)
    # Gemma 1 has no piece for the byte 9: the tabulator is a piece itself.
    spellings = ((f"<0x{byte:02X}>", chr(byte) if byte < 128 else "") for byte in range(256))
    return all(any(piece and tokenizer.id(piece) is not None for piece in pieces) for pieces in spellings)
