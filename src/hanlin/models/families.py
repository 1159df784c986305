"""Config files of Hugging Face checkpoints, read into a `ModelConfig` and written from one.

Sparse configs are laid over the family's own defaults: those of the `transformers` classes, which is what a field left
out of config.json means. Surprises: Gemma 1's "gelu" means the tanh form; rotary fields have three spellings (flat
fields, `rope_scaling`, `rope_parameters`), all of which are read; the older ones are written, because every version of
transformers and vLLM accepts them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from hanlin.errors import CheckpointError
from hanlin.models.config import ModelConfig, RopeScaling
from hanlin.models.layouts import FAMILIES, Family

SLIDING, FULL = "sliding_attention", "full_attention"
SCORE = "score.weight"  # a reward model's head, in our names and in Hugging Face's

# transformers' names for the two activations we have; "gelu_new" is the tanh form under its oldest name.
_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
# An explicit null switches these off; anywhere else null means "not given".
_NULL_MEANS_NONE = {"attn_logit_softcapping", "final_logit_softcapping", "sliding_window"}


class _Fields:
    """A config's fields over its family's defaults, read with type checks that name the field."""

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any], source: str) -> None:
        given = {key: value for key, value in raw.items() if value is not None or key in _NULL_MEANS_NONE}
        self.values: dict[str, Any] = {**defaults, **given}
        self.source = source

    def fail(self, field: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {field} is {value!r}; expected {expected}")

    def integer(self, field: str, default: int | None = None) -> int:
        value = self.values.get(field, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.fail(field, value, "a positive whole number")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        return self.positive(field, self.values.get(field, default))

    def positive(self, field: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.fail(field, value, "a positive number")
        return float(value)

    def optional_number(self, field: str) -> float | None:
        return None if self.values.get(field) is None else self.number(field)

    def flag(self, field: str, default: bool) -> bool:
        value = self.values.get(field, default)
        if not isinstance(value, bool):
            raise self.fail(field, value, "true or false")
        return value

    def mapping(self, field: str) -> dict[str, Any]:
        value = self.values.get(field) or {}
        if not isinstance(value, dict):
            raise self.fail(field, value, "an object")
        return value


def config_from_hf(raw: Mapping[str, Any], *, source: str = "config.json") -> ModelConfig:
    """The `ModelConfig` of a parsed config.json, of transformers 4.38 to 5.x; `source` names the file in errors.

    Raises CheckpointError, naming field, value and what is supported, for an unknown family and for anything that our
    decoder would compute differently: quantized weights, experts, biases other than Qwen2's, other rotary scalings,
    bidirectional attention.
    """
    family_name, given = _select(raw, source)
    family = FAMILIES[family_name]
    fields = _Fields(given, family.defaults, source)
    _refuse_unsupported(fields)
    num_layers, num_heads, width = (
        fields.integer("num_hidden_layers"),
        fields.integer("num_attention_heads"),
        fields.integer("hidden_size"),
    )
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.fail("num_key_value_heads", num_kv_heads, f"a divisor of num_attention_heads = {num_heads}")
    if "head_dim" not in fields.values and width % num_heads:
        raise fields.fail("hidden_size", width, f"a multiple of num_attention_heads = {num_heads}, or a head_dim")
    head_dim = fields.integer("head_dim", width // num_heads)
    if head_dim % 2:
        raise fields.fail("head_dim", head_dim, "an even number")
    rope_theta, rope_scaling, local_rope_theta = _rope(fields, family)
    scalar = fields.number("query_pre_attn_scalar") if family.query_scalar else float(head_dim)
    return ModelConfig(
        family=family_name,
        vocab_size=fields.integer("vocab_size"),
        num_layers=num_layers,
        width=width,
        ffn_width=fields.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_length=fields.integer("max_position_embeddings"),
        activation=_activation(fields, family_name),
        norm_eps=fields.number("rms_norm_eps"),
        norm_offset=family.norm_offset,
        post_norms=family.post_norms,
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
        scaled_embedding=family.scaled_embedding,
        tied_head=fields.flag("tie_word_embeddings", False),
        query_scale=scalar**-0.5,
        attention_cap=fields.optional_number("attn_logit_softcapping") if family.attention_cap else None,
        logit_cap=fields.optional_number("final_logit_softcapping") if family.logit_cap else None,
        windows=_windows(fields, family, num_layers),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        local_rope_theta=local_rope_theta,
    )


def config_notes(config: ModelConfig) -> list[str]:
    """What a user should know about a config that is obeyed all the same."""
    notes = []
    is_9b = config.family == "gemma2" and (config.width, config.num_layers, config.head_dim) == (3584, 42, 256)
    if is_9b and config.query_scale == 224**-0.5:
        notes.append(
            "query_pre_attn_scalar is 224, as in the first days of Gemma 2 9B; Google's corrected value is 256. "
            "Obeyed, because a model tuned with 224 needs it; write 256 into config.json for Google's own weights."
        )
    return notes


def _select(raw: Mapping[str, Any], source: str) -> tuple[str, Mapping[str, Any]]:
    """The family's name and the fields of the text model (Gemma 3 with vision keeps them in `text_config`)."""
    model_type = raw.get("model_type")
    supported = [kind for family in FAMILIES.values() for kind in family.model_types]
    name = next((name for name, family in FAMILIES.items() if model_type in family.model_types), None)
    if name is None:
        raise CheckpointError(f"{source}: model_type is {model_type!r}; supported: {', '.join(supported)}")
    if raw.get("sliding_window_size") is not None and "sliding_window" not in raw:
        return name, {**raw, "sliding_window": raw["sliding_window_size"]}  # Gemma 2 before transformers 4.43
    if model_type != "gemma3":
        return name, raw
    text = raw.get("text_config") or {}
    if not isinstance(text, dict):
        raise CheckpointError(f"{source}: text_config is {text!r}; expected an object")
    outer = {key: raw[key] for key in ("tie_word_embeddings", "quantization_config") if raw.get(key) is not None}
    return name, {**outer, **text}


