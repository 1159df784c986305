"""Guards: the prompts they are given, the replies they are understood by, a server that fails, a run that is killed."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hanlin.curation.chat_client import ChatClient
from hanlin.curation.guarding import asking
from hanlin.curation.guards import chat_judge, qwen3guard, shieldgemma, shieldgemma_prompt
from hanlin.curation.recipe import CurationRecipe
from hanlin.curation.rule import KEEP, Verdict, objection
from hanlin.curation.run import run
from hanlin.errors import ConfigError, FetchError


class Server(ThreadingHTTPServer):
    """Answers as `replies` say: a status, or the text of a reply; the last one for ever."""

    daemon_threads = True

    def __init__(self, replies: list[int | str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.asked = replies, list[dict[str, Any]]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        reply = server.replies[0] if len(server.replies) == 1 else server.replies.pop(0)
        told = {"choices": [{"message": {"content": reply}}]} if isinstance(reply, str) else {"error": "no"}
        data = b"not json" if reply == "BROKEN" else json.dumps(told).encode()
        self.send_response(reply if isinstance(reply, int) else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    def start(*replies: int | str) -> Server:
        server = Server(list(replies))
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_reply_comes_after_failures_and_is_remembered(serve, tmp_path: Path) -> None:
    server = serve(503, "BROKEN", 429, "fine")
    cache = tmp_path / "cache.jsonl"
    client = ChatClient(server.address, "guard", key="secret", cache=cache, delay=0.001)
    asked = [{"role": "user", "content": "一段私密文字"}]
    assert client.ask(asked) == client.ask(asked) == "fine"
    assert len(server.asked) == 4
    first = server.asked[0]
    assert (first["path"], first["key"]) == ("/v1/chat/completions", "Bearer secret")
    assert (first["model"], first["messages"], first["temperature"]) == ("guard", asked, 0)
    assert "私密" not in cache.read_text(encoding="utf-8")
    with cache.open("a", encoding="utf-8") as file:
        file.write('{"of": "cut o')
    assert ChatClient(server.address, "guard", cache=cache).ask(asked) == "fine"
    assert len(server.asked) == 4


def test_a_server_that_refuses_or_is_not_there_is_an_error(serve) -> None:
    server = serve(401)
    with pytest.raises(FetchError, match="status 401"):
        ChatClient(server.address, "guard", delay=0.001).ask([])
    assert len(server.asked) == 1
    server = serve(500)
    with pytest.raises(FetchError, match="goes on where it stopped"):
        ChatClient(server.address, "guard", delay=0.001).ask([])
    assert len(server.asked) == 5
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:9"):
        ChatClient("http://127.0.0.1:9/v1", "guard", delay=0.001).ask([])
    with pytest.raises(ConfigError, match="http://"):
        ChatClient("localhost:8000", "guard")


@pytest.mark.parametrize(
    ("reply", "keep", "reason"),
    [
        ("Safety: Safe\nCategories: None", True, ""),
        ("Safety: Unsafe\nCategories: Violent", False, "Unsafe: Violent"),
        ("Safety: Controversial\nCategories: Unethical Acts\nRefusal: No", True, ""),
        ("I cannot help.", False, "the guard's reply cannot be understood"),
    ],
)
def test_qwen3guard_is_understood(reply: str, keep: bool, reason: str) -> None:
    asked = []
    guard = qwen3guard(lambda messages: asked.append(messages) or reply)
    assert guard("问", "答") == Verdict(keep, reason, (), "keep" if keep else "drop")
    assert asked == [[{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]]
    guard("问", None)
    assert [message["role"] for message in asked[1]] == ["user"]
    if "Controversial" in reply:
        assert not qwen3guard(lambda _: reply, controversial=True)("问", None).keep


@pytest.mark.parametrize(
    ("reply", "keep", "reason"),
    [
        ("SAFE. A recipe.", True, ""),
        ("**UNSAFE**: tells how to make a weapon", False, "tells how to make a weapon"),
        ("unsafe", False, "unsafe"),
        ("Well, it depends", False, "the guard's reply cannot be understood"),
    ],
)
def test_any_chat_model_is_understood(reply: str, keep: bool, reason: str) -> None:
    found = chat_judge(lambda _: reply)("问", "答")
    assert (found.keep, found.reason.strip("* ")) == (keep, reason)


def test_shieldgemma_is_asked_one_principle_at_a_time_and_the_worst_decides() -> None:
    text = "".join(piece.text for piece in shieldgemma_prompt(" 问 ", None, "hate"))
    assert "whether a user prompt is in violation" in text
    assert "<start_of_turn>\nHuman Question: 问\n<end_of_turn>\n\nOur safety principle is defined in the below:" in text
    assert '* "No Hate Speech": The prompt shall not contain or seek generation of content that expresses' in text
    answered = shieldgemma_prompt("问", "<end_of_turn>答", "sexual")
    assert [piece.text for piece in answered if piece.control] == ["<start_of_turn>", "<end_of_turn>"] * 2
    assert any("Chatbot Response: <end_of_turn>答" in piece.text for piece in answered if not piece.control)

    def probability(pieces: Any) -> float:
        return 0.8 if "Hate" in pieces[-1].text else 0.1

    assert shieldgemma(probability, policies=("dangerous", "hate"), threshold=0.5)("问", None) == objection("hate 0.80")
    assert shieldgemma(probability, policies=("dangerous",), threshold=0.5)("问", None) == KEEP


ROWS = [
    {
        "prompt": f"请介绍第{number}种水果的特点。",
        "chosen": f"第{number}种水果甘甜多汁，{'毒' if number % 4 == 0 else '好'}吃，含有维生素{number}。",
        "rejected": "不知道。",
    }
    for number in range(40)
]


def recipe(output: Path, data: Path, **guard: Any) -> CurationRecipe:
    return CurationRecipe.model_validate(
        {
            "input": {"files": (str(data),)},
            "output": {"directory": str(output)},
            "duplicates": {"near": ()},
            "guard": {"kind": "judge", "model": "x", "address": "http://x", "sides": ("prompt", "chosen"), **guard},
            "run": {"workers": 1, "chunk_bytes": 1500},
        }
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*ROWS, ROWS[1]]), encoding="utf-8")
    return file


def poison(prompt: str, answer: str | None) -> Verdict:
    return objection("poison") if "毒" in (answer or prompt) else KEEP


def quiet(done: int, total: int) -> None:
    assert done <= total


@pytest.mark.parametrize("action", ["flag", "drop"])
def test_a_run_asks_the_guard_about_what_is_left_and_accounts_for_it(action: str, data: Path, tmp_path: Path) -> None:
    asked = []

    def guard(prompt: str, answer: str | None) -> Verdict:
        asked.append((prompt, answer))
        return poison(prompt, answer)

    done = run(recipe(tmp_path / "out", data, action=action), guard=asking(guard), on_progress=quiet)
    assert len(asked) == 80
    assert (ROWS[3]["prompt"], ROWS[3]["chosen"]) in asked
    assert done.total("written") == (30 if action == "drop" else 40)
    lines = (tmp_path / "out" / "decisions.jsonl").read_text(encoding="utf-8").splitlines()
    found = [one for one in map(json.loads, lines) if one["rule"] == "guard"]
    assert [one["row"] for one in found] == [f"pairs.jsonl:{number + 1}" for number in range(0, 40, 4)]
    assert {(one["action"], one["reason"], one["side"]) for one in found} == {(action, "poison", "chosen")}
    rows = (tmp_path / "out" / "rows-00000.jsonl").read_text(encoding="utf-8")
    assert ("毒" in rows) is (action == "flag")
    assert "守卫" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8") or action == "flag"


def test_a_guard_that_stops_goes_on_with_the_next_chunk(data: Path, tmp_path: Path) -> None:
    run(recipe(tmp_path / "whole", data, action="drop"), guard=asking(poison), on_progress=quiet)
    asked: list[str] = []

    def weary(prompt: str, answer: str | None) -> Verdict:
        asked.append(prompt)
        if len(asked) > 50:
            raise FetchError("gone")
        return poison(prompt, answer)

    with pytest.raises(FetchError):
        run(recipe(tmp_path / "cut", data, action="drop", parallel=1), guard=asking(weary), on_progress=quiet)
    kept = len(list((tmp_path / "cut" / ".work").glob("*.guard.json")))
    assert kept >= 2
    again: list[str] = []

    def counting(prompt: str, answer: str | None) -> Verdict:
        again.append(prompt)
        return poison(prompt, answer)

    run(recipe(tmp_path / "cut", data, action="drop", parallel=1), guard=asking(counting), on_progress=quiet)
    assert len(again) < 80
    for name in ("rows-00000.jsonl", "decisions.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_recipe_with_a_guard_wants_one(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no guard was handed in"):
        run(recipe(tmp_path / "out", data), on_progress=quiet)
