"""What a decoder is: sizes, and the variant of each part, chosen once and checked at creation."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from bluejay.core.errors import UsageError

NormKind = Literal["layer", "rms"]
Arrangement = Literal["parallel", "sequential"]
Activation = Literal["gelu_tanh", "gelu_erf", "silu_gated"]
PositionKind = Literal["rotary_interleaved", "rotary_half", "learned"]

# A bound on every size: a forged config must be refused before anything is built from it. The
# largest published dense decoder has 118 layers and a width of 20,480.
_LARGEST_SIZE = 1 << 24
_MOST_LAYERS = 1024


@dataclass(frozen=True, kw_only=True)
class BlockVariant:
    """Which form each part of a block takes; the defaults are GPT-J's.

    `num_norms` is the number of norms that feed one block: 1 is GPT-J's shared norm (parallel
    blocks only), 2 is everybody else's.
    """

    norm: NormKind = "layer"
    num_norms: int = 1
    arrangement: Arrangement = "parallel"
    activation: Activation = "gelu_tanh"
    attention_bias: bool = False
    feed_forward_bias: bool = True
    head_bias: bool = True
    tied_head: bool = False

    def __post_init__(self) -> None:
        _require_choice("norm", self.norm, get_args(NormKind))
        _require_choice("arrangement", self.arrangement, get_args(Arrangement))
        _require_choice("activation", self.activation, get_args(Activation))
        if self.num_norms not in (1, 2):
            raise UsageError(f"A block is fed by 1 or 2 norms, not {self.num_norms}.")
        if self.arrangement == "sequential" and self.num_norms != 2:
            raise UsageError("A sequential block needs num_norms=2, not 1: set it to 2.")


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """How a position enters: rotary in one of two pairings, or a learned vector per position."""

    kind: PositionKind = "rotary_interleaved"
    rotary_dim: int = 0
    rotary_base: float = 10_000.0

    def __post_init__(self) -> None:
        _require_choice("position kind", self.kind, get_args(PositionKind))
        if self.kind == "learned":
            if self.rotary_dim:
                raise UsageError(
                    f"Learned positions take no rotary_dim, not {self.rotary_dim}: set it to 0."
                )
            return
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise UsageError(
                f"rotary_dim must be an even number of at least 2, not {self.rotary_dim}: "
                "rotary turns pairs of values."
            )
        if not math.isfinite(self.rotary_base) or self.rotary_base <= 1.0:
            raise UsageError(f"rotary_base must be above 1, not {self.rotary_base}.")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A member of the GPT family. Sizes are counts of values; `context_length` is in tokens.

    Raises UsageError with the offending values if no such decoder can exist.
    """

    num_layers: int
    embed_dim: int
    num_heads: int
    head_dim: int
    num_kv_heads: int
    feed_forward_dim: int
    vocab_size: int
    context_length: int
    position: PositionConfig
    variant: BlockVariant = field(default_factory=BlockVariant)
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in (
            "num_layers",
            "embed_dim",
            "num_heads",
            "head_dim",
            "num_kv_heads",
            "feed_forward_dim",
            "vocab_size",
            "context_length",
        ):
            _require_size(name, getattr(self, name))
        if self.num_layers > _MOST_LAYERS:
            raise UsageError(
                f"num_layers is {self.num_layers}, above the limit of {_MOST_LAYERS}: "
                "correct the configuration."
            )
        if self.num_heads % self.num_kv_heads:
            raise UsageError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads "
                "evenly: num_heads must be a multiple of num_kv_heads."
            )
        if self.position.rotary_dim > self.head_dim:
            raise UsageError(
                f"rotary_dim {self.position.rotary_dim} is larger than head_dim {self.head_dim}: "
                "only values of the head itself can be turned."
            )
        if not 0.0 < self.norm_eps < 1.0:
            raise UsageError(f"norm_eps must lie between 0 and 1, not {self.norm_eps}.")

    def check_tokenizer_size(self, tokenizer_size: int) -> None:
        """Raise UsageError if the tokenizer has ids for which the embedding has no row."""
        if tokenizer_size > self.vocab_size:
            raise UsageError(
                f"The tokenizer has {tokenizer_size} ids but the model only {self.vocab_size} "
                "embedding rows: this is not the model's tokenizer."
            )


def even_head_dim(embed_dim: int, num_heads: int) -> int:
    """The width of one head when heads share the embedding evenly, or UsageError."""
    if num_heads < 1 or embed_dim % num_heads:
        raise UsageError(
            f"An embedding of {embed_dim} does not divide into {num_heads} heads: "
            "embed_dim must be a multiple of num_heads."
        )
    return embed_dim // num_heads


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def _require_size(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} must be a whole number, not {value!r}.")
    if not 1 <= value <= _LARGEST_SIZE:
        raise UsageError(f"{name} must lie between 1 and {_LARGEST_SIZE}, not {value}.")


def config_to_json(config: DecoderConfig) -> dict[str, Any]:
    """Plain JSON values of every field, as the native checkpoint stores them."""
    return asdict(config)


def config_from_json(values: Mapping[str, Any]) -> DecoderConfig:
    """The inverse of `config_to_json`. Raises UsageError for unknown, missing or wrong fields."""
    try:
        position = PositionConfig(**values["position"])
        variant = BlockVariant(**values["variant"])
        return DecoderConfig(**{**values, "position": position, "variant": variant})
    except (TypeError, KeyError) as error:
        raise UsageError(f"This is not a decoder configuration: {error}.") from error
