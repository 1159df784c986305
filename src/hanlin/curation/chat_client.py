"""Asks a chat model behind an OpenAI-compatible address, tries again where that may help, and remembers the replies.

The cache is a file of hashes and replies, one a line, so that a run that was killed does not ask twice; it holds no
text of a row.
"""

import hashlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from hanlin.errors import ConfigError, FetchError

TRIES, TIMEOUT = 5, 120.0  # seconds for one reply
_MAY_PASS = (408, 409, 425, 429, 500, 502, 503, 504)


class ChatClient:
    """One model at one address; `ask` may be called from several threads."""

    def __init__(
        self,
        address: str,
        model: str,
        *,
        key: str = "",
        cache: Path | None = None,
        max_tokens: int = 128,
        delay: float = 1.0,
    ) -> None:
        """`address` ends before /chat/completions; `delay` seconds pass before the second try, twice as many before
        each one after it. Raises ConfigError.
        """
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"guard.address = {address!r} should begin with http:// or https://")
        self._url = address.rstrip("/") + "/chat/completions"
        self._model, self._key, self._max_tokens, self._delay = model, key, max_tokens, delay
        self._cache, self._known = cache, _read_cache(cache)
        self._lock = threading.Lock()

    def ask(self, messages: Sequence[dict[str, str]]) -> str:
        """The reply, greedy. Raises FetchError where none comes after five tries, or the server refuses."""
        body = {
            "model": self._model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": self._max_tokens,
            "stream": False,
        }
        data = json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")
        name = hashlib.blake2b(self._url.encode() + data, digest_size=16).hexdigest()
        with self._lock:
            if name in self._known:
                return self._known[name]
        reply = self._patiently(data)
        with self._lock:
            self._known[name] = reply
            if self._cache is not None:
                with self._cache.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"of": name, "reply": reply}, ensure_ascii=False) + "\n")
        return reply

    def _patiently(self, data: bytes) -> str:
        why = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(self._delay * 2 ** (attempt - 1))
            try:
                return self._once(data)
            except urllib.error.HTTPError as error:
                with error:
                    why = f"status {error.code}"
                if error.code not in _MAY_PASS:
                    break
            except (OSError, ValueError) as error:  # no connection, a connection cut off, a reply that is no JSON
                why = str(error) or type(error).__name__
        raise FetchError(
            f"{self._url} gives no reply for model {self._model!r}: {why}; check that it is served there, then run the "
            "same command again: it goes on where it stopped"
        )

    def _once(self, data: bytes) -> str:
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        request = urllib.request.Request(self._url, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            told = json.load(response)
        try:
            reply = told["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise ValueError("the reply has no choices[0].message.content") from None
        return reply if isinstance(reply, str) else ""


def _read_cache(cache: Path | None) -> dict[str, str]:
    known: dict[str, str] = {}
    if cache is None or not cache.exists():
        return known
    for line in cache.read_text(encoding="utf-8").split("\n"):
        try:
            told = json.loads(line)
            known[told["of"]] = told["reply"]
        except (ValueError, KeyError, TypeError):
            continue  # a line that a killed run left half
    return known