def _refuse_unsupported(fields: _Fields) -> None:
    values = fields.values
    if values.get("quantization_config"):
        method = fields.mapping("quantization_config").get("quant_method")
        raise fields.fail(
            "quantization_config.quant_method", method, "none: open the bf16, fp16 or fp32 checkpoint, or a GGUF file"
        )
    for field in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if values.get(field):
            raise fields.fail(field, values[field], "false, the only supported value")
    for field in ("num_experts", "num_local_experts", "n_routed_experts"):
        if values.get(field):
            raise fields.fail(field, values[field], "a dense model: mixtures of experts are not supported")


def _activation(fields: _Fields, family: str) -> Literal["silu", "gelu_tanh"]:
    """Gemma 2 and 3 read `hidden_activation`; Gemma 1 has had both; Llama and Qwen2 read `hidden_act`."""
    gemma = family.startswith("gemma")
    field = "hidden_activation" if gemma and "hidden_activation" in fields.values else "hidden_act"
    name = fields.values[field]
    if gemma and name == "gelu" and (field == "hidden_act" or family == "gemma"):
        return "gelu_tanh"  # transformers #29402: the released configs say "gelu" and mean the tanh form
    if gemma and family != "gemma" and field == "hidden_act":
        return "gelu_tanh"  # never read by transformers there
    if name not in _ACTIVATIONS:
        raise fields.fail(field, name, "one of " + ", ".join(_ACTIVATIONS))
    return _ACTIVATIONS[name]


