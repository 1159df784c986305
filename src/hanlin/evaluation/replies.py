"""Lets a model answer a suite of prompts, so that the replies can be judged."""

from collections.abc import Callable, Sequence

from hanlin.evaluation.language import Reply
from hanlin.evaluation.prompts import Prompt
from hanlin.generation.assistant import Assistant
from hanlin.generation.sampling import Sampling


def collect_replies(
    assistant: Assistant,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Reply]:
    """One reply to each prompt, in order. A reply has ended by itself when a stop token, not the limit of tokens, ended
    it.
    """
    completions = assistant.answer_all([prompt.messages for prompt in prompts], sampling, on_progress=on_progress)
    return [
        Reply(prompt=prompt, text=completion.text, ended=completion.finish_reason == "stop")
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
