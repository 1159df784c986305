"""A recipe: everything that tells one training run from another. TOML states the differences; the resolved recipe is
saved with the run.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hanlin.config import Section
from hanlin.data.prepare import DataConfig
from hanlin.errors import ConfigError
from hanlin.models.lora import LoraConfig
from hanlin.objectives.next_token import PretrainingConfig
from hanlin.objectives.orpo import OrpoConfig
from hanlin.objectives.policy import RlhfConfig
from hanlin.training.objective import ObjectiveConfig
from hanlin.training.parallel import ParallelConfig
from hanlin.training.supported import Setting, check_supported
from hanlin.training.trackers import TrackConfig

Beta = Annotated[float, Field(ge=0, lt=1)]


class ModelSection(Section):
    """The [model] section: where training starts from."""

    path: str
    """A directory, a .gguf file, a hub id ("org/name") or one of the known small models (`hanlin inspect --help`)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights that the optimizer changes; keep float32 unless memory forbids. With [lora] it changes adapters,
    which are float32 always: "bfloat16" halves the memory of the frozen weights below them.
    """
    compute: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of matrix products; "auto" is bfloat16."""
    quantization: Literal["nf4"] | None = None
    """"nf4": the layers' matrices are kept in four bits, and adapters learn on top of them (QLoRA; needs [lora]). The
    embedding, the norms and an untied head keep `dtype`.
    """
    untrained_rows: Literal["mean", "keep"] = "mean"
    """What becomes of the chat format's control pieces whose rows a base model never trained (Llama 3's): the mean of
    the trained rows, or what they are.
    """


class ChatSection(Section):
    """The [chat] section: how conversations become text."""

    format: str | None = None
    """A name in `hanlin.text.chat.FORMATS`; chosen by the tokenizer's control pieces when left out."""
    system: str = ""
    """System text for conversations that bring none."""
    date: str | None = None
    """Today's date in formats that print one (Llama 3.1, 3.2); "26 Jul 2024" when left out, as in the templates."""
    follow: Literal["format", "template"] | None = None
    """Only where the checkpoint's own template disagrees with the format: "format" trains with ours and saves ours as
    the template.
    """


