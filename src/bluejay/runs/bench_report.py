"""What a bench found, and the figures that follow from it. Times in seconds, sizes in bytes."""

from dataclasses import dataclass
from typing import Any

from bluejay.generation.sampling_params import SamplingParams
from bluejay.runs.bench_plan import DecodeCase

_MEGA, _GIGA = 1e6, 1e9


@dataclass(frozen=True, kw_only=True)
class DecodeReading:
    """Medians of one step of all rows, and the part of it inside of native kernels, if there are
    any; `num_bytes` are those that it reads."""

    case: DecodeCase
    seconds: float
    kernel_seconds: float | None
    num_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Summed over rows."""
        return self.case.batch / self.seconds

    def document(self) -> dict[str, Any]:
        """For JSON, in the units that the names say."""
        kernels = self.kernel_seconds
        return {
            "batch": self.case.batch,
            "context": self.case.context,
            "decode_tokens_per_s": self.tokens_per_second,
            "step_ms": 1e3 * self.seconds,
            "kernels_ms": None if kernels is None else 1e3 * kernels,
            "bytes_read": self.num_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class PrefillReading:
    """The median time from a prompt's ids to the logits of its last."""

    prompt: int
    seconds: float

    def document(self) -> dict[str, Any]:
        """For JSON."""
        rate = self.prompt / self.seconds
        return {"prompt": self.prompt, "prefill_tokens_per_s": rate, "seconds": self.seconds}


@dataclass(frozen=True, kw_only=True)
class Start:
    """Loading, from the opening of the files to weights in place; the first token, from the start
    of the process where the system tells it; the largest memory up to the first measurement, of
    which anonymous memory is what no file backs."""

    load_seconds: float
    first_token_seconds: float | None
    peak_resident: int | None
    peak_anonymous: int | None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What was measured, on what."""

    model: str
    version: str
    kernels: str
    threads: int
    cache_dtype: str
    tokens: int
    repeat: int


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """All readings of one bench.

    `decode` begins with the case that the single figures are about, and does not hold `sampled`,
    the same with temperature and top-p. `bandwidth` in bytes per second, None without native
    kernels, and with it `predicted_seconds` of a step of one row.
    """

    setting: Setting
    start: Start
    decode: tuple[DecodeReading, ...]
    sampled: DecodeReading
    prefill: tuple[PrefillReading, ...]
    bandwidth: float | None
    predicted_seconds: float | None

    @property
    def first(self) -> DecodeReading:
        """The reading of the first case."""
        return self.decode[0]

    def share_of_limit(self, reading: DecodeReading) -> float | None:
        """Bytes per second that a step reads over what memory can give."""
        if self.bandwidth is None:
            return None
        return reading.num_bytes / reading.seconds / self.bandwidth

    def cost(self, reading: DecodeReading) -> float | None:
        """A step's time over that of a step of one row at the same context, if that was read."""
        context = reading.case.context
        single = [r for r in self.decode if r.case.batch == 1 and r.case.context == context]
        return reading.seconds / single[0].seconds if single else None

    def document(self, sampling: SamplingParams) -> dict[str, Any]:
        """One object for JSON, which benchmarks/peers/side_bluejay.py reads; `sampling` is that of
        the reading that is not greedy."""
        first, setting, start = self.first, self.setting, self.start
        kernels = first.kernel_seconds
        return {
            **vars(setting),
            "decode": [
                reading.document() | {"cost": self.cost(reading)} for reading in self.decode
            ],
            "sampled": self.sampled.document()
            | {"temperature": sampling.temperature, "top_p": sampling.top_p},
            "prefill": [reading.document() for reading in self.prefill],
            "load_s": start.load_seconds,
            "first_token_s": start.first_token_seconds,
            "peak_rss_mb": _over(start.peak_resident, _MEGA),
            "peak_anonymous_mb": _over(start.peak_anonymous, _MEGA),
            "bytes_per_token": first.num_bytes / first.case.batch,
            "bandwidth_gb_s": _over(self.bandwidth, _GIGA),
            "achieved_gb_s": first.num_bytes / first.seconds / _GIGA,
            "share_of_limit": self.share_of_limit(first),
            "overhead_us": None if kernels is None else 1e6 * (first.seconds - kernels),
            "predicted_tokens_per_s": _over(1.0, self.predicted_seconds),
        }


def _over(number: float | None, unit: float | None) -> float | None:
    return None if number is None or unit is None else number / unit
