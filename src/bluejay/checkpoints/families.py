"""Published configurations and ours: `config.json` of each family, and GGUF metadata.

Keys are those of transformers (configuration_gptj.py and its siblings, both the flat form of
version 4 and the `rope_parameters` of version 5) and of the GGUF specification.
"""

from collections.abc import Callable, Mapping
from typing import Any

from bluejay.checkpoints.config_fields import ConfigFields
from bluejay.core.errors import CheckpointError, UsageError
from bluejay.model.config import (
    Activation,
    BlockVariant,
    DecoderConfig,
    PositionConfig,
    even_head_dim,
)
from bluejay.model.presets import GPTJ_BLOCK, LLAMA_BLOCK

_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu_erf",
}
_ACTIVATION_NAMES = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu"}


def read_config(published: Mapping[str, Any], *, where: str) -> tuple[str, DecoderConfig]:
    """(family, config) of a published `config.json`.

    Raises CheckpointError naming `where`, the key and its value if the family is not ours or the
    configuration asks for something that this decoder does not compute.
    """
    family = published.get("model_type")
    if family not in READERS:
        raise CheckpointError(
            f"{where}: model_type {family!r} is not one of {', '.join(READERS)}: "
            "only these decoders can be run."
        )
    try:
        return str(family), READERS[str(family)](ConfigFields(published, where=where))
    except UsageError as error:
        raise CheckpointError(f"{where}: {error}") from error