def _windows(fields: _Fields, family: Family, num_layers: int) -> tuple[int | None, ...]:
    kinds = fields.values.get("layer_types")
    known = isinstance(kinds, list) and len(kinds) == num_layers and all(kind in (SLIDING, FULL) for kind in kinds)
    if kinds is not None and not known:
        raise fields.fail("layer_types", kinds, f"a list of {num_layers} entries, each {SLIDING!r} or {FULL!r}")
    if family.windows is None:
        if kinds is not None and SLIDING in kinds:
            raise fields.fail("layer_types", kinds, f"{FULL!r} only: this family has no sliding windows")
        return (None,) * num_layers
    if kinds is None and family.windows == "pattern":
        pattern = fields.integer("sliding_window_pattern")
        kinds = [SLIDING if (layer + 1) % pattern else FULL for layer in range(num_layers)]
    if family.windows == "qwen2" and not fields.flag("use_sliding_window", False):
        if kinds is not None and SLIDING in kinds:
            raise fields.fail("use_sliding_window", False, f"true, because layer_types names {SLIDING!r}")
        return (None,) * num_layers
    if kinds is None:
        first = fields.values["max_window_layers"]
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise fields.fail("max_window_layers", first, "a whole number")
        kinds = [SLIDING if layer >= first else FULL for layer in range(num_layers)]
    if fields.values["sliding_window"] is None or SLIDING not in kinds:
        return (None,) * num_layers
    window = fields.integer("sliding_window")
    return tuple(window if kind == SLIDING else None for kind in kinds)


def _rope(fields: _Fields, family: Family) -> tuple[float, RopeScaling | None, float | None]:
    """theta, its scaling and the theta of local layers, from any of the three spellings.

    Precedence as in transformers 5 (`convert_rope_params_to_dict`): a non-empty `rope_scaling` over `rope_parameters`,
    and values inside them over the flat fields.
    """
    new, old = fields.mapping("rope_parameters"), fields.mapping("rope_scaling")
    if FULL in old or SLIDING in old:
        new, old = old, {}
    per_layer = FULL in new or SLIDING in new
    whole, local = (new.get(FULL) or {}, new.get(SLIDING) or {}) if per_layer else (new, {})
    name = "rope_scaling" if old else "rope_parameters"
    if per_layer and not family.local_theta and local and local != whole:
        raise fields.fail(
            f"rope_parameters.{SLIDING}", local, "the same as full_attention: this family has one rotation"
        )
    if old:
        kind = old.get("rope_type", old.get("type", "default"))
        whole = {**(whole if family.local_theta else {}), **old, "rope_type": kind}
    theta = fields.positive("rope_theta", whole.get("rope_theta") or fields.values["rope_theta"])
    scaling = _rope_scaling(fields, whole, name)
    if not family.local_theta:
        return theta, scaling, None
    if _rope_scaling(fields, local, f"rope_parameters.{SLIDING}") is not None:
        raise fields.fail(f"rope_parameters.{SLIDING}", local, "rope_type 'default': local layers are never scaled")
    local_theta = local.get("rope_theta") or fields.values["rope_local_base_freq"]
    return theta, scaling, fields.positive("rope_local_base_freq", local_theta)


def _rope_scaling(fields: _Fields, values: Mapping[str, Any], name: str) -> RopeScaling | None:
    kind = values.get("rope_type", values.get("type", "default"))
    partial = values.get("partial_rotary_factor") or fields.values.get("partial_rotary_factor") or 1
    if partial != 1:
        raise fields.fail("partial_rotary_factor", partial, "1, the only supported value")

    def number(key: str) -> float:
        return fields.positive(f"{name}.{key}", values.get(key))

    match kind:
        case "default" | None:
            return None
        case "linear":
            return RopeScaling(kind="linear", factor=number("factor"))
        case "llama3":
            original = values.get("original_max_position_embeddings") or fields.integer("max_position_embeddings")
            return RopeScaling(
                kind="llama3",
                factor=number("factor"),
                low_freq_factor=number("low_freq_factor"),
                high_freq_factor=number("high_freq_factor"),
                original_max_length=int(fields.positive(f"{name}.original_max_position_embeddings", original)),
            )
    raise fields.fail(f"{name}.rope_type", kind, "one of 'default', 'linear', 'llama3'")


