"""A curation recipe: which rules apply to which side, what is read and written. TOML states the differences.

Rules apply to each side by itself. A toxic, English or "I am ChatGPT" *rejected* answer is often what a pair is for:
the defaults touch a rejected answer only to mask personal data.
"""

from typing import Literal

from pydantic import Field

from hanlin.config import Section

Choice = Literal["keep", "flag", "drop"]


class SidePolicy(Section):
    """What to do where a rule objects to one side: "keep" does not even look, "flag" only records."""

    personal: Literal["keep", "flag", "drop", "mask", "replace"] = "mask"
    identity: Literal["keep", "flag", "drop", "rewrite", "to_rejected"] = "keep"
    """ "rewrite" puts [curation] name and maker in; "to_rejected" makes the answer the rejected one of its rewriting.
    """
    toxic: Choice = "keep"
    lexicon: Choice = "keep"
    language: Choice = "keep"
    mixed: Choice = "keep"
    emoji: Choice = "keep"
    script: Choice = "keep"
    length: Choice = "keep"
    repetition: Choice = "keep"
    ending: Choice = "keep"
    garbled: Choice = "keep"
    refusal: Choice = "keep"
    markup: Choice = "keep"
    document: Choice = "keep"


class PromptPolicy(SidePolicy):
    """Defaults of what people wrote."""

    length: Choice = "drop"
    garbled: Choice = "drop"


class AnswerPolicy(SidePolicy):
    """Defaults of answers that are learned from: chosen ones and a conversation's."""

    identity: Literal["keep", "flag", "drop", "rewrite", "to_rejected"] = "drop"
    toxic: Choice = "flag"
    lexicon: Choice = "flag"
    language: Choice = "drop"
    mixed: Choice = "flag"
    script: Choice = "flag"
    length: Choice = "drop"
    repetition: Choice = "drop"
    ending: Choice = "drop"
    garbled: Choice = "drop"
    refusal: Choice = "flag"
    markup: Choice = "drop"


class DocumentPolicy(SidePolicy):
    """Defaults of plain text."""

    toxic: Choice = "flag"
    lexicon: Choice = "flag"
    repetition: Choice = "drop"
    garbled: Choice = "drop"
    document: Choice = "drop"


class PairPolicy(Section):
    """Rules about two answers."""

    equal: Choice = "drop"
    gap: Choice = "flag"
    both: Choice = "flag"
    """Both answers fail the same rule (language, ending, garbled, repetition or identity)."""
    worse: Choice = "drop"
    """The chosen answer fails more of these rules than the rejected one."""


class CurationSection(Section):
    """The [curation] section: a policy for each side."""

    name: str = ""
    """Of the user's own model: an answer that calls itself so is not mistaken."""
    maker: str = ""
    prompt: PromptPolicy = PromptPolicy()
    chosen: AnswerPolicy = AnswerPolicy()
    rejected: SidePolicy = SidePolicy()
    user: PromptPolicy = PromptPolicy()
    assistant: AnswerPolicy = AnswerPolicy()
    tool: SidePolicy = SidePolicy()
    """What tools are given and return: data, of which only personal data is masked."""
    document: DocumentPolicy = DocumentPolicy()
    pair: PairPolicy = PairPolicy()
    addresses: bool = False
    """Look for Chinese postal addresses too."""
    words: tuple[str, ...] = ()
    """Abusive words besides those of the bundled list."""
    allowed: tuple[str, ...] = ()
    """Expressions in which words of the list mean nothing bad."""


class DuplicatesSection(Section):
    """The [duplicates] section: on which texts rows are compared."""

    exact: bool = True
    near: tuple[Literal["prompt", "prompt_chosen", "pair"], ...] = ("prompt_chosen", "pair")
    """Near-duplicates (MinHash) of these; "prompt" as well where each prompt may come only once."""
    threshold: float = Field(default=0.7, gt=0.3, lt=1)
    """Estimated Jaccard similarity from which two texts count as one."""
    better: Literal["longer_chosen", "shorter_chosen", "first"] = "longer_chosen"
    """Which of two rows stays: the one with the longer or shorter answers to learn from, in Han characters and words
    (equal ones by a hash of their text, so that the order of the files decides nothing), or the first.
    """


class DecontaminationSection(Section):
    """The [decontamination] section: benchmark files whose items must not be trained on."""

    files: tuple[str, ...] = ()
    coverage: float = Field(default=0.5, gt=0, le=1)
    """Share of an item's units that lie in 13-grams of the row."""


class GuardSection(Section):
    """The [guard] section: a model that looks at the rows which the rules left."""

    kind: Literal["", "shieldgemma", "qwen3guard", "judge"] = ""
    """ "shieldgemma" runs here (Gemma 2); "qwen3guard" and "judge" (any chat model) are asked at `address`."""
    model: str = ""
    """A directory or hub name for shieldgemma; elsewhere the name under which the model is served."""
    address: str = ""
    """OpenAI-compatible, such as http://localhost:8000/v1."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key of the address, where it wants one."""
    sides: tuple[Literal["prompt", "chosen", "rejected", "user", "assistant", "document"], ...] = (
        *("prompt", "chosen", "assistant", "document"),
    )
    action: Literal["flag", "drop"] = "flag"
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Of shieldgemma: the probability of Yes from which it objects."""
    policies: tuple[Literal["dangerous", "harassment", "hate", "sexual"], ...] = (
        *("dangerous", "harassment", "hate", "sexual"),
    )
    """Of shieldgemma, which is asked once for each."""
    controversial: bool = False
    """Of qwen3guard: object to its middle grade too."""
    parallel: int = Field(default=8, ge=1)
    """Questions on their way to the address at once."""


class InputSection(Section):
    """The [input] section."""

    files: tuple[str, ...]
    """Files and folders: .jsonl, .json, .csv, .tsv (these packed too: .gz, .zst), .parquet; see docs/data.md."""
    largest_row: int = Field(default=16_000_000, gt=0)
    """Bytes; a longer row is set aside."""


class OutputSection(Section):
    """The [output] section."""

    directory: str
    rows_per_file: int = Field(default=20_000, gt=0)
    compress: bool = False
    """Write .jsonl.zst."""


class RunSection(Section):
    """The [run] section: none of it changes the result."""

    workers: int = Field(default=0, ge=0)
    """Processes; 0: one for each core."""
    """With --ray: tasks at a time; 0: as many as the cluster has room for."""
    chunk_bytes: int = Field(default=4_000_000, gt=0)
    guard_actors: int = Field(default=1, ge=1)
    """With --ray: copies of a guard that runs here (shieldgemma)."""
    guard_gpus: float = Field(default=1, ge=0)
    """GPUs of each copy; 0 on machines without, 0.5 where two copies share one."""


class CurationRecipe(Section):
    """One curation run."""

    input: InputSection
    output: OutputSection
    curation: CurationSection = CurationSection()
    duplicates: DuplicatesSection = DuplicatesSection()
    decontamination: DecontaminationSection = DecontaminationSection()
    guard: GuardSection = GuardSection()
    run: RunSection = RunSection()
