"""Conversion tables: the published name and layout of every tensor, by family. Data, no code.

`{layer}` stands for a layer's number. Sources: the state dicts of transformers' model classes,
the GGUF specification's tensor names, and mesh-transformer-jax's parameter tree as
`bluejay.checkpoints.mesh_transformer` names it.
"""

from dataclasses import dataclass

_QKV = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One published tensor, the native tensors it holds, and its layout's name."""

    published: str
    native: tuple[str, ...]
    layout: str = "same"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A family's rules. `prefix` may be missing from files saved from the bare model; `ignored`
    are regular expressions of buffers that carry no weights."""

    rules: tuple[Rule, ...]
    prefix: str = ""
    ignored: tuple[str, ...] = ()


def _rules(
    names: dict[str, str], *, layout: str = "same", layouts: dict[str, str] | None = None
) -> tuple[Rule, ...]:
    chosen = layouts or {}
    return tuple(
        Rule(published=published, native=(native,), layout=chosen.get(published, layout))
        for published, native in names.items()
    )


def _fused(published: str, layout: str, suffix: str = "") -> Rule:
    native = tuple(f"blocks.{{layer}}.attention.{part}{suffix}" for part in _QKV)
    return Rule(published=published, native=native, layout=layout)


_GPTJ_AROUND = _rules(
    {
        "transformer.wte.weight": "embedding",
        "transformer.h.{layer}.ln_1.weight": "blocks.{layer}.attention_norm.scale",
        "transformer.h.{layer}.ln_1.bias": "blocks.{layer}.attention_norm.bias",
        "transformer.h.{layer}.attn.out_proj.weight": "blocks.{layer}.attention.out",
        "transformer.h.{layer}.mlp.fc_in.weight": "blocks.{layer}.feed_forward.up",
        "transformer.h.{layer}.mlp.fc_in.bias": "blocks.{layer}.feed_forward.up_bias",
        "transformer.h.{layer}.mlp.fc_out.weight": "blocks.{layer}.feed_forward.down",
        "transformer.h.{layer}.mlp.fc_out.bias": "blocks.{layer}.feed_forward.down_bias",
        "transformer.ln_f.weight": "final_norm.scale",
        "transformer.ln_f.bias": "final_norm.bias",
        "lm_head.weight": "head",
        "lm_head.bias": "head_bias",
    }
)
_GPTJ_BUFFERS = (r"h\.\d+\.attn\.(bias|masked_bias|causal_mask|embed_positions)$",)

_GPTJ = Table(
    prefix="transformer.",
    ignored=_GPTJ_BUFFERS,
    rules=_GPTJ_AROUND
    + _rules(
        {
            "transformer.h.{layer}.attn.q_proj.weight": "blocks.{layer}.attention.query",
            "transformer.h.{layer}.attn.k_proj.weight": "blocks.{layer}.attention.key",
            "transformer.h.{layer}.attn.v_proj.weight": "blocks.{layer}.attention.value",
        }
    ),
)
_CODEGEN = Table(
    prefix="transformer.",
    ignored=_GPTJ_BUFFERS,
    rules=(
        *_GPTJ_AROUND,
        _fused("transformer.h.{layer}.attn.qkv_proj.weight", "codegen_fused"),
    ),
)
_GPT_NEOX = Table(
    prefix="gpt_neox.",
    ignored=(
        r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
        r"rotary_emb\.inv_freq$",
    ),
    rules=(
        *_rules(
            {
                "gpt_neox.embed_in.weight": "embedding",
                "gpt_neox.final_layer_norm.weight": "final_norm.scale",
                "gpt_neox.final_layer_norm.bias": "final_norm.bias",
                "embed_out.weight": "head",
            }
        ),
        *_rules(
            {
                f"gpt_neox.layers.{{layer}}.{published}": f"blocks.{{layer}}.{native}"
                for published, native in (
                    ("input_layernorm.weight", "attention_norm.scale"),
                    ("input_layernorm.bias", "attention_norm.bias"),
                    ("post_attention_layernorm.weight", "feed_forward_norm.scale"),
                    ("post_attention_layernorm.bias", "feed_forward_norm.bias"),
                    ("attention.dense.weight", "attention.out"),
                    ("attention.dense.bias", "attention.out_bias"),
                    ("mlp.dense_h_to_4h.weight", "feed_forward.up"),
                    ("mlp.dense_h_to_4h.bias", "feed_forward.up_bias"),
                    ("mlp.dense_4h_to_h.weight", "feed_forward.down"),
                    ("mlp.dense_4h_to_h.bias", "feed_forward.down_bias"),
                )
            }
        ),
        _fused("gpt_neox.layers.{layer}.attention.query_key_value.weight", "fused_by_head"),
        _fused("gpt_neox.layers.{layer}.attention.query_key_value.bias", "fused_by_head", "_bias"),
    ),
)
_GPT2 = Table(
    prefix="transformer.",
    ignored=(r"h\.\d+\.attn\.(bias|masked_bias)$",),
    rules=(
        *_rules(
            {
                "transformer.wte.weight": "embedding",
                "transformer.wpe.weight": "positions",
                "transformer.ln_f.weight": "final_norm.scale",
                "transformer.ln_f.bias": "final_norm.bias",
                "transformer.h.{layer}.ln_1.weight": "blocks.{layer}.attention_norm.scale",
                "transformer.h.{layer}.ln_1.bias": "blocks.{layer}.attention_norm.bias",
                "transformer.h.{layer}.ln_2.weight": "blocks.{layer}.feed_forward_norm.scale",
                "transformer.h.{layer}.ln_2.bias": "blocks.{layer}.feed_forward_norm.bias",
                "transformer.h.{layer}.attn.c_proj.bias": "blocks.{layer}.attention.out_bias",
                "transformer.h.{layer}.mlp.c_fc.bias": "blocks.{layer}.feed_forward.up_bias",
                "transformer.h.{layer}.mlp.c_proj.bias": "blocks.{layer}.feed_forward.down_bias",
                "lm_head.weight": "head",
            }
        ),
        *_rules(
            {
                "transformer.h.{layer}.attn.c_proj.weight": "blocks.{layer}.attention.out",
                "transformer.h.{layer}.mlp.c_fc.weight": "blocks.{layer}.feed_forward.up",
                "transformer.h.{layer}.mlp.c_proj.weight": "blocks.{layer}.feed_forward.down",
            },
            layout="transposed",
        ),
        _fused("transformer.h.{layer}.attn.c_attn.weight", "fused_transposed"),
        _fused("transformer.h.{layer}.attn.c_attn.bias", "fused_transposed", "_bias"),
    ),
)
_LLAMA_LAYER = (
    ("input_layernorm.weight", "attention_norm.scale"),
    ("post_attention_layernorm.weight", "feed_forward_norm.scale"),
    ("self_attn.q_proj.weight", "attention.query"),
    ("self_attn.k_proj.weight", "attention.key"),
    ("self_attn.v_proj.weight", "attention.value"),
    ("self_attn.o_proj.weight", "attention.out"),
    ("self_attn.q_proj.bias", "attention.query_bias"),
    ("self_attn.k_proj.bias", "attention.key_bias"),
    ("self_attn.v_proj.bias", "attention.value_bias"),
    ("self_attn.o_proj.bias", "attention.out_bias"),
    ("mlp.gate_proj.weight", "feed_forward.gate"),
    ("mlp.up_proj.weight", "feed_forward.up"),
    ("mlp.up_proj.bias", "feed_forward.up_bias"),
    ("mlp.down_proj.weight", "feed_forward.down"),
    ("mlp.down_proj.bias", "feed_forward.down_bias"),
)
_LLAMA = Table(
    prefix="model.",
    ignored=(r"rotary_emb\.inv_freq$",),
    rules=_rules(
        {
            "model.embed_tokens.weight": "embedding",
            "model.norm.weight": "final_norm.scale",
            "lm_head.weight": "head",
        }
    )
    + _rules(
        {
            f"model.layers.{{layer}}.{published}": f"blocks.{{layer}}.{native}"
            for published, native in _LLAMA_LAYER
        }
    ),
)
_GGUF_LLAMA = Table(
    ignored=(r"^rope_freqs\.weight$",),
    rules=_rules(
        {
            "token_embd.weight": "embedding",
            "output_norm.weight": "final_norm.scale",
            "output.weight": "head",
            "blk.{layer}.attn_norm.weight": "blocks.{layer}.attention_norm.scale",
            "blk.{layer}.ffn_norm.weight": "blocks.{layer}.feed_forward_norm.scale",
            "blk.{layer}.attn_q.weight": "blocks.{layer}.attention.query",
            "blk.{layer}.attn_k.weight": "blocks.{layer}.attention.key",
            "blk.{layer}.attn_v.weight": "blocks.{layer}.attention.value",
            "blk.{layer}.attn_output.weight": "blocks.{layer}.attention.out",
            "blk.{layer}.ffn_gate.weight": "blocks.{layer}.feed_forward.gate",
            "blk.{layer}.ffn_up.weight": "blocks.{layer}.feed_forward.up",
            "blk.{layer}.ffn_down.weight": "blocks.{layer}.feed_forward.down",
        },
        layouts={
            "blk.{layer}.attn_q.weight": "interleaved_rows",
            "blk.{layer}.attn_k.weight": "interleaved_rows",
        },
    ),
)
_MESH_TRANSFORMER = Table(
    rules=_rules(
        {
            "layer_{layer}/norm/scale": "blocks.{layer}.attention_norm.scale",
            "layer_{layer}/norm/offset": "blocks.{layer}.attention_norm.bias",
            "layer_{layer}/fc_in/b": "blocks.{layer}.feed_forward.up_bias",
            "layer_{layer}/fc_out/b": "blocks.{layer}.feed_forward.down_bias",
            "embedding/w": "embedding",
            "final_norm/scale": "final_norm.scale",
            "final_norm/offset": "final_norm.bias",
            "head/b": "head_bias",
        }
    )
    + _rules(
        {
            "layer_{layer}/q/w": "blocks.{layer}.attention.query",
            "layer_{layer}/k/w": "blocks.{layer}.attention.key",
            "layer_{layer}/v/w": "blocks.{layer}.attention.value",
            "layer_{layer}/out/w": "blocks.{layer}.attention.out",
            "layer_{layer}/fc_in/w": "blocks.{layer}.feed_forward.up",
            "layer_{layer}/fc_out/w": "blocks.{layer}.feed_forward.down",
            "head/w": "head",
        },
        layout="transposed",
    ),
)

TABLES: dict[str, Table] = {
    "gptj": _GPTJ,
    "codegen": _CODEGEN,
    "gpt_neox": _GPT_NEOX,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "gguf-llama": _GGUF_LLAMA,
    "mesh-transformer": _MESH_TRANSFORMER,
}
