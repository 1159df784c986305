"""A conversation with a model in the terminal, over many turns.

`Chat` knows nothing of keyboards: it is handed a reader of lines and two consoles, answers go to `out`, everything else
to `err`. What is remembered are whole exchanges only, so a question whose answer never came leaves no trace, and an
interrupted answer counts as far as it got. When the context is full the oldest exchanges are no longer sent, with a
note; `/save` still has them.
"""

import difflib
import json
import time
import unicodedata
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hanlin.errors import ConfigError, DataError, HanlinError
from hanlin.generation.assistant import Assistant
from hanlin.generation.engine import Completion
from hanlin.generation.sampling import Sampling
from hanlin.generation.stops import HoldBack
from hanlin.serving.exchange import Exchange, Reply
from hanlin.serving.keyboard import Reader, quiet_keyboard
from hanlin.serving.markdown import view
from hanlin.serving.parameters import as_dict, changed
from hanlin.serving.presets import PRESETS, RAW_STOPS, Preset, phrase, raw_shots, system_text
from hanlin.serving.transcript import write_transcript
from hanlin.types import Message, ToolCall

PROMPT, MORE = "你 You > ", "… > "
_QUOTES = '"""'


class Chat:
    """One conversation: its settings, its exchanges, and the commands that change them."""

    def __init__(
        self,
        assistant: Assistant,
        sampling: Sampling,
        *,
        read: Reader,
        out: Console,
        err: Console,
        name: str = "model",
        preset: Preset = PRESETS["zero-shot"],
        system: str = "",
        tools: Sequence[dict[str, Any]] = (),
        markdown: bool = True,
        stats: bool = False,
    ) -> None:
        """`read` is asked for every line; `system` is the user's own text, which the preset may put into words. `tools`
        are declared to the model; who calls them is the user (`/result`).
        """
        self.assistant, self.sampling, self.tools = assistant, sampling, tools
        self.name, self.preset, self.stats = name, preset, stats
        self.system = system_text(preset, system)
        self.exchanges: list[Exchange] = []
        self._read, self._out, self._err, self._markdown = read, out, err, markdown
        self._first = 0  # the oldest exchange that is still sent
        self._last_question, self._last_role = "", "user"
        self._answered = False  # the last exchange is the last question's
        self._attempt = 0
        # A base model knows no turns: it gets examples as plain text.
        self._raw_shots = bool(preset.examples) and assistant.tokenizer.chat_template is None

    def run(self) -> None:
        """Talk until the user leaves with /quit, Ctrl-D or Ctrl-C at the prompt."""
        if self._out.is_terminal:
            self._say("/help 帮助 · Ctrl-C 停止回答 stops an answer · Ctrl-D 退出 leaves")
        while True:
            try:
                text, typed = self._read_message()
            except (EOFError, KeyboardInterrupt):
                if self._out.is_terminal:
                    self._say("\n再见 Bye")
                return
            try:
                if typed and text.startswith(("/", "／")):
                    if not self._obey(text):
                        return
                elif text.strip():
                    self.ask(text)
            except HanlinError as error:
                self._fail(str(error))
            except KeyboardInterrupt:
                self._say("已中断 stopped")

    def ask(self, question: str) -> Reply:
        """Answer a question and remember both; Ctrl-C keeps what has come.

        Raises DataError or TemplateError when it cannot be asked: too long, not UTF-8.
        """
        return self._ask_anew(question, "user")

    def messages(self) -> list[Message]:
        """The whole conversation as the model was asked it, with system text and examples."""
        return self._messages(0)

    def _ask_anew(self, question: str, role: str) -> Reply:
        self._last_question, self._last_role, self._answered, self._attempt = question, role, False, 0
        return self._ask(question, role)

    def _ask(self, question: str, role: str) -> Reply:
        _check_text(question)
        sent = phrase(self.preset, question) if role == "user" else question
        first = self._fit(sent, role)
        if first > self._first:
            self._say(
                f"上下文已满，最早的 {first} 轮不再发送 the context is full: the oldest {first} exchanges are no "
                "longer sent (/reset 重新开始 begins anew)"
            )
        self._first = first
        reply = self._show(self._stream(sent, first, role))
        if reply.text.strip():
            self._answered = True
            self.exchanges.append(Exchange(question, sent, reply.text, role))
        for call in self._calls():
            arguments = json.dumps(call.arguments, ensure_ascii=False)
            self._say(f"调用 call {call.name} {arguments} → /result TEXT 给出结果 gives its result")
        self._say_how_it_ended(reply)
        if self._out.is_terminal:
            self._out.print()
        return reply

    def _messages(self, first: int, *more: Message) -> list[Message]:
        made = [Message("system", self.system)] if self.system else []
        for question, answer in self.preset.examples:
            made += [Message("user", question), Message("assistant", answer)]
        for exchange in self.exchanges[first:]:
            made += [Message(exchange.role, exchange.sent), self._said(exchange.answer)]
        return [*made, *more]

    def _said(self, answer: str) -> Message:
        """An answer as a message, its calls read where tools are declared."""
        return self.assistant.format.parse(answer) if self.tools else Message("assistant", answer)

    def _calls(self) -> Sequence[ToolCall]:
        """What the last answer calls."""
        return self._said(self.exchanges[-1].answer).tool_calls if self._answered else ()

    def _raw_text(self, sent: str, first: int) -> str | None:
        """What a base model carries on; None where the model is asked in turns."""
        if self.preset.continues:
            return sent
        if not self._raw_shots:
            return None
        shots = [(exchange.sent, exchange.answer.strip()) for exchange in self.exchanges[first:]]
        return raw_shots(self.system, [*self.preset.examples, *shots], sent)

    def _fit(self, sent: str, role: str) -> int:
        """The oldest exchange that can be sent with this question and leave room for an answer."""
        longest = self.assistant.engine.config.max_length
        room = min(self.sampling.max_tokens, longest // 4)
        last = 0 if self.preset.continues else len(self.exchanges)
        for first in range(min(self._first, last), last):
            if self._count(sent, first, role) + room <= longest:
                return first
        count = self._count(sent, last, role)
        if count >= longest:
            raise DataError(f"这段话太长 the message makes {count} tokens; the model holds {longest}: shorten it")
        return last

    def _count(self, sent: str, first: int, role: str) -> int:
        raw = self._raw_text(sent, first)
        if raw is not None:
            return 1 + len(self.assistant.tokenizer.encode(raw))
        messages = self._messages(first, Message(role, sent))
        return len(self.assistant.request(messages, self.sampling, tools=self.tools).ids)

    def _stream(self, sent: str, first: int, role: str) -> Generator[str, None, Completion | None]:
        sampling = self.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + self._attempt)
        raw = self._raw_text(sent, first)
        if raw is None:
            return self.assistant.stream(self._messages(first, Message(role, sent)), sampling, tools=self.tools)
        pieces = self.assistant.continue_text(raw, sampling)
        return _until(pieces, RAW_STOPS) if self._raw_shots else pieces

    def _show(self, pieces: Generator[str, None, Completion | None]) -> Reply:
        """Print the answer as it comes. Ctrl-C ends it and keeps what there is."""
        parts: list[str] = []
        completion, ended = None, "stop"
        started = first = time.perf_counter()
        markdown = self._markdown and not self.preset.continues
        with view(self._out, markdown=markdown) as answer, quiet_keyboard():
            try:
                while True:
                    piece = next(pieces)
                    if not parts:
                        first = time.perf_counter()
                    parts.append(piece)
                    answer.push(piece)
            except StopIteration as stop:
                completion = stop.value
            except KeyboardInterrupt:
                ended = "interrupted"
            finally:
                pieces.close()
        text = "".join(parts)
        num_tokens = len(completion.ids if completion else self.assistant.tokenizer.encode(text))
        ended = completion.finish_reason if completion else ended
        return Reply(text, num_tokens, ended, first - started, time.perf_counter() - started)

    def _say_how_it_ended(self, reply: Reply) -> None:
        limit = f"max_tokens={self.sampling.max_tokens}"
        if reply.num_tokens < self.sampling.max_tokens:
            limit = "上下文已满 the context is full"
        ends = {"stop": "自行结束 ended by itself", "length": f"截断 cut: {limit}", "interrupted": "已中断 stopped"}
        if not reply.text.strip():
            self._say(
                f"没有回答，这一问不计入对话 no answer ({ends[reply.ended]}); the question is not kept (/regenerate)"
            )
        elif self.stats:
            self._say(
                f"{reply.num_tokens} tokens · {reply.tokens_per_second:.1f} tokens/s · "
                f"first 首字 {reply.seconds_to_first:.2f} s · {ends[reply.ended]}"
            )
        elif reply.ended != "stop":
            self._say(ends[reply.ended])

    def _read_message(self) -> tuple[str, bool]:
        """A message, and whether it may be a command: text between triple quotes never is."""
        line = self._read(PROMPT)
        if not line.lstrip().startswith(_QUOTES):
            return self._read_on(line), True
        text = line.lstrip().removeprefix(_QUOTES)
        try:
            while not text.rstrip().endswith(_QUOTES):
                text += "\n" + self._read(MORE)
        except EOFError:
            pass
        except KeyboardInterrupt:
            self._say("\n已取消 cancelled")
            return "", False
        return text.rstrip().removesuffix(_QUOTES).strip("\n"), False

    def _read_on(self, line: str) -> str:
        """The line and those that follow while each ends with a backslash."""
        lines = [line]
        try:
            while lines[-1].endswith("\\"):
                lines.append(self._read(MORE))
        except EOFError:
            pass
        except KeyboardInterrupt:
            self._say("\n已取消 cancelled")
            return ""
        return "\n".join([*(part.removesuffix("\\") for part in lines[:-1]), lines[-1]])

    def _obey(self, line: str) -> bool:
        """Run a command; False when it is time to leave."""
        name, argument = [*line[1:].split(maxsplit=1), "", ""][:2]
        name = unicodedata.normalize("NFKC", name).lower()
        if name in ("quit", "exit"):
            self._say("再见 Bye")
            return False
        command = COMMANDS.get(name)
        if command is None:
            near = difflib.get_close_matches(name, [*COMMANDS, "quit"], n=1, cutoff=0.3) or ["help"]
            self._fail(
                f"没有这个命令 /{name} is unknown; did you mean /{near[0]}? "
                "(前面加空格则当作文字 with a space before it, it is sent as text)"
            )
        else:
            command.run(self, argument.strip())
        return True

    def _say(self, text: str) -> None:
        self._tell(text, "dim")

    def _fail(self, text: str) -> None:
        self._tell(f"错误 error: {text}", "red")

    def _tell(self, text: str, style: str) -> None:
        whole_lines = not self._err.is_terminal
        self._err.print(text, style=style, markup=False, highlight=False, emoji=False, soft_wrap=whole_lines)

    def help(self, _: str = "") -> None:
        """List the commands."""
        usages = [(command.usage, command.meaning) for command in COMMANDS.values()]
        usages += [("/quit", "退出 leave (Ctrl-D)")]
        usages += [('"""', '多行输入，到下一个 """ 为止 several lines, up to the next """')]
        usages += [("\\", "行末反斜杠：下一行继续 at a line's end: the message goes on")]
        table = Table.grid(padding=(0, 2))
        for usage, meaning in usages:
            table.add_row(Text(usage), Text(meaning))
        self._err.print(table, style="dim")

    def set_system(self, text: str) -> None:
        """Set or clear the system text; the conversation is kept."""
        _check_text(text)
        self.system = system_text(self.preset, text)
        kept = "；对话保留 the conversation is kept (/reset 清空)" if self.exchanges else ""
        if self.system:
            self._say(f"系统提示 system text: {self.system}{kept}")
        else:
            default = self.assistant.format.default_system
            falls_back = f"，用模型默认的 the model's default is used: {default}" if default else ""
            self._say(f"系统提示已清除 system text cleared{falls_back}{kept}")

    def reset(self, _: str = "") -> None:
        """Forget the conversation; system text and sampling stay."""
        self.exchanges.clear()
        self._first, self._last_question, self._answered = 0, "", False
        self._say("对话已清空，系统提示与参数保留 conversation cleared; system text and parameters are kept")

    def regenerate(self, _: str = "") -> None:
        """Answer the last question again; the old answer goes when a new one has come."""
        if not self._last_question:
            raise ConfigError("还没有问题 nothing to answer again: ask something first")
        if self.sampling.greedy:
            self._say("temperature=0：回答会相同 the answer will be the same (/params temperature=0.7)")
        self._attempt += 1
        old = self.exchanges.pop() if self._answered else None
        self._answered = False
        try:
            self._ask(self._last_question, self._last_role)
        finally:
            if old is not None and not self._answered:
                self.exchanges.append(old)
                self._answered = True

    def result(self, text: str) -> None:
        """Say what the called tool answered, and let the model go on from there."""
        if not self._calls():
            raise ConfigError("没有待回答的调用 the last answer called no tool (--tools FILE.json declares tools)")
        self._ask_anew(text, "tool")

    def save(self, argument: str) -> None:
        """Write the conversation to a file."""
        if not self.exchanges:
            raise ConfigError("还没有对话 there is nothing to save yet: ask something first")
        path = write_transcript(argument, self.messages(), title=self.name)
        self._say(f"已保存 saved {len(self.exchanges)} 轮 exchanges: {path}")

    def parameters(self, argument: str) -> None:
        """Show the sampling, or change some of it."""
        if argument:
            self.sampling = changed(self.sampling, unicodedata.normalize("NFKC", argument))
        self._say(" ".join(f"{name}={value}" for name, value in as_dict(self.sampling).items()))


