"""One tokenizer class over a model's own tokenizer.json or the vocabulary of its GGUF file.

Surprises: `encode` takes plain text only. A control piece that somebody typed stays text; control ids are asked for by
name with `id`. BOS and EOS are never added here, that is the chat format's business. Decoding goes through bytes, so a
character that is split over several tokens comes out whole or, at the end of the text, as U+FFFD.
"""

import codecs
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, Self

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from hanlin.errors import CheckpointError, DataError
from hanlin.text.gguf_vocabulary import build_tokenizer, read_vocabulary

# Pieces that are control pieces in every Gemma, although some tokenizer files forget to say so (the npm one of Gemma 1
# has none of them as added tokens, GGUF files type the image pieces USER_DEFINED).
GEMMA_CONTROL = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
CONFIG_FILE, TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"


class Part(Protocol):
    """A normalizer, pre-tokenizer or decoder of the backend."""

    def __getstate__(self) -> bytes: ...


class Tokenizer:
    """Text to ids and back.

    Attributes:
        size: the highest id + 1.
        bos_id, eos_id, pad_id: as the checkpoint names them, or None.
        chat_template: the checkpoint's own Jinja template, or None.
        generation_stops: ids that the checkpoint's generation_config.json says end an answer.
        control: control piece → id (`special: true` in tokenizer.json, type CONTROL in GGUF, and Gemma's turn pieces).
    """

    def __init__(
        self,
        backend: Backend,
        *,
        special: dict[str, str],
        chat_template: str | None = None,
        source: str | None = None,
        config: dict | None = None,
    ) -> None:
        """`special` maps "bos_token", "eos_token", "pad_token", "unk_token" to pieces. `source` is the
        tokenizer.json text to keep.
        """
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special = {name: piece for name, piece in special.items() if backend.token_to_id(piece) is not None}
        self._source = source
        self._config = config or {}
        self._added = {id: token.content for id, token in backend.get_added_tokens_decoder().items()}
        self._byte_level = _byte_of_char() if _is_byte_level(backend) else None
        self._bytes_of_id: dict[int, bytes] = {}
        self.control = {t.content: id for id, t in sorted(backend.get_added_tokens_decoder().items()) if t.special}
        self.size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id = self._special_id("bos_token")
        self.eos_id = self._special_id("eos_token")
        self.pad_id = self._special_id("pad_token")
        self.chat_template = chat_template
        self.generation_stops: tuple[int, ...] = ()
        self._control_ids = frozenset(self.control.values())

    def __setstate__(self, state: dict) -> None:
        """A pickled backend forgets that text may not say control ids; data loaders' workers get it back here."""
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True

    def _special_id(self, name: str) -> int | None:
        return self._backend.token_to_id(self._special[name]) if name in self._special else None

    @classmethod
    def open(cls, path: Path) -> Self:
        """The tokenizer of a model: a directory or a GGUF file."""
        return cls.from_gguf(path) if path.is_file() else cls.from_directory(path)

    @classmethod
    def from_directory(cls, path: Path) -> Self:
        """Opens `tokenizer.json` with `tokenizer_config.json` and the chat template beside it.

        Raises:
            CheckpointError: a file is missing or damaged, or the tokenizer is neither byte-level BPE nor Gemma's kind.
        """
        source = _read_source(path)
        try:
            backend = Backend.from_str(source)
        except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
            raise CheckpointError(
                f"{path / 'tokenizer.json'}: not a tokenizer ({error}); copy the file from the model again"
            ) from None
        _check_kind(backend, path / "tokenizer.json")
        config = _read_json(path / CONFIG_FILE)
        special = {name: _piece(value) for name, value in config.items() if name in SPECIAL_NAMES and value}
        if not special:
            listed = _read_json(path / "special_tokens_map.json")
            special = {name: _piece(value) for name, value in listed.items() if name in SPECIAL_NAMES and value}
        promoted = {entry.get("content", "") for entry in _entries(config) if entry.get("special")}
        changed = _promote(backend, promoted)
        backend, cut = _without_control_merges(backend)
        kept = None if changed or cut else source
        made = cls(backend, special=special, chat_template=_template(path, config), source=kept, config=config)
        stops = _read_json(path / "generation_config.json").get("eos_token_id")
        made.generation_stops = tuple(stops) if isinstance(stops, list) else () if stops is None else (stops,)
        return made

    @classmethod
    def from_gguf(cls, path: Path) -> Self:
        """Builds the tokenizer from the vocabulary in a GGUF file (two to three seconds for Gemma 3).

        Raises:
            CheckpointError: the file is damaged, or the vocabulary is neither byte-level BPE nor Gemma's kind.
        """
        vocabulary = read_vocabulary(path)
        backend = build_tokenizer(vocabulary, path)
        _promote(backend, set())
        backend, _ = _without_control_merges(backend)
        ids = {
            "bos_token": vocabulary.bos_id,
            "eos_token": vocabulary.eos_id,
            "pad_token": vocabulary.pad_id,
            "unk_token": vocabulary.unknown_id,
        }
        special = {name: vocabulary.pieces[id] for name, id in ids.items() if id is not None}
        return cls(backend, special=special, chat_template=vocabulary.chat_template)

    @property
    def special(self) -> dict[str, str]:
        """The pieces that the checkpoint calls "bos_token", "eos_token", "pad_token" and "unk_token", where it names
        them.
        """
        return dict(self._special)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Control spellings stay text, other added tokens (`<tool_call>`, runs of newlines) stay
        whole.

        Raises:
            DataError: the text holds half of a surrogate pair, which no UTF-8 can say.
        """
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except TypeError:  # what the library says of a lone surrogate
            at = next((i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff"), None)
            if at is None:
                raise
            raise DataError(
                f"character {at} is {text[at]!r}, half of a surrogate pair; remove it or write the whole character"
            ) from None

    def id(self, piece: str) -> int | None:
        """The id of a piece, control or not; None where the vocabulary lacks it."""
        return self._backend.token_to_id(piece)

    def piece(self, id: int) -> str:
        """The piece of an id, as the vocabulary spells it.

        Raises:
            CheckpointError: no piece has this id.
        """
        piece = self._backend.id_to_token(id) if id >= 0 else None
        if piece is None:
            raise CheckpointError(f"token id {id} has no piece; the tokenizer has ids 0 to {self.size - 1}")
        return piece

    def decode(self, ids: Iterable[int], *, keep_control: bool = False) -> str:
        """Text of ids; control pieces are left out unless kept. Ids without a piece (a model's spare rows) say
        nothing.
        """
        return b"".join(self.token_bytes(id, keep_control=keep_control) for id in ids).decode("utf-8", errors="replace")

    def stream(self, *, keep_control: bool = False) -> "StreamDecoder":
        """A decoder that takes one id at a time and never gives half a character."""
        return StreamDecoder(self, keep_control=keep_control)

    def token_bytes(self, id: int, *, keep_control: bool = False) -> bytes:
        """The UTF-8 bytes that one id adds to the text: possibly only a part of a character."""
        if id in self._control_ids and not keep_control:
            return b""
        found = self._bytes_of_id.get(id)
        if found is None:
            found = self._bytes_of_id[id] = self._spell(id)
        return found

    def _spell(self, id: int) -> bytes:
        piece = self._backend.id_to_token(id) if 0 <= id < self.size else None
        if piece is None:
            return b""
        if self._byte_level is not None:
            if id in self._added or not all(char in self._byte_level for char in piece):
                return piece.encode()
            return bytes(self._byte_level[char] for char in piece)
        byte = BYTE_PIECE.fullmatch(piece)
        return bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()

    def save(self, directory: Path, *, chat_template: str | None, eos: str | None = None) -> None:
        """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja, which transformers and we open with
        equal ids.

        tokenizer.json keeps its original text where it came from one. `eos` is the piece to name as EOS (what ends an
        answer); None keeps the checkpoint's own. Each file is written under a temporary name and renamed.

        Raises:
            CheckpointError: the directory cannot be written, or `eos` is no piece of this vocabulary.
        """
        special = dict(self._special)
        if eos is not None:
            if self.id(eos) is None:
                raise CheckpointError(
                    f"EOS piece {eos!r} is not in the vocabulary; choose one of {', '.join(self.control)}"
                )
            special["eos_token"] = eos
        stale = {"chat_template"} if self._source else {"chat_template", "added_tokens_decoder"}
        config = {name: value for name, value in self._config.items() if name not in stale}
        config = (
            {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | config | special
        )
        files = {
            "tokenizer.json": self._source or self._backend.to_str(),
            CONFIG_FILE: json.dumps(config, ensure_ascii=False, indent=2) + "\n",
        }
        if chat_template is not None:
            files[TEMPLATE_FILE] = chat_template
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                temporary = directory / f".{name}.partial"
                temporary.write_text(text, encoding="utf-8", newline="")
                os.replace(temporary, directory / name)
            if chat_template is None:
                (directory / TEMPLATE_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{directory}: cannot write the tokenizer ({error}); free space or choose another place"
            ) from None


class StreamDecoder:
    """Turns ids into text one by one; what it gives, joined, is `Tokenizer.decode` of all of them."""

    def __init__(self, tokenizer: Tokenizer, *, keep_control: bool = False) -> None:
        self._tokenizer = tokenizer
        self._keep_control = keep_control
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The characters that this id completes: "" while a character is still open."""
        return self._utf8.decode(self._tokenizer.token_bytes(id, keep_control=self._keep_control))

    def finish(self) -> str:
        """What is left: "" or U+FFFD for a character that never got complete."""
        return self._utf8.decode(b"", final=True)


def _read_source(path: Path) -> str:
    file = path / "tokenizer.json"
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        slow = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (path / name).is_file()]
        hint = (
            f"only {slow[0]} is there: convert it with transformers' AutoTokenizer and save_pretrained" if slow else ""
        )
        raise CheckpointError(
            f"{file} is missing; {hint or 'give a Hugging Face model directory or a .gguf file'}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); copy the file from the model again") from None


