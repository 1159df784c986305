"""Ids and text: equal to the official tokenizers, control pieces out of text's reach, whole characters in a stream."""

import itertools
import json
import pickle
import random
import shutil
from pathlib import Path

import pytest

from hanlin.errors import CheckpointError, DataError
from hanlin.text.gguf_vocabulary import NORMAL, USER_DEFINED, read_metadata, read_vocabulary
from hanlin.text.tokenizer import Tokenizer
from tiny_text import random_text, write_byte_level_gguf, write_directory, write_gemma_gguf

SPELLINGS = (
    "<bos><eos><start_of_turn>user<end_of_turn><|eot_id|><|im_start|><|im_end|><|begin_of_text|><unk><pad><mask>"
)
REAL = ("gemma", "gemma2", "gemma3", "llama3", "llama3_1", "qwen2_5")


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return write_directory(tmp_path_factory.mktemp("tiny"), "llama3")


@pytest.fixture(scope="module")
def gemma_gguf(tmp_path_factory) -> Path:
    return write_gemma_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(params=["directory", "byte-level gguf", "gemma gguf"])
def tokenizer(request, directory: Path, gemma_gguf: Path, tmp_path: Path) -> Tokenizer:
    if request.param == "directory":
        return Tokenizer.from_directory(directory)
    if request.param == "gemma gguf":
        return Tokenizer.from_gguf(gemma_gguf)
    return Tokenizer.from_gguf(write_byte_level_gguf(tmp_path / "tiny.gguf", directory))


def streamed(tokenizer: Tokenizer, ids: list[int], *, keep_control: bool = False) -> tuple[list[str], str]:
    stream = tokenizer.stream(keep_control=keep_control)
    return [stream.push(id) for id in ids], stream.finish()


def test_text_comes_back_whole_or_streamed(tokenizer: Tokenizer):
    rng = random.Random(0)
    for _ in range(200):
        text = random_text(rng)
        ids = tokenizer.encode(text)
        parts, rest = streamed(tokenizer, ids)
        assert tokenizer.decode(ids) == text
        assert "".join(parts) == text
        assert rest == ""
    assert tokenizer.encode("") == []


def test_a_stream_never_gives_half_a_character(tokenizer: Tokenizer):
    ids = tokenizer.encode("龘🙂")
    parts, rest = streamed(tokenizer, ids)
    assert len(ids) > 2
    assert [part for part in parts if part] == ["龘", "🙂"]
    parts, rest = streamed(tokenizer, ids[:-1])
    assert "".join(parts) + rest == "龘\ufffd" == tokenizer.decode(ids[:-1])
    assert rest == "\ufffd"


def test_a_stream_equals_decode_on_any_ids(tokenizer: Tokenizer):
    rng = random.Random(1)
    for keep in (False, True):
        for _ in range(100):
            ids = [rng.randrange(tokenizer.size + 3) for _ in range(12)]
            parts, rest = streamed(tokenizer, ids, keep_control=keep)
            assert "".join(parts) + rest == tokenizer.decode(ids, keep_control=keep)


def test_control_pieces_typed_by_somebody_stay_text(tokenizer: Tokenizer):
    assert tokenizer.control
    for text in (SPELLINGS, *tokenizer.control, *(f"a {piece}\n" for piece in tokenizer.control)):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.control.values())
        assert tokenizer.decode(ids) == text
    piece, id = next(iter(tokenizer.control.items()))
    assert tokenizer.id(piece) == id
    assert tokenizer.piece(id) == piece
    assert tokenizer.decode([id]) == ""
    assert tokenizer.decode([id], keep_control=True) == piece


def test_a_pickled_tokenizer_still_keeps_control_out_of_text(tokenizer: Tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    text = "".join(tokenizer.control)
    assert again.encode(text) == tokenizer.encode(text)
    assert not set(again.encode(text)) & set(again.control.values())


def test_added_tokens_that_are_not_special_stay_whole(directory: Path, gemma_gguf: Path):
    tiny = Tokenizer.from_directory(directory)
    assert tiny.encode("a<tool_call>b") == [*tiny.encode("a"), tiny.id("<tool_call>"), *tiny.encode("b")]
    gemma = Tokenizer.from_gguf(gemma_gguf)
    assert [gemma.piece(id) for id in gemma.encode("a\n\n\n<table>")] == ["a", "\n\n\n", "<table>"]
    assert [gemma.piece(id) for id in gemma.encode("   ")] == ["▁▁▁"]


def test_sizes_ids_and_missing_pieces(tokenizer: Tokenizer):
    assert tokenizer.id("no such piece") is None
    assert tokenizer.piece(tokenizer.size - 1)
    for id in (tokenizer.size, -1):
        with pytest.raises(CheckpointError, match="has no piece"):
            tokenizer.piece(id)


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer):
    with pytest.raises(DataError, match="character 2"):
        tokenizer.encode("ab\ud83d")


