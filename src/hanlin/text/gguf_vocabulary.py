"""Reads the vocabulary of a GGUF file and builds the same fast tokenizer that a tokenizer.json would give.

Surprises: `gguf.GGUFReader` needs eight seconds for Gemma's 262,144 pieces (one NumPy view per piece), so the few
lines that walk the metadata are here; only `tokenizer.*` fields are decoded. A SentencePiece vocabulary has scores
where a BPE has merges: every split of a piece into two pieces is a merge, best merged score first, which is what
SentencePiece itself does.
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from hanlin.errors import CheckpointError

Value = int | float | bool | str | list["Value"]

# GGUF specification, "Metadata value types": github.com/ggml-org/ggml/blob/master/docs/gguf.md
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# llama.cpp, include/llama.h, enum llama_token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufVocabulary:
    """What a GGUF file says of its tokenizer; ids are positions in `pieces`."""

    model: str
    pre: str
    pieces: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    unknown_id: int | None = None
    adds_bos: bool = False
    adds_space: bool = True
    chat_template: str | None = None


def read_metadata(path: Path, *, prefix: str = "") -> dict[str, Value]:
    """Metadata fields whose names begin with `prefix`; the others are walked over.

    Raises:
        CheckpointError: the file is missing, is no little-endian GGUF of version 2 or 3, or ends too early.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return dict(_fields(data, prefix))
    except (
        OSError,
        ValueError,
    ) as error:  # mmap of an empty file is a ValueError; so is wrong UTF-8 and an unknown type
        raise CheckpointError(f"{path}: cannot be read as GGUF ({error}); download the file again") from None
    except (struct.error, IndexError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: the GGUF header is damaged or cut off ({error}); download it again") from None


def _fields(data: mmap.mmap, prefix: str) -> Iterator[tuple[str, Value]]:
    magic, version, _, num_fields = struct.unpack_from("<4sIQQ", data, 0)
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"begins with {magic!r}, version {version}; expected b'GGUF', little-endian, version 2 or 3")
    at = 24
    for _ in range(num_fields):
        name, at = _string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        value, at = _value(data, at + 4, kind, wanted=name.startswith(prefix))
        if name.startswith(prefix):
            yield name, value


def _string(data: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    if end > len(data):
        raise IndexError(f"a string of {length} bytes at byte {at} goes past the file's end")
    return data[at + 8 : end].decode("utf-8"), end


def _value(data: mmap.mmap, at: int, kind: int, *, wanted: bool) -> tuple[Value, int]:
    if kind == STRING:
        return _string(data, at)
    if kind in SCALARS:
        code = "<" + SCALARS[kind]
        return struct.unpack_from(code, data, at)[0], at + struct.calcsize(code)
    if kind != ARRAY:
        raise ValueError(f"unknown value type {kind} at byte {at}")
    item_kind, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if item_kind in SCALARS:
        code = f"<{count}{SCALARS[item_kind]}"
        return list(struct.unpack_from(code, data, at)) if wanted else [], at + struct.calcsize(code)
    items: list[Value] = []
    for _ in range(count):
        item, at = _value(data, at, item_kind, wanted=wanted)
        items.append(item)
    return items, at


def read_vocabulary(path: Path) -> GgufVocabulary:
    """The tokenizer fields of a GGUF file.

    Raises:
        CheckpointError: unreadable file, or no vocabulary in it.
    """
    fields = read_metadata(path, prefix="tokenizer.")
    if "tokenizer.ggml.tokens" not in fields:
        raise CheckpointError(
            f"{path}: holds no vocabulary (tokenizer.ggml.tokens); use a GGUF that was converted whole"
        )

    def items(name: str) -> list:
        value = fields.get(f"tokenizer.ggml.{name}", [])
        return value if isinstance(value, list) else []

    pieces = [str(piece) for piece in items("tokens")]

    def number(name: str) -> int | None:
        value = fields.get(f"tokenizer.ggml.{name}")
        return value if isinstance(value, int) and 0 <= value < len(pieces) else None

    template = fields.get("tokenizer.chat_template")
    model = str(fields.get("tokenizer.ggml.model", ""))
    if (
        model == "llama"
    ):  # converters write user-defined runs of spaces as spaces, all other pieces with SentencePiece's mark
        pieces = [piece.replace(" ", "▁") for piece in pieces]
    return GgufVocabulary(
        model=model,
        pre=str(fields.get("tokenizer.ggml.pre", "default")),
        pieces=pieces,
        types=items("token_type") or [NORMAL] * len(pieces),
        scores=items("scores"),
        merges=items("merges"),
        bos_id=number("bos_token_id"),
        eos_id=number("eos_token_id"),
        pad_id=number("padding_token_id"),
        unknown_id=number("unknown_token_id"),
        adds_bos=bool(fields.get("tokenizer.ggml.add_bos_token", False)),
        adds_space=bool(fields.get("tokenizer.ggml.add_space_prefix", True)),
        chat_template=template if isinstance(template, str) else None,
    )


def build_tokenizer(vocabulary: GgufVocabulary, path: Path) -> Tokenizer:
    """The fast tokenizer of a GGUF vocabulary; CONTROL pieces become special added tokens, USER_DEFINED ones plain
    added tokens.

    Raises:
        CheckpointError: neither byte-level BPE nor Gemma's kind of SentencePiece, or a pre-tokenizer that is not known.
    """
    if not len(vocabulary.types) == len(vocabulary.pieces) == len(set(vocabulary.pieces)):
        raise CheckpointError(f"{path}: the vocabulary's pieces and types do not fit together; download the file again")
    if vocabulary.model == "gpt2" and vocabulary.merges:
        tokenizer = _byte_level(vocabulary, path)
    elif vocabulary.model == "llama" and len(vocabulary.scores) == len(vocabulary.pieces) and not vocabulary.adds_space:
        tokenizer = _sentencepiece(vocabulary)
    else:
        raise CheckpointError(
            f"{path}: tokenizer kind {vocabulary.model!r} (add_space_prefix {vocabulary.adds_space}) is not supported; "
            "expected 'gpt2' with merges (byte-level BPE) or 'llama' with scores and without space prefix (Gemma)"
        )
    _add(tokenizer, vocabulary, CONTROL, special=True)
    _add(tokenizer, vocabulary, USER_DEFINED, special=False)
    if vocabulary.adds_bos and vocabulary.bos_id is not None:
        bos = vocabulary.pieces[vocabulary.bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocabulary.bos_id)]
        )
    return tokenizer