def write_config(family: str, config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` body of that family, without token ids and dtype."""
    return WRITERS[family](config)


def family_of(config: DecoderConfig) -> str:
    """The published family whose model class computes exactly this decoder.

    Raises UsageError if transformers has none.
    """
    for family, write in WRITERS.items():
        if family == "codegen":  # the same block as gptj, differently stored
            continue
        try:
            _, again = read_config({"model_type": family, **write(config)}, where=family)
        except (CheckpointError, KeyError):
            continue
        if again == config:
            return family
    raise UsageError(
        "No published model class computes this decoder "
        f"({config.variant}, {config.position}): export it in the native format."
    )


def _read_gptj(fields: ConfigFields) -> DecoderConfig:
    width, heads = fields.size("n_embd"), fields.size("n_head")
    head_dim = even_head_dim(width, heads)
    return DecoderConfig(
        num_layers=fields.size("n_layer"),
        embed_dim=width,
        num_heads=heads,
        head_dim=head_dim,
        num_kv_heads=heads,
        feed_forward_dim=fields.size("n_inner", 4 * width),
        vocab_size=fields.size("vocab_size"),
        context_length=fields.size("n_positions"),
        position=PositionConfig(rotary_dim=fields.size("rotary_dim", head_dim)),
        variant=BlockVariant(
            activation=fields.choice("activation_function", _ACTIVATIONS, "gelu_new"),
            tied_head=fields.flag("tie_word_embeddings", False),
        ),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
    )


def _write_gptj(config: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "gptj",
        "architectures": ["GPTJForCausalLM"],
        "activation_function": _ACTIVATION_NAMES[config.variant.activation],
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.02,
        "layer_norm_epsilon": config.norm_eps,
        "n_embd": config.embed_dim,
        "n_head": config.num_heads,
        "n_inner": config.feed_forward_dim,
        "n_layer": config.num_layers,
        "n_positions": config.context_length,
        "rotary_dim": config.position.rotary_dim,
        "tie_word_embeddings": config.variant.tied_head,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def _write_codegen(config: DecoderConfig) -> dict[str, Any]:
    return {
        **_write_gptj(config),
        "model_type": "codegen",
        "architectures": ["CodeGenForCausalLM"],
        "n_ctx": config.context_length,
    }


def _read_gpt_neox(fields: ConfigFields) -> DecoderConfig:
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_dim = even_head_dim(width, heads)
    rope = fields.rope()
    share = rope.number("partial_rotary_factor", fields.number("rotary_pct", 0.25))
    base = rope.number("rope_theta", fields.number("rotary_emb_base", 10_000.0))
    return DecoderConfig(
        num_layers=fields.size("num_hidden_layers"),
        embed_dim=width,
        num_heads=heads,
        head_dim=head_dim,
        num_kv_heads=heads,
        feed_forward_dim=fields.size("intermediate_size"),
        vocab_size=fields.size("vocab_size"),
        context_length=fields.size("max_position_embeddings"),
        position=PositionConfig(
            kind="rotary_half", rotary_dim=int(head_dim * share), rotary_base=base
        ),
        variant=BlockVariant(
            num_norms=2,
            arrangement="parallel" if fields.flag("use_parallel_residual", True) else "sequential",
            activation=fields.choice("hidden_act", _ACTIVATIONS, "gelu"),
            attention_bias=fields.flag("attention_bias", True),
            head_bias=False,
            tied_head=fields.flag("tie_word_embeddings", False),
        ),
        norm_eps=fields.number("layer_norm_eps", 1e-5),
    )


def _write_gpt_neox(config: DecoderConfig) -> dict[str, Any]:
    variant, position = config.variant, config.position
    share = position.rotary_dim / config.head_dim
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "attention_bias": variant.attention_bias,
        "hidden_act": _ACTIVATION_NAMES[variant.activation],
        "hidden_size": config.embed_dim,
        "initializer_range": 0.02,
        "intermediate_size": config.feed_forward_dim,
        "layer_norm_eps": config.norm_eps,
        "max_position_embeddings": config.context_length,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "rotary_pct": share,
        "rotary_emb_base": position.rotary_base,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": position.rotary_base,
            "partial_rotary_factor": share,
        },
        "tie_word_embeddings": variant.tied_head,
        "use_cache": True,
        "use_parallel_residual": variant.arrangement == "parallel",
        "vocab_size": config.vocab_size,
    }


def _read_gpt2(fields: ConfigFields) -> DecoderConfig:
    fields.require("scale_attn_weights", True)
    fields.require("scale_attn_by_inverse_layer_idx", False)
    fields.require("add_cross_attention", False)
    width, heads = fields.size("n_embd"), fields.size("n_head")
    return DecoderConfig(
        num_layers=fields.size("n_layer"),
        embed_dim=width,
        num_heads=heads,
        head_dim=even_head_dim(width, heads),
        num_kv_heads=heads,
        feed_forward_dim=fields.size("n_inner", 4 * width),
        vocab_size=fields.size("vocab_size"),
        context_length=fields.size("n_positions", fields.size("n_ctx", 1024)),
        position=PositionConfig(kind="learned"),
        variant=BlockVariant(
            num_norms=2,
            arrangement="sequential",
            activation=fields.choice("activation_function", _ACTIVATIONS, "gelu_new"),
            attention_bias=True,
            head_bias=False,
            tied_head=fields.flag("tie_word_embeddings", True),
        ),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
    )


def _write_gpt2(config: DecoderConfig) -> dict[str, Any]:
    plain = _write_gptj(config)
    del plain["rotary_dim"]
    return {**plain, "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}


def _read_llama(fields: ConfigFields) -> DecoderConfig:
    fields.require("hidden_act", "silu")
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    given = fields.size("head_dim", 0, smallest=0)
    head_dim = given or even_head_dim(width, heads)
    return DecoderConfig(
        num_layers=fields.size("num_hidden_layers"),
        embed_dim=width,
        num_heads=heads,
        head_dim=head_dim,
        num_kv_heads=fields.size("num_key_value_heads", heads),
        feed_forward_dim=fields.size("intermediate_size"),
        vocab_size=fields.size("vocab_size"),
        context_length=fields.size("max_position_embeddings", 2048),
        position=PositionConfig(
            kind="rotary_half",
            rotary_dim=head_dim,
            rotary_base=fields.rope().number("rope_theta", fields.number("rope_theta", 10_000.0)),
        ),
        variant=BlockVariant(
            norm="rms",
            num_norms=2,
            arrangement="sequential",
            activation="silu_gated",
            attention_bias=fields.flag("attention_bias", False),
            feed_forward_bias=fields.flag("mlp_bias", False),
            head_bias=False,
            tied_head=fields.flag("tie_word_embeddings", False),
        ),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
    )


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
    base = config.position.rotary_base
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": config.variant.attention_bias,
        "attention_dropout": 0.0,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.embed_dim,
        "initializer_range": 0.02,
        "intermediate_size": config.feed_forward_dim,
        "max_position_embeddings": config.context_length,
        "mlp_bias": config.variant.feed_forward_bias,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": base,
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "tie_word_embeddings": config.variant.tied_head,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def read_gguf_config(
    metadata: Mapping[str, object], *, tied_head: bool, vocab_size: int, where: str
) -> tuple[str, DecoderConfig]:
    """(family, config) from GGUF metadata; only the architecture `llama` is run from GGUF."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(
            f"{where}: GGUF architecture {architecture!r} is not 'llama': "
            "use the model's Hugging Face folder instead."
        )
    fields = ConfigFields(metadata, where=where, prefix="llama.")
    width, heads = fields.size("embedding_length"), fields.size("attention.head_count")
    fields.require("rope.scaling.type", "none")
    fields.require("expert_count", 0)
    try:
        head_dim = fields.size("attention.key_length", 0, smallest=0) or even_head_dim(width, heads)
        return "llama", DecoderConfig(
            num_layers=fields.size("block_count"),
            embed_dim=width,
            num_heads=heads,
            head_dim=head_dim,
            num_kv_heads=fields.size("attention.head_count_kv", heads),
            feed_forward_dim=fields.size("feed_forward_length"),
            vocab_size=vocab_size,
            context_length=fields.size("context_length"),
            position=PositionConfig(
                kind="rotary_half",
                rotary_dim=fields.size("rope.dimension_count", head_dim),
                rotary_base=fields.number("rope.freq_base", 10_000.0),
            ),
            variant=BlockVariant(**{**vars(LLAMA_BLOCK), "tied_head": tied_head}),
            norm_eps=_float32_as_written(fields.number("attention.layer_norm_rms_epsilon")),
        )
    except UsageError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _float32_as_written(value: float) -> float:
    """The decimal number that a float32 came from: 9.99999974e-06 was written as 1e-05."""
    return float(f"{value:.7g}")


def mesh_transformer_config(shapes: Mapping[str, tuple[int, ...]], *, where: str) -> DecoderConfig:
    """The config of original npz shards, which carry shapes alone.

    Number and width of heads are not in them: they are GPT-J's, heads of 256 of which 64 values
    turn, or fewer where the width is smaller than one such head.
    """
    vocab_size, width = shapes["embedding/w"]
    num_layers = sum(name.endswith("/q/w") for name in shapes)
    head_dim = min(256, width)
    if width % head_dim:
        raise CheckpointError(
            f"{where}: a width of {width} does not divide into GPT-J's heads of 256: "
            "put the original configuration beside the shards as config.json."
        )
    return DecoderConfig(
        num_layers=num_layers,
        embed_dim=width,
        num_heads=width // head_dim,
        head_dim=head_dim,
        num_kv_heads=width // head_dim,
        feed_forward_dim=shapes["layer_0/fc_in/w"][1],
        vocab_size=vocab_size,
        context_length=2048,
        position=PositionConfig(rotary_dim=min(64, head_dim)),
        variant=GPTJ_BLOCK,
    )


READERS: dict[str, Callable[[ConfigFields], DecoderConfig]] = {
    "gptj": _read_gptj,
    "codegen": _read_gptj,
    "gpt_neox": _read_gpt_neox,
    "gpt2": _read_gpt2,
    "llama": _read_llama,
}
WRITERS: dict[str, Callable[[DecoderConfig], dict[str, Any]]] = {
    "gptj": _write_gptj,
    "codegen": _write_codegen,
    "gpt_neox": _write_gpt_neox,
    "gpt2": _write_gpt2,
    "llama": _write_llama,
}
