"""Published sizes of the family, and our own small ones, by name.

Numbers: the published configurations (mesh-transformer-jax configs/6B_roto_256.json; the CodeGen,
Pythia, GPT-2 and SmolLM2 model cards; Brown et al. 2020; Smith et al. 2022). A model folder's own
config.json always wins over a preset.
"""

from dataclasses import replace

from bluejay.core.errors import UsageError
from bluejay.model.config import BlockVariant, DecoderConfig, PositionConfig, even_head_dim

GPTJ_BLOCK = BlockVariant()
NEOX_BLOCK = BlockVariant(num_norms=2, activation="gelu_erf", attention_bias=True, head_bias=False)
GPT2_BLOCK = BlockVariant(
    num_norms=2,
    arrangement="sequential",
    attention_bias=True,
    head_bias=False,
    tied_head=True,
)
LLAMA_BLOCK = BlockVariant(
    norm="rms",
    num_norms=2,
    arrangement="sequential",
    activation="silu_gated",
    feed_forward_bias=False,
    head_bias=False,
    tied_head=True,
)


def gptj_config(
    num_layers: int, embed_dim: int, num_heads: int, *, rotary_dim: int, vocab_size: int = 50_400
) -> DecoderConfig:
    """A GPT-J or CodeGen of the given size with 2048 positions and a feed-forward of 4 widths."""
    return DecoderConfig(
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=num_heads,
        head_dim=even_head_dim(embed_dim, num_heads),
        num_kv_heads=num_heads,
        feed_forward_dim=4 * embed_dim,
        vocab_size=vocab_size,
        context_length=2048,
        position=PositionConfig(rotary_dim=rotary_dim),
        variant=GPTJ_BLOCK,
    )


def _pythia(
    num_layers: int, embed_dim: int, num_heads: int, *, vocab_size: int = 50_304
) -> DecoderConfig:
    head_dim = even_head_dim(embed_dim, num_heads)
    plain = gptj_config(num_layers, embed_dim, num_heads, rotary_dim=2, vocab_size=vocab_size)
    return replace(
        plain,
        position=PositionConfig(kind="rotary_half", rotary_dim=head_dim // 4),
        variant=NEOX_BLOCK,
    )


def _gpt2(
    num_layers: int,
    embed_dim: int,
    num_heads: int,
    *,
    vocab_size: int = 50_257,
    context_length: int = 1024,
) -> DecoderConfig:
    plain = gptj_config(num_layers, embed_dim, num_heads, rotary_dim=2, vocab_size=vocab_size)
    return replace(
        plain,
        context_length=context_length,
        position=PositionConfig(kind="learned"),
        variant=GPT2_BLOCK,
    )


_SMOLLM2_135M = DecoderConfig(
    num_layers=30,
    embed_dim=576,
    num_heads=9,
    head_dim=64,
    num_kv_heads=3,
    feed_forward_dim=1536,
    vocab_size=49_152,
    context_length=8192,
    position=PositionConfig(kind="rotary_half", rotary_dim=64, rotary_base=100_000.0),
    variant=LLAMA_BLOCK,
)

PRESETS: dict[str, DecoderConfig] = {
    "gptj-6b": gptj_config(28, 4096, 16, rotary_dim=64),
    # Our own: GPT-J blocks in sizes that a laptop trains.
    "gptj-nano": replace(gptj_config(2, 64, 4, rotary_dim=8, vocab_size=512), context_length=256),
    "gptj-tiny": replace(
        gptj_config(6, 256, 4, rotary_dim=32, vocab_size=4096), context_length=512
    ),
    "bluejay-tiny": replace(
        gptj_config(6, 224, 7, rotary_dim=16, vocab_size=4096), context_length=256
    ),
    "bluejay-small": replace(
        gptj_config(8, 448, 7, rotary_dim=32, vocab_size=8192), context_length=512
    ),
    "gptj-small": replace(
        gptj_config(8, 512, 8, rotary_dim=32, vocab_size=8192), context_length=1024
    ),
    "codegen-350m": gptj_config(20, 1024, 16, rotary_dim=32, vocab_size=51_200),
    "codegen-2b": gptj_config(32, 2560, 32, rotary_dim=64, vocab_size=51_200),
    "codegen-6b": gptj_config(33, 4096, 16, rotary_dim=64, vocab_size=51_200),
    "codegen-16b": gptj_config(34, 6144, 24, rotary_dim=64, vocab_size=51_200),
    "pythia-70m": _pythia(6, 512, 8),
    "pythia-160m": _pythia(12, 768, 12),
    "pythia-410m": _pythia(24, 1024, 16),
    "pythia-1b": _pythia(16, 2048, 8),
    "pythia-1.4b": _pythia(24, 2048, 16),
    "pythia-2.8b": _pythia(32, 2560, 32),
    "pythia-6.9b": _pythia(32, 4096, 32, vocab_size=50_432),
    "pythia-12b": _pythia(36, 5120, 40, vocab_size=50_688),
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    # The original alternates dense and locally banded sparse attention; ours is dense throughout.
    "gpt3-175b": _gpt2(96, 12_288, 96, context_length=2048),
    "mt-nlg-530b": _gpt2(105, 20_480, 128, vocab_size=51_200, context_length=2048),
    "smollm2-135m-instruct": _SMOLLM2_135M,
}


def preset(name: str) -> DecoderConfig:
    """The configuration of that name, or UsageError with the names there are."""
    if name not in PRESETS:
        raise UsageError(f"There is no preset {name!r}: the presets are {', '.join(PRESETS)}.")
    return PRESETS[name]