@dataclass(frozen=True, slots=True)
class Command:
    """What a line that begins with a slash does."""

    usage: str
    meaning: str
    run: Callable[[Chat, str], None]


COMMANDS: dict[str, Command] = {
    "help": Command("/help", "这份说明 this list", Chat.help),
    "system": Command("/system TEXT", "设定或清除系统提示 set or clear the system text", Chat.set_system),
    "reset": Command("/reset", "清空对话 forget the conversation", Chat.reset),
    "regenerate": Command("/regenerate", "重新回答 answer again, with a new seed", Chat.regenerate),
    "result": Command("/result TEXT", "给出工具的结果 say what the called tool answered", Chat.result),
    "save": Command("/save FILE", "保存对话 save the conversation: .jsonl, .md", Chat.save),
    "params": Command(
        "/params NAME=VALUE",
        "查看或修改采样参数 show or change the sampling",
        Chat.parameters,
    ),
}


def _check_text(text: str) -> None:
    """Refuse what no tokenizer can read: bytes that were not UTF-8."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise DataError("输入不是 UTF-8 the input is not UTF-8; set the terminal and LANG to UTF-8 and type it again")


def _until(pieces: Generator[str, None, Completion], stops: tuple[str, ...]) -> Generator[str, None, Completion | None]:
    """The pieces up to the first stop string, without white space before them.

    Returns the completion of an answer that ended without a stop string.
    """
    hold, begun = HoldBack(stops), False
    try:
        while not hold.stopped:
            text = hold.push(next(pieces))
            yield text if begun else text.lstrip()
            begun = begun or bool(text.strip())
    except StopIteration as stop:
        yield hold.finish()
        return stop.value
    finally:
        pieces.close()
    return None
