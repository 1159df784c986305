"""The chat, driven by scripted lines over a tiny random model: turns, commands, Ctrl-C, a context that gets full."""

import io
import json
import signal
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from hanlin.data.budget import count_tokens
from hanlin.data.pack import pack_tokens
from hanlin.errors import ConfigError, DataError
from hanlin.generation.assistant import Assistant
from hanlin.generation.sampling import Sampling
from hanlin.models.transformer import Transformer
from hanlin.objectives.next_token import next_token
from hanlin.serving.parameters import changed
from hanlin.serving.presets import PRESETS, RAW_STOPS
from hanlin.serving.terminal import COMMANDS, Chat, _until
from hanlin.text.chat import FORMATS
from hanlin.text.encode import encode_conversation
from hanlin.text.tokenizer import Tokenizer
from hanlin.text.tools import read_calls, read_declarations
from hanlin.types import Conversation, Message, ToolCall
from tiny import CONFIGS
from tiny_text import write_directory

Line = str | type[BaseException]


class Screen(io.StringIO):
    """A file that is sent Ctrl-C while it is written for the `interrupt_at`th time."""

    interrupt_at = 0

    def write(self, text: str, /) -> int:
        self.interrupt_at -= 1
        if self.interrupt_at == 0:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


class Talk:
    """A chat with a script instead of a person."""

    def __init__(self, assistant: Assistant, *lines: Line, **options) -> None:
        self.screen, self.notes = Screen(), io.StringIO()
        self.prompts: list[str] = []
        self.lines = list(lines)
        sampling = options.pop("sampling", Sampling(seed=1, max_tokens=8, temperature=1.5, top_p=1))
        out, err = (
            Console(file=self.screen, width=80, force_terminal=False),
            Console(file=self.notes, force_terminal=False),
        )
        self.chat = Chat(assistant, sampling, read=self.read, out=out, err=err, **options)

    def read(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if not isinstance(line, str):
            raise line
        return line

    def run(self, *lines: Line) -> "Talk":
        self.lines += lines
        self.chat.run()
        return self

    def roles(self) -> list[str]:
        return [message.role for message in self.chat.messages()]


def make_assistant(folder, name: str, *, template: bool = True, max_length: int = 512) -> Assistant:
    write_directory(folder, name, template=FORMATS[name].jinja() if template else None)
    tokenizer = Tokenizer.from_directory(folder)
    family = "gemma" if name == "gemma" else "smollm2"
    model = Transformer(replace(CONFIGS[family], vocab_size=tokenizer.size, max_length=max_length))
    model.initialize(std=0.3)
    return Assistant(model, tokenizer, FORMATS[name])


@pytest.fixture(scope="module")
def chatml(tmp_path_factory) -> Assistant:
    return make_assistant(tmp_path_factory.mktemp("chatml"), "chatml")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> Assistant:
    return make_assistant(tmp_path_factory.mktemp("gemma"), "gemma")


def test_a_conversation_of_two_turns(chatml):
    talk = Talk(chatml).run("你好", "And you?")
    assert talk.roles() == ["user", "assistant", "user", "assistant"]
    answers = [message.content for message in talk.chat.messages()[1::2]]
    assert talk.screen.getvalue() == "".join(answer if answer.endswith("\n") else f"{answer}\n" for answer in answers)
    assert talk.prompts[0] == "你 You > "
    sampling = talk.chat.sampling
    asked = chatml.stream(talk.chat.messages()[:3], sampling)
    assert "".join(asked) == answers[1]  # the second question was asked after the first exchange


@pytest.mark.parametrize("leaves", [EOFError, KeyboardInterrupt, "/quit", "/exit"])
def test_leaving(chatml, leaves):
    talk = Talk(chatml).run(leaves, "never asked")
    assert talk.lines == ["never asked"]
    assert not talk.chat.exchanges


def test_ctrl_c_keeps_what_has_come_and_the_conversation_goes_on(chatml):
    long = Sampling(seed=1, max_tokens=40, temperature=1.5, top_p=1)
    whole = Talk(chatml, sampling=long).run("你好").chat.exchanges[0].answer
    talk = Talk(chatml, sampling=long)
    talk.screen.interrupt_at = 2
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        talk.run("你好", "go on")
    finally:
        signal.signal(signal.SIGINT, before)
    partial = talk.chat.exchanges[0].answer
    assert 0 < len(partial) <= len(whole)
    assert whole.startswith(partial)
    assert "已中断 stopped" in talk.notes.getvalue()
    assert talk.roles() == ["user", "assistant", "user", "assistant"]


def test_a_question_without_an_answer_leaves_no_trace_and_can_be_asked_again(chatml, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    talk = Talk(chatml)
    with monkeypatch.context() as patch:
        patch.setattr(chatml.engine, "events", interrupted)
        talk.run("你好")
    assert talk.chat.messages() == []
    assert "the question is not kept" in talk.notes.getvalue()
    talk.run("/regenerate")
    assert [exchange.question for exchange in talk.chat.exchanges] == ["你好"]


def test_ctrl_c_during_regenerate_keeps_the_old_answer(chatml, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    talk = Talk(chatml).run("你好")
    before = talk.chat.messages()
    monkeypatch.setattr(chatml.engine, "events", interrupted)
    talk.run("/regenerate")
    assert talk.chat.messages() == before


def test_regenerate_takes_a_new_seed_and_replaces_the_answer(chatml):
    talk = Talk(chatml).run("one", "two", "/regenerate")
    again = talk.chat.exchanges[1].answer
    first = Talk(chatml).run("one", "two").chat.exchanges
    assert len(talk.chat.exchanges) == 2
    assert talk.chat.exchanges[0] == first[0]
    assert again != first[1].answer
    assert "nothing to answer again" in Talk(chatml).run("/regenerate").notes.getvalue()


def test_commands_that_do_not_exist(chatml):
    notes = Talk(chatml).run("/regenrate", "/").notes.getvalue()
    assert "did you mean /regenerate?" in notes
    assert notes.count("is unknown") == 2
    assert all(command.usage in Talk(chatml).run("／help").notes.getvalue() for command in COMMANDS.values())
    assert Talk(chatml).run(" /etc/hosts 是什么？").chat.exchanges[0].question == " /etc/hosts 是什么？"


def test_parameters_are_shown_and_changed(chatml):
    talk = Talk(chatml).run("/params temperature=0.3 top_p=1, max_tokens=2", "/params", "/params ｔop_p＝0.5")
    assert talk.chat.sampling == Sampling(seed=1, temperature=0.3, max_tokens=2, top_p=0.5)
    assert "temperature=0.3 top_p=1.0 top_k=0" in talk.notes.getvalue()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("temprature=1", "did you mean temperature?"),
        ("temperature=hot", "temperature is 'hot'; expected 数字 a number"),
        ("max_tokens=1.5", "expected 整数 a whole number"),
        ("top_p=2", "top_p is 2.0; expected more than 0 and at most 1"),
        ("temperature=nan", "temperature is nan"),
        ("temperature", "temperature is nothing"),
    ],
)
def test_wrong_parameters_change_nothing(chatml, line, said):
    talk = Talk(chatml)
    before = talk.chat.sampling
    assert said in talk.run(f"/params {line}").notes.getvalue()
    assert talk.chat.sampling == before


def test_a_seed_can_be_switched_off():
    assert changed(Sampling(seed=3), "seed=none").seed is None
    with pytest.raises(ConfigError, match="seed"):
        changed(Sampling(), "seed=x")


def test_save(chatml, tmp_path):
    jsonl, markdown = tmp_path / "对话 one.jsonl", tmp_path / "talk.md"
    script = ("/save early.md", "你好\ud83d", "你好，世界🙂", f"/save {jsonl}", f"/save {jsonl}", f"/save {markdown}")
    talk = Talk(chatml, system="请用中文。").run(*script)
    (line,) = jsonl.read_text(encoding="utf-8").splitlines()
    messages = json.loads(line)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"] == "你好，世界🙂"
    assert "你好，世界🙂" in markdown.read_text(encoding="utf-8")
    notes = talk.notes.getvalue()
    assert "nothing to save yet" in notes
    assert "exists already" in notes
    assert "not UTF-8" in notes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.md", "对话 one.jsonl"]


@pytest.mark.parametrize("name", ["", "chat", "chat.txt", "no/such/folder.md", "/dev/null/x.md"])
def test_save_to_a_bad_place_is_one_line(chatml, name):
    notes = Talk(chatml).run("hi", f"/save {name}").notes.getvalue()
    assert len([line for line in notes.splitlines() if "error" in line]) == 1


def test_system_text_is_folded_and_the_conversation_kept(gemma):
    talk = Talk(gemma).run("hi", "/system 你是诗人。", "why")
    assert "kept" in talk.notes.getvalue()
    text = gemma.tokenizer.decode(gemma.request(talk.chat.messages()[:-1], talk.chat.sampling).ids, keep_control=True)
    assert text.startswith("<bos><start_of_turn>user\n你是诗人。\n\nhi<end_of_turn>")
    talk.run("/system", "/reset")
    assert talk.chat.messages() == []
    assert "cleared" in talk.notes.getvalue()


def test_messages_of_several_lines(chatml):
    script = ("a \\", "b", '"""', "/not a command", '"""', '"""one"""', "pasted\nlines", "half \\", KeyboardInterrupt)
    talk = Talk(chatml).run(*script, '"""', "never", KeyboardInterrupt)
    questions = [exchange.question for exchange in talk.chat.exchanges]
    assert questions == ["a \nb", "/not a command", "one", "pasted\nlines"]
    assert talk.notes.getvalue().count("cancelled") == 2


def test_a_full_context_drops_the_oldest_and_says_so(tmp_path):
    assistant = make_assistant(tmp_path / "short", "chatml", max_length=96)
    talk = Talk(assistant).run(*(f"第{number}问 question" for number in range(5)))
    assert len(talk.chat.exchanges) == 5
    assert "the oldest 1 exchanges are no longer sent" in talk.notes.getvalue()
    assert "error" not in talk.notes.getvalue()
    with pytest.raises(DataError, match="shorten it"):
        talk.chat.ask("长" * 96)
    assert len(talk.chat.exchanges) == 5


def test_stats(chatml):
    assert "8 tokens · " in Talk(chatml, stats=True).run("hi").notes.getvalue()
    assert "cut: max_tokens=8" in Talk(chatml).run("hi").notes.getvalue()


def test_presets_word_the_question(chatml):
    def sent(talk: Talk) -> str:
        return "\n".join(f"{message.role}: {message.content}" for message in talk.chat.messages())

    talk = Talk(chatml, preset=PRESETS["chain-of-thought"]).run("1+1 等于几？", "And 2+2?")
    assert "1+1 等于几？\n\n让我们一步一步地思考" in sent(talk)
    assert "And 2+2?\n\nLet's think step by step" in sent(talk)
    talk = Talk(chatml, preset=PRESETS["role-play"], system="苏轼").run("hi")
    assert sent(talk).startswith("system: 请你扮演苏轼")
    talk = Talk(chatml, preset=PRESETS["few-shot"]).run("hi")
    assert talk.roles() == ["user", "assistant"] * (len(PRESETS["few-shot"].examples) + 1)
    assert Talk(chatml).run("hi").roles() == ["user", "assistant"]


def test_base_models_get_raw_text(tmp_path, monkeypatch):
    base = make_assistant(tmp_path / "base", "gemma", template=False)
    texts, events = [], base.engine.events

    def recorded(requests, tokenizer):
        texts.append(base.tokenizer.decode(requests[0].ids, keep_control=True))
        return events(requests, tokenizer)

    monkeypatch.setattr(base.engine, "events", recorded)
    talk = Talk(base, preset=PRESETS["few-shot"]).run("你好", "hi")
    answer = talk.chat.exchanges[0].answer
    assert texts[0].startswith("<bos>问 Q: 中国的首都是哪里？\n答 A: 中国的首都是北京。\n\n")
    assert texts[1].endswith(f"问 Q: 你好\n答 A: {answer.strip()}\n\n问 Q: hi\n答 A:")
    talk = Talk(base, preset=PRESETS["raw"]).run("从前有座山", "然后", "/system 你好")
    assert texts[2:] == ["<bos>从前有座山", "<bos>然后"]
    assert "raw continuation has no system text" in talk.notes.getvalue()


def test_a_base_models_next_question_ends_its_answer():
    pieces = (text for text in (" ", " Bei", "jing\n", "问 ", "Q: and", " you?"))
    assert "".join(_until(pieces, RAW_STOPS)) == "Beijing"  # pyright: ignore[reportArgumentType]


WEATHER = {"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def caller(tmp_path_factory) -> Assistant:
    """A model that has learnt by heart to call a tool, and what to say of its result."""
    assistant = make_assistant(tmp_path_factory.mktemp("caller"), "chatml")
    call = ToolCall("weather", {"city": "北京"})
    turns = (
        Message("user", "天气？"),
        Message("assistant", "", (call,)),
        Message("tool", "晴"),
        Message("assistant", "好。"),
    )
    talk = Conversation(turns, tools=read_declarations([WEATHER]))
    tokens = encode_conversation(talk, assistant.format, assistant.tokenizer, score="every")
    model = Transformer(replace(CONFIGS["smollm2"], vocab_size=assistant.tokenizer.size, max_length=2048))
    model.initialize(std=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = torch.tensor(1.0)
    while loss > 0.02:
        optimizer.zero_grad()
        loss = next_token(model, pack_tokens([tokens]), count_tokens([tokens])).total
        loss.backward()
        for parameter in model.parameters():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        optimizer.step()
    return Assistant(model, assistant.tokenizer, assistant.format)


def test_a_call_is_shown_and_its_result_goes_on(caller, tmp_path):
    sampling = Sampling(temperature=0, max_tokens=80)
    talk = Talk(caller, sampling=sampling, tools=read_declarations([WEATHER]))
    talk.run("/result 太早", "天气？", "/result 晴", "/regenerate", f"/save {tmp_path / 'talk.jsonl'}", "/result 晚")
    assert 'call weather {"city": "北京"}' in talk.notes.getvalue()
    assert talk.roles() == ["user", "assistant", "tool", "assistant"]
    assert talk.chat.messages()[1].tool_calls == (ToolCall("weather", {"city": "北京"}),)
    assert talk.chat.exchanges[-1].answer == "好。"
    assert talk.notes.getvalue().count("the last answer called no tool") == 2
    saved = json.loads((tmp_path / "talk.jsonl").read_text(encoding="utf-8"))["messages"]
    assert read_calls(saved[1]["tool_calls"]) == (ToolCall("weather", {"city": "北京"}),)
    talk.run(f"/save {tmp_path / 'talk.md'}")
    assert '`weather {"city": "北京"}`' in (tmp_path / "talk.md").read_text(encoding="utf-8")


def test_without_tools_a_call_stays_text(caller):
    talk = Talk(caller, sampling=Sampling(temperature=0, max_tokens=80)).run("天气？")
    assert "→ /result" not in talk.notes.getvalue()
    assert all(not message.tool_calls for message in talk.chat.messages())