def _add(tokenizer: Tokenizer, vocabulary: GgufVocabulary, kind: int, *, special: bool) -> None:
    pieces = [piece for piece, its in zip(vocabulary.pieces, vocabulary.types, strict=True) if its == kind and piece]
    added = [AddedToken(piece, normalized=False, special=special) for piece in pieces]
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)


def _byte_level(vocabulary: GgufVocabulary, path: Path) -> Tokenizer:
    """Byte-level BPE. The splits are those of the official tokenizer.json files (SmolLM2, Llama 3, Qwen2.5, GPT-2)."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splits = {
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), byte_level],
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), byte_level],
    }
    splits["default"] = splits["gpt-2"]
    if vocabulary.pre not in splits:
        raise CheckpointError(
            f"{path}: pre-tokenizer {vocabulary.pre!r} is not known; expected one of {', '.join(sorted(splits))}; "
            "use the model's Hugging Face directory instead"
        )
    merges = []
    for merge in vocabulary.merges:
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    vocab = {piece: id for id, piece in enumerate(vocabulary.pieces)}
    tokenizer = Tokenizer(_bpe(vocab, merges, path, ignore_merges=vocabulary.pre == "llama-bpe"))
    if vocabulary.pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits[vocabulary.pre])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], path: Path, *, ignore_merges: bool) -> models.BPE:
    for left, right in merges:
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise CheckpointError(f"{path}: the merge {left!r} + {right!r} has no piece; download the file again")
    return models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)


def _sentencepiece(vocabulary: GgufVocabulary) -> Tokenizer:
    """Gemma's SentencePiece BPE as merges: spaces are `▁`, no dummy prefix, unknown characters fall back to bytes."""
    vocab = {piece: id for id, piece in enumerate(vocabulary.pieces)}
    unknown = "<unk>" if vocabulary.unknown_id is None else vocabulary.pieces[vocabulary.unknown_id]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=score_merges(vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def score_merges(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """Every split of a piece into two pieces, best merged score first; equal scores: the longer left part first.

    Only pieces that text may become take part: a control piece can neither be merged nor be part of a merge, so that
    text spelled like one stays text. User-defined pieces count as the best, whatever score the converter gave them.
    Source of the order: huggingface/transformers `convert_slow_tokenizer.generate_merges`, which made the official
    tokenizer.json of every Gemma.
    """
    textual = {NORMAL, USER_DEFINED, UNUSED}
    ids = {piece: id for id, piece in enumerate(vocabulary.pieces) if vocabulary.types[id] in textual}
    found: list[tuple[float, int, int, str, str]] = []
    for piece, id in ids.items():
        score = 0.0 if vocabulary.types[id] == USER_DEFINED else vocabulary.scores[id]
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece)) if piece[:at] in ids and piece[at:] in ids]
        found.extend((score, len(left), len(right), left, right) for left, right in splits)
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for _, _, _, left, right in found]