class TrainingConfig(Section):
    """The [training] section: steps, optimizer and how often to look."""

    epochs: float = Field(default=1.0, gt=0)
    steps: int | None = Field(default=None, gt=0)
    """Ends the run earlier (or later) than `epochs` would."""
    tokens: int | None = Field(default=None, gt=0)
    """Ends the run with the step that passes this many stream tokens."""
    batch_pairs: int = Field(default=64, gt=0)
    """Pairs (or conversations, or documents) of one optimizer step, over all devices and micro-batches."""
    tokens_per_pass: int = Field(default=2048, gt=0)
    """Stream tokens of one forward and backward pass: memory, not results, depends on it."""
    attention: Literal["auto", "segments", "varlen", "flex"] = "auto"
    """Kernels of attention: "auto" takes the fastest that this device has."""
    head: Literal["auto", "fast", "lean"] = "auto"
    """How the head goes through the backward pass: with all logits kept in the compute dtype, or computed again."""
    recomputed_layers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Layers, from the first on, whose activations are computed again in the backward pass instead of kept (gradient
    checkpointing); "auto" is as few as fit the memory.
    """
    compile: bool | Literal["auto"] = "auto"
    """torch.compile for the layers, with streams padded to one length; "auto" is on CUDA only."""
    learning_rate: float = Field(default=5e-6, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the steps."""
    optimizer: Literal["adamw", "adamw_bf16", "paged_adamw_32bit", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """"adamw_bf16" is for model.dtype = "bfloat16"; the paged and 8-bit ones need CUDA and bitsandbytes
    (`pip install "hanlin[cuda]"`). What each costs: `hanlin.training.optim`.
    """
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0)
    clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 leaves gradients as they are."""
    frozen_layers: int = Field(default=0, ge=0)
    """So many layers, from the first on, stay as they are, and with them the embedding (and the head, where the two are
    one matrix). They get no gradients and no optimizer states.
    """
    step_in_backward: bool = False
    """Each weight is updated as soon as its gradient is there, which is then freed: gradients take the memory of one
    tensor, not of the model. Needs clip = 0, and saves memory in steps of a single pass only (tokens_per_pass).
    """
    seed: int = Field(default=42, ge=0)
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between evaluations on the held-out pairs; 0: only before and after."""
    save_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0: only when interrupted."""
    keep_last: int = Field(default=2, gt=0)
    """Checkpoints kept; older ones are removed."""
    device: str = "auto"
    """"auto" is CUDA where there is one, else the CPU."""


class OutputSection(Section):
    """The [output] section: where the run is written, and how."""

    directory: str | None = None
    """Run directory; runs/NAME-OF-THE-RECIPE when left out."""
    save_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


class Recipe(Section):
    """One training run."""

    model: ModelSection
    data: DataConfig
    chat: ChatSection = ChatSection()
    objective: ObjectiveConfig = OrpoConfig()
    lora: LoraConfig | None = None
    """Left out: all weights are trained."""
    training: TrainingConfig = TrainingConfig()
    parallel: ParallelConfig = ParallelConfig()
    track: TrackConfig = TrackConfig()
    output: OutputSection = OutputSection()

    def setting(self, device: str | None = None) -> Setting:
        """What decides whether the run can work, on this kind of device where it is known."""
        section, training = self.model, self.training
        return Setting(
            quantization=section.quantization,
            lora=self.lora is not None,
            frozen_layers=training.frozen_layers,
            dtype=section.dtype,
            compute="bfloat16" if section.compute == "auto" else section.compute,
            optimizer=training.optimizer,
            compile=training.compile,
            clip=training.clip,
            step_in_backward=training.step_in_backward,
            tensor=self.parallel.tensor,
            shard=self.parallel.shard,
            samples=self.track.samples,
            device=device,
        )

    @property
    def stays_eager(self) -> bool:
        """Whether training.compile = "auto" compiles nothing, on any device: nobody has tried it on four bits, and on
        layers that send messages.
        """
        return self.model.quantization is not None or self.parallel.tensor > 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.dtype == "bfloat16" and self.training.optimizer == "adamw" and self.lora is None:
            raise ValueError(stands_still(self.training))
        try:
            check_supported(self.setting())
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if isinstance(self.objective, PretrainingConfig):
            check_mixture(self.objective, num_sources=len(self.data.train), tokens=self.training.tokens)
        if isinstance(self.objective, RlhfConfig):
            check_lengths(self.objective, max_length=self.data.max_length, tokens=self.training.tokens)
        return self


def check_lengths(objective: RlhfConfig, *, max_length: int, tokens: int | None) -> None:
    """Raise ValueError for answers that leave no room for prompts, or for a run that ends after so many tokens."""
    if objective.max_tokens >= max_length:
        answer = f"objective.max_tokens = {objective.max_tokens}"
        raise ValueError(f"{answer} leaves no room for prompts in data.max_length = {max_length}")
    if tokens is not None:
        raise ValueError("training.tokens cannot be counted ahead where answers are sampled: give training.steps")


def check_mixture(objective: PretrainingConfig, *, num_sources: int, tokens: int | None) -> None:
    """Raise ValueError for weights that do not go with the sources, or with how the run ends."""
    for name, weights in (("weights", objective.weights), ("final_weights", objective.final_weights)):
        if weights and len(weights) != num_sources:
            raise ValueError(f"objective.{name} has {len(weights)} numbers for {num_sources} entries of data.train")
        if weights and (min(weights) < 0 or sum(weights) == 0):
            raise ValueError(f"objective.{name} needs numbers from 0 on, one of them above 0")
    if objective.final_weights and tokens is not None:
        raise ValueError("objective.final_weights needs to know the last step: give training.steps, not tokens")


def stands_still(training: TrainingConfig) -> str:
    """What is wrong with an optimizer that rounds bfloat16 weights to the nearest: a step moves a weight by about the
    learning rate, and is lost on those above 512 of it, whose half spacing is larger (eight significant bits).
    """
    rate = training.learning_rate
    return (
        f'training.optimizer = "{training.optimizer}" rounds bfloat16 weights to the nearest value: at '
        f"learning_rate = {rate:g} weights above {512 * rate:.2g} would stand still. Use "
        'training.optimizer = "adamw_bf16" (rounds at random, right on average), or model.dtype = "float32"'
    )