def _read_json(file: Path) -> dict:
    """The object in a JSON file; {} where there is no such file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error}); copy the file from the model again") from None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{file}: holds {type(found).__name__}, expected an object; copy the file from the model again"
        )
    return found


def _template(path: Path, config: dict) -> str | None:
    """The chat template where transformers looks for it: its own file first, then the configuration, then a
    processor's file.
    """
    file = path / TEMPLATE_FILE
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); copy the file from the model again") from None
    found = config.get("chat_template") or _read_json(path / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _piece(value: str | dict) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)


def _entries(config: dict) -> list[dict]:
    decoder = config.get("added_tokens_decoder")
    return [entry for entry in decoder.values() if isinstance(entry, dict)] if isinstance(decoder, dict) else []


def _state(part: Part | None) -> dict:
    """The JSON of a backend's part: its attributes say less than its pickled state."""
    return {} if part is None else json.loads(part.__getstate__())


def _kinds(state: dict) -> set[str]:
    """Type names in a part's state, inside sequences too."""
    inner = state.get("decoders") or state.get("normalizers") or state.get("pretokenizers") or []
    return {str(state.get("type"))}.union(*(_kinds(one) for one in inner))


def _is_byte_level(backend: Backend) -> bool:
    return "ByteLevel" in _kinds(_state(backend.decoder))