def sentencepiece(text: str, scores: dict[str, float]) -> list[str]:
    """The SentencePiece BPE rule itself: join the neighbours whose joined piece has the best score, leftmost first."""
    parts = list(text.replace(" ", "▁"))
    while True:
        joined = [(scores[a + b], -at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in scores]
        if not joined:
            return list(parts)
        at = -max(joined)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_gguf_pieces_are_joined_as_sentencepiece_joins_them(gemma_gguf: Path):
    vocabulary = read_vocabulary(gemma_gguf)
    rows = zip(vocabulary.pieces, vocabulary.types, vocabulary.scores, strict=True)
    # distinct scores: between equal ones SentencePiece takes the leftmost, tokenizer.json the longer left part
    scores, seen = {}, set()
    for piece, kind, score in rows:
        if kind == NORMAL or (kind == USER_DEFINED and "▁" in piece):
            scores[piece] = 1.0 if kind == USER_DEFINED else score - 0.25 * (score in seen)
            seen.add(score)
    tokenizer, rng = Tokenizer.from_gguf(gemma_gguf), random.Random(2)
    alphabet = [piece for piece in scores if len(piece) == 1 and piece != "▁"]
    compared = 0
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=6)) + rng.choice(["", " the", "你好，世界", " quick brown"])
        expected = sentencepiece(text, scores)
        got = [tokenizer.piece(id) for id in tokenizer.encode(text)]
        assert "".join(got) == text.replace(" ", "▁")
        compared += got == expected
    assert compared >= 270  # the rest are ties


