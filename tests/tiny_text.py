"""Tiny real tokenizers, built in a blink, and random bilingual conversations: what the text tests have in common."""

import json
import random
from pathlib import Path

from gguf import GGUFWriter
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from hanlin.types import Message

CORPUS = [
    "你好，世界！写一首关于春天的诗。",
    "the quick brown fox jumped over the lazy dog",
    "user assistant system model\n\n",
] * 8
FRAGMENTS = (
    "你好", "，世界", "！", "中国的首都是北京。", "龘",
    "🙂", "👨‍👩‍👧", "🇨🇳", "\u3000", " ", "  ", "\n", "\n\n\n", "\t",
    "hello", " the", "don't",
    " 1234567", "def f(x):\n    return {x}", "{{ x }}", "{% if %}",
    "```py\n", "```", "é", "한국", "<b>", "</table>", "<tool_call>",
    "http://a.b/c?d=e", "$x^2$", "\r\n", "…", "\u200b", "�",
)  # fmt: skip
CONTROL = {
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}
CONTROL["gemma3"] = CONTROL["gemma"]
CONTROL["llama3.1"] = [*CONTROL["llama3"], "<|eom_id|>"]
CONTROL["smollm2"] = [*CONTROL["chatml"], "<jupyter_start>"]
CONTROL["qwen2.5"] = [*CONTROL["chatml"], "<|object_ref_start|>"]


def random_text(rng: random.Random, longest: int = 12) -> str:
    """Text with something in it besides white space."""
    text = "".join(rng.choice(FRAGMENTS) for _ in range(rng.randint(1, longest)))
    return text if text.strip() else text + "好"


def random_messages(rng: random.Random, *, system: bool | None = None, answered: bool = True) -> list[Message]:
    """One to four rounds, with or without system text, ending with an answer or with a question."""
    turns = 2 * rng.randint(1, 4) - (0 if answered else 1)
    messages = [Message(("user", "assistant")[i % 2], random_text(rng)) for i in range(turns)]
    if rng.random() < 0.5 if system is None else system:
        messages.insert(0, Message("system", random_text(rng)))
    return messages


def as_dicts(messages: list[Message]) -> list[dict[str, str]]:
    """Messages as transformers wants them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def write_directory(path: Path, name: str, *, template: str | None = None, **config: object) -> Path:
    """A directory with a tiny byte-level tokenizer that has the control pieces of the format `name`."""
    control = CONTROL[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=340, special_tokens=control, initial_alphabet=alphabet, show_progress=False),
    )
    plain = ["<tool_call>", "[multimodal]"] if name == "gemma3" else ["<tool_call>"]
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in plain])
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    bos = next((piece for piece in control if piece in ("<bos>", "<|begin_of_text|>")), None)
    eos = "<eos>" if "<eos>" in control else control[1] if bos else "<|im_end|>"
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "chat_template": template,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(fields | config), encoding="utf-8")
    return path


def write_gemma_gguf(path: Path, **fields: object) -> Path:
    """A GGUF file with nothing but a small SentencePiece vocabulary of Gemma's kind (no template, as the real one)."""
    rng = random.Random(0)
    controls = [*CONTROL["gemma3"], "<mask>"]
    user_defined = ["[multimodal]", "\n", "\n\n", "\n\n\n", "  ", "   ", "<table>", "<start_of_image>"]
    alphabet = sorted(set("".join(CORPUS + list("abcdefgh_<>")).replace(" ", "▁").replace("\n", "")))
    words = {"".join(rng.choices(alphabet, k=rng.randint(2, 3))) for _ in range(300)}
    words |= {
        word[:end] for line in CORPUS for word in line.replace(" ", " ▁").split() for end in range(2, len(word) + 1)
    }
    words |= {"<end", "_of", "_of_turn", "aa", "aaa", "ab", "ba"}
    ordered = sorted(words | set(alphabet), key=lambda word: (rng.random(), word))
    pieces = [*controls, *user_defined, *(f"<0x{byte:02X}>" for byte in range(256)), *ordered]
    types = [3] * len(controls) + [4] * len(user_defined) + [6] * 256 + [1] * len(ordered)
    scores = (
        [-1000.0] * (len(controls) + len(user_defined)) + [0.0] * 256 + [-float(i // 2) for i in range(len(ordered))]
    )
    writer = GGUFWriter(path, "gemma3")
    writer.add_tokenizer_model(str(fields.get("model", "llama")))
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_token_scores(scores)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_bool("tokenizer.ggml.add_space_prefix", bool(fields.get("space", False)))
    _close(writer)
    return path


def write_byte_level_gguf(path: Path, directory: Path, *, pre: str = "gpt-2") -> Path:
    """The tokenizer.json of `directory` as a GGUF file."""
    state = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = state["model"]["vocab"] | {token["content"]: token["id"] for token in state["added_tokens"]}
    kinds = {token["id"]: 3 if token["special"] else 4 for token in state["added_tokens"]}
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(vocab, key=lambda piece: vocab[piece]))
    writer.add_token_types([kinds.get(id, 1) for id in sorted(vocab.values())])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    )
    writer.add_eos_token_id(2)
    _close(writer)
    return path


def _close(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