def config_to_hf(
    config: ModelConfig,
    dtype: str,
    *,
    bos_id: int | None = None,
    eos_ids: tuple[int, ...] = (),
    pad_id: int | None = None,
) -> dict[str, Any]:
    """A config.json that transformers 4.4x and 5.x and vLLM read alike; `dtype` is "bfloat16", "float16" or "float32".

    Fields that have two spellings are written in the older one, which every version accepts, or in both. Token ids are
    always written, null where unknown, because the classes' defaults would be wrong. Raises CheckpointError for a
    config that its family cannot express.
    """
    family = FAMILIES[config.family]
    hf_activation = "silu" if config.activation == "silu" else "gelu_pytorch_tanh"
    raw: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_types[0],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "hidden_act": hf_activation,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling_to_hf(config.rope_scaling),
        "tie_word_embeddings": config.tied_head,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": bos_id,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids) or None,
        "pad_token_id": pad_id,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if config.family != "qwen2":
        raw["attention_bias"] = False
    if config.family == "llama":
        raw["mlp_bias"] = False
    if config.scaled_embedding:
        raw["hidden_activation"] = hf_activation
    if family.query_scalar:
        scalar = config.query_scale**-2
        raw["query_pre_attn_scalar"] = round(scalar) if round(scalar) ** -0.5 == config.query_scale else scalar
    if family.logit_cap:
        raw |= {"attn_logit_softcapping": config.attention_cap, "final_logit_softcapping": config.logit_cap}
    if family.local_theta:
        raw["rope_local_base_freq"] = config.local_rope_theta
    if family.windows is not None:
        raw |= _windows_to_hf(config, family.windows)
    if config_from_hf(raw) != config:
        raise CheckpointError(f"this configuration cannot be written as a {config.family} checkpoint: {config}")
    return raw


def _rope_scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    raw: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return {"type": "linear", **raw}  # transformers before 4.43 reads only "type"
    return raw | {
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_length,
    }


def _windows_to_hf(config: ModelConfig, kind: Literal["pattern", "qwen2"]) -> dict[str, Any]:
    local = [window is not None for window in config.windows]
    sizes = {window for window in config.windows if window is not None}
    if len(sizes) > 1:
        raise CheckpointError(f"windows of {sorted(sizes)} tokens in one model: config.json can hold only one size")
    raw: dict[str, Any] = {
        "layer_types": [SLIDING if is_local else FULL for is_local in local],
        # Without windows Gemma gets a harmless size: transformers makes the mask even if no layer uses it.
        "sliding_window": next(iter(sizes), 4096 if kind == "pattern" else None),
    }
    if kind == "qwen2":
        raw |= {"use_sliding_window": any(local), "max_window_layers": [*local, True].index(True)}
        return raw
    # transformers before 4.53 reads only the pattern; any longer than the model means "local everywhere".
    patterns = range(1, max(config.num_layers, 6) + 2)
    matching = [p for p in patterns if local == [bool((layer + 1) % p) for layer in range(config.num_layers)]]
    if config.family == "gemma3" and matching:
        raw["sliding_window_pattern"] = 6 if 6 in matching else matching[0]
    return raw


def without_head(config: ModelConfig) -> ModelConfig:
    """The shape of a decoder that has no matrix for logits."""
    return replace(config, tied_head=True)


def as_classifier(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A language model's config.json as that of a classifier with one label."""
    (causal,) = raw["architectures"]
    name = causal.replace("ForCausalLM", "ForSequenceClassification")
    if raw["model_type"] == "gemma3_text":
        name = "Gemma3TextForSequenceClassification"
    labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "num_labels": 1}
    return {**raw, "architectures": [name], **labels}