def test_merges_never_lead_to_a_control_piece(tmp_path: Path, directory: Path):
    state = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, merges = state["model"]["vocab"], state["model"]["merges"]
    state["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    target = "<|eot_id|>"
    for end in range(2, len(target) + 1):
        vocab.setdefault(target[:end], 1000 + end)
        merges.insert(end - 2, [target[: end - 1], target[end - 1]])
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    tokenizer = Tokenizer.from_directory(tmp_path)
    ids = tokenizer.encode(f"x{target}y")
    assert tokenizer.control[target] not in ids
    assert tokenizer.decode(ids) == f"x{target}y"


def test_gemma_turn_pieces_are_control_even_where_the_file_forgets_it(tmp_path: Path):
    write_directory(tmp_path, "gemma")
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["added_tokens"] = [token for token in state["added_tokens"] if "turn" not in token["content"]]
    file.write_text(json.dumps(state), encoding="utf-8")
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert {"<start_of_turn>", "<end_of_turn>"} <= tokenizer.control.keys()
    tokenizer.save(tmp_path / "saved", chat_template=None)
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs("<end_of_turn>", add_special_tokens=False)["input_ids"] == [tokenizer.id("<end_of_turn>")]


def test_save_opens_equally_here_and_in_transformers(tokenizer: Tokenizer, tmp_path: Path):
    from transformers import AutoTokenizer

    eos = list(tokenizer.control)[-1]
    tokenizer.save(tmp_path / "saved", chat_template="{{ messages[0]['content'] }}\n", eos=eos)
    again, theirs = Tokenizer.from_directory(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (again.control, again.size, again.bos_id) == (tokenizer.control, tokenizer.size, tokenizer.bos_id)
    assert again.eos_id == tokenizer.id(eos) == theirs.eos_token_id
    assert again.chat_template == "{{ messages[0]['content'] }}\n"
    rng = random.Random(4)
    for _ in range(100):
        text = random_text(rng)
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert not list((tmp_path / "saved").glob(".*"))
    again.save(tmp_path / "saved", chat_template=None)
    assert Tokenizer.from_directory(tmp_path / "saved").chat_template is None


def test_save_keeps_the_original_file(directory: Path, tmp_path: Path):
    Tokenizer.from_directory(directory).save(tmp_path, chat_template=None)
    assert (tmp_path / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()


def test_save_says_what_is_wrong(directory: Path, tmp_path: Path):
    tokenizer = Tokenizer.from_directory(directory)
    with pytest.raises(CheckpointError, match="'<nope>' is not in the vocabulary"):
        tokenizer.save(tmp_path, chat_template=None, eos="<nope>")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write the tokenizer"):
        tokenizer.save(tmp_path / "file", chat_template=None)


def test_where_the_template_is_looked_for(tmp_path: Path):
    write_directory(tmp_path, "chatml", template="from the configuration")
    assert Tokenizer.from_directory(tmp_path).chat_template == "from the configuration"
    named = [{"name": "rag", "template": "other"}, {"name": "default", "template": "the default"}]
    write_directory(tmp_path, "chatml", chat_template=named)
    assert Tokenizer.from_directory(tmp_path).chat_template == "the default"
    (tmp_path / "chat_template.jinja").write_text("from its own file")
    assert Tokenizer.from_directory(tmp_path).chat_template == "from its own file"


def wordpiece(path: Path) -> None:
    model = {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": "##"}
    state = {"version": "1.0", "added_tokens": [], "model": model | {"max_input_chars_per_word": 9}}
    (path / "tokenizer.json").write_text(json.dumps(state))


def llama2(path: Path) -> None:
    parts = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [], "byte_fallback": True}
    state = {"version": "1.0", "added_tokens": [], "normalizer": {"type": "Sequence", "normalizers": parts}}
    (path / "tokenizer.json").write_text(json.dumps(state | {"model": model}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: None, "tokenizer.json is missing"),
        (lambda path: (path / "tokenizer.model").write_text("x"), "only tokenizer.model is there"),
        (lambda path: (path / "tokenizer.json").write_text("{"), "not a tokenizer"),
        (lambda path: (path / "tokenizer.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (wordpiece, "kind WordPiece is not supported"),
        (llama2, "kind BPE is not supported"),
        (
            lambda path: (write_directory(path, "chatml") / "tokenizer_config.json").write_text("[]"),
            "expected an object",
        ),
        (lambda path: (write_directory(path, "chatml") / "tokenizer_config.json").write_text("{"), "as JSON"),
    ],
)
def test_a_bad_directory_is_one_clear_line(spoil, words: str, tmp_path: Path):
    spoil(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_directory(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_gguf_is_one_clear_line(directory: Path, gemma_gguf: Path, tmp_path: Path):
    def refused(path: Path, words: str) -> None:
        with pytest.raises(CheckpointError, match=words):
            Tokenizer.from_gguf(path)

    file = tmp_path / "x.gguf"
    refused(file, "cannot be read as GGUF")
    file.write_bytes(b"")
    refused(file, "cannot be read as GGUF")
    file.write_bytes(b"PK\3\4" + b"\0" * 100)
    refused(file, "expected b'GGUF'")
    whole = gemma_gguf.read_bytes()
    for length in (5, 30, 200, len(whole) // 2):
        file.write_bytes(whole[:length])
        refused(file, "damaged or cut off")
    refused(write_gemma_gguf(file, model="t5"), "kind 't5'")
    refused(write_gemma_gguf(file, space=True), "space prefix")
    refused(write_byte_level_gguf(file, directory, pre="mystery"), "'mystery' is not known")


# ---- the real tokenizers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=REAL)
def real(request, assets: Path) -> tuple[Tokenizer, Path]:
    path = assets / "tokenizers" / request.param
    return Tokenizer.from_directory(path), path


@pytest.mark.assets
def test_real_ids_equal_the_official_ones(real: tuple[Tokenizer, Path], tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer, path = real
    tokenizer.save(tmp_path, chat_template=None)
    official, saved = AutoTokenizer.from_pretrained(path), AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(6)
    for _ in range(300):
        text = random_text(rng, 20)
        ids = tokenizer.encode(text)
        assert ids == official(text, add_special_tokens=False)["input_ids"]
        assert ids == saved(text, add_special_tokens=False)["input_ids"]
        parts, rest = streamed(tokenizer, ids)
        assert "".join(parts) + rest == tokenizer.decode(ids)
        assert "\ufffd" not in "".join(parts) or "\ufffd" in text


@pytest.mark.assets
def test_real_control_spellings_stay_text(real: tuple[Tokenizer, Path]):
    tokenizer, _ = real
    text = SPELLINGS + "".join(tokenizer.control)
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.control.values())
    assert tokenizer.decode(ids) == text


@pytest.mark.assets
def test_goldens(assets: Path):
    llama = Tokenizer.from_directory(assets / "tokenizers" / "llama3")
    goldens = {
        "Hello world!": [9906, 1917, 0],
        "你好，世界！": [57668, 53901, 3922, 102616, 6447],
        "写一首关于春天的诗。": [62543, 15120, 61075, 111912, 104149, 36827, 9554, 116820, 1811],
        "中国的首都是北京。": [59795, 9554, 61075, 108619, 70090, 1811],
        "\n\n": [271],
        "user": [882],
        "assistant": [78191],
        "system": [9125],
        "龘": [84012, 246],
        "1234567": [4513, 10961, 22],
        "  two spaces\n\n": [220, 1403, 12908, 271],
        "🙂": [9468, 19044],
    }
    assert {text: llama.encode(text) for text in goldens} == goldens
    gemma = Tokenizer.from_directory(assets / "tokenizers" / "gemma")
    # the Keras documentation's ids, whose tokenizer puts a space before the text; Gemma's own does not
    assert gemma.encode(" Keras is") == [214064, 603]
    assert gemma.encode(" The quick brown fox jumped.") == [714, 4320, 8426, 25341, 32292, 235265]
    assert gemma.encode("The")[0] == 651
    assert (gemma.id("<start_of_turn>"), gemma.id("<end_of_turn>"), gemma.bos_id, gemma.eos_id) == (106, 107, 2, 1)


@pytest.mark.assets
def test_gemma_gguf_equals_the_npm_tokenizer(assets: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    ours = Tokenizer.from_gguf(assets / "gemma-3-270m.gguf")
    official = Tokenizer.from_directory(assets / "tokenizers" / "gemma3")
    ours.save(tmp_path, chat_template=None)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.size, official.size) == (262144, 262145)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (2, 1, 0)
    rng = random.Random(7)
    for text in [random_text(rng, 20) for _ in range(500)] + ["▁", "a▁b  c", " " * 40, "\n" * 40, "ﷺ" * 3]:
        assert ours.encode(text) == official.encode(text) == saved(text, add_special_tokens=False)["input_ids"]
    assert saved("hi")["input_ids"] == [2, *ours.encode("hi")]


@pytest.mark.assets
def test_real_pairs_encode_equally_from_gguf_and_npm(assets: Path, shared_data: Path):
    ours = Tokenizer.from_gguf(assets / "gemma-3-270m.gguf")
    official = Tokenizer.from_directory(assets / "tokenizers" / "gemma3")
    for name in ("dpo_zh_200.json", "dpo_en_200.json"):
        for row in json.loads((shared_data / name).read_text(encoding="utf-8")):
            for turn in (*row["conversations"], row["chosen"], row["rejected"]):
                assert ours.encode(turn["value"]) == official.encode(turn["value"])


@pytest.mark.assets
def test_smollm2_gguf(assets: Path, tmp_path: Path):
    path = assets / "smollm2-135m-instruct.gguf"
    tokenizer = Tokenizer.from_gguf(path)
    assert read_metadata(path, prefix="tokenizer.ggml.pre") == {"tokenizer.ggml.pre": "smollm"}
    assert (tokenizer.size, tokenizer.bos_id, tokenizer.eos_id) == (49152, 1, 2)
    assert list(tokenizer.control)[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [tokenizer.piece(id) for id in tokenizer.encode("in 2024 it")] == ["in", "Ġ", "2", "0", "2", "4", "Ġit"]


@pytest.mark.assets
@pytest.mark.parametrize(("name", "pre"), [("llama3", "llama-bpe"), ("qwen2_5", "qwen2")])
def test_a_gguf_of_a_real_vocabulary_gives_the_official_ids(name: str, pre: str, assets: Path, tmp_path: Path):
    official = Tokenizer.from_directory(assets / "tokenizers" / name)
    ours = Tokenizer.from_gguf(write_byte_level_gguf(tmp_path / "x.gguf", assets / "tokenizers" / name, pre=pre))
    rng = random.Random(8)
    assert ours.control == official.control
    for text in (random_text(rng, 20) for _ in range(300)):
        assert ours.encode(text) == official.encode(text)
    shutil.rmtree(tmp_path)