def _check_kind(backend: Backend, file: Path) -> None:
    """Refuses what encode and decode here would get wrong: other models, and tokenizers that put a space before
    every text.
    """
    model = backend.model
    normalizers, splits = _kinds(_state(backend.normalizer)), _state(backend.pre_tokenizer)
    parts = splits.get("pretokenizers", [splits])
    spaced = any(part.get("type") == "ByteLevel" and part.get("add_prefix_space") for part in parts)
    if isinstance(model, models.BPE) and not spaced:
        if _is_byte_level(backend):
            return
        if model.byte_fallback and "Replace" in normalizers and not {"Prepend", "Precompiled"} & normalizers:
            return
    raise CheckpointError(
        f"{file}: tokenizer kind {type(model).__name__} is not supported; expected byte-level BPE (Llama 3, Qwen2, "
        "SmolLM2) or Gemma's SentencePiece BPE, both without a space before the text"
    )


def _promote(backend: Backend, pieces: set[str]) -> bool:
    """Makes Gemma's control pieces and `pieces` special where the vocabulary has them; says whether that changed
    anything.
    """
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    gemma = GEMMA_CONTROL if all(backend.token_to_id(piece) is not None for piece in GEMMA_CONTROL[:2]) else ()
    wanted = sorted(
        {piece for piece in pieces.union(gemma) if piece and backend.token_to_id(piece) is not None} - special
    )
    backend.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in wanted])
    return bool(wanted)


def _without_control_merges(backend: Backend) -> tuple[Backend, bool]:
    """Drops merges that would turn text spelled like a control piece into its id; most vocabularies have none."""
    backend.encode_special_tokens = True
    control = {token.content: id for id, token in backend.get_added_tokens_decoder().items() if token.special}
    reached = {piece for piece, id in control.items() if id in backend.encode(piece, add_special_tokens=False).ids}
    if not reached:
        return backend, False
    state = json.loads(backend.to_str())
    merges = state["model"]["merges"]
    state["model"]["merges"] = [merge for merge in merges if _joined(merge) not in reached]
    return Backend.from_str(json.dumps(state, ensure_ascii=False)), True


def _joined(merge: str | list[str]) -> str:
    return merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)


def _byte_of_char() -> dict[str, int]:
    """GPT-2's map of printable characters to bytes (openai/gpt-2 `src/encoder.py`, bytes_to_unicode), turned round."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(shifted)}
