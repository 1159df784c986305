"""The teacher of a distillation: a second model that stays as it is and reads what the student reads."""

from pathlib import Path

import torch

from hanlin.errors import ConfigError
from hanlin.models.adapters import text_place
from hanlin.models.fetch import resolve
from hanlin.models.transformer import Transformer
from hanlin.models.weights import load_model, open_checkpoint
from hanlin.text.tokenizer import Tokenizer
from hanlin.text.vocabulary import first_difference


class Teacher:
    """A model by its name. `check` looks at its vocabulary before any weight is read, `open` reads its weights."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path = Path()
        self._model: Transformer | None = None

    @property
    def model(self) -> Transformer:
        """The opened teacher."""
        assert self._model is not None, "open comes first"
        return self._model

    def check(self, tokenizer: Tokenizer) -> None:
        """Find the teacher. Raises ConfigError where its ids stand for other pieces than the student's, and where it is
        no language model; FetchError where it cannot be had.
        """
        self._path = resolve(self.name)
        if (found := first_difference(Tokenizer.open(text_place(self._path)), tokenizer)) is not None:
            id, own, student = found
            raise ConfigError(_another(self.name, f"{own!r} as id {id}", f"{student!r}"))
        if open_checkpoint(self._path).score is not None:
            raise ConfigError(f"objective.teacher {self.name} is a reward model; name a language model")

    def open(self, student: Transformer, seed: int, device: torch.device) -> None:
        """Read the teacher to a device, in the dtype that the student's matrix products run in."""
        words, own = student.config.vocab_size, open_checkpoint(self._path).config.vocab_size
        if words != own:
            raise ConfigError(_another(self.name, f"a head for {own} ids", f"one for {words}"))
        self._model = load_model(self._path, dtype=student.dtype, device=device).requires_grad_(False).eval()


def _another(name: str, has: str, student: str) -> str:
    return (
        f"objective.teacher {name} has {has}, the student {student}: what they say cannot be compared; choose a "
        "teacher of the student's own family"
    )
