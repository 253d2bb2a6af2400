"""The texts of a quantization: what it is calibrated with, and what its loss is measured on."""

from dataclasses import dataclass
from pathlib import Path

from bluejay.checkpoints.model_files import ModelFiles
from bluejay.core.errors import DataError, UsageError
from bluejay.runs.layer_stream import LONGEST_WINDOW, Window, windows_of
from bluejay.text.prompt import prompt_ids
from bluejay.vocab.tokenizer import Tokenizer

CALIBRATION_TOKENS = 16_384
HELD_OUT_TOKENS = 8_192
# Of a text file so much is read: fifty times what is used of it.
MAX_TEXT_BYTES = 4 * 2**20
_HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class HeldOutWindows:
    """`num_bytes` are those of the ids that are predicted."""

    windows: list[Window]
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class QuantizationTexts:
    """Both may be absent."""

    calibration: list[Window]
    held_out: HeldOutWindows | None


def quantization_texts(
    model: ModelFiles, calibration: str | None, held_out: str | None
) -> QuantizationTexts:
    """The windows of the texts, at most CALIBRATION_TOKENS spread over the one, and
    HELD_OUT_TOKENS from the beginning of the other, or of the last tenth of the one."""
    if calibration is None and held_out is None:
        return QuantizationTexts(calibration=[], held_out=None)
    tokenizer = model.tokenizer()
    if tokenizer is None:
        raise UsageError(f"{model.path} has no tokenizer, which a text needs: leave the text out.")
    if calibration is not None and held_out is None:
        place = len(calibration) - int(len(calibration) * _HELD_OUT_SHARE)
        calibration, held_out = calibration[:place], calibration[place:]
    size = min(model.config.context_length, LONGEST_WINDOW)
    seen: list[Window] = []
    if calibration is not None:
        ids = _ids(tokenizer, calibration, "calibration")
        seen = windows_of(ids, size=size, most=CALIBRATION_TOKENS, spread=True)
    assert held_out is not None
    ids = _ids(tokenizer, held_out, "held-out")
    windows = windows_of(ids, size=size, most=HELD_OUT_TOKENS, spread=False)
    num_tokens = sum(int(window.is_text.sum()) for window in windows)
    num_bytes = len(tokenizer.decode_bytes(ids[1 : num_tokens + 1]))
    known = HeldOutWindows(windows=windows, num_bytes=max(num_bytes, 1))
    return QuantizationTexts(calibration=seen, held_out=known)


def read_text(path: Path) -> str:
    """The beginning of a UTF-8 text, at most MAX_TEXT_BYTES of it. Raises DataError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        # The cut may go through a character.
        return (data if len(data) <= MAX_TEXT_BYTES else data[: data.rindex(b"\n") + 1]).decode()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{path} cannot be read ({reason}): give a text file.") from error
    except ValueError as error:
        raise DataError(f"{path} is not UTF-8 text with lines: give a plain text file.") from error


def _ids(tokenizer: Tokenizer, text: str, kind: str) -> list[int]:
    ids = prompt_ids(tokenizer, text) if text else []
    if len(ids) < 2:
        raise DataError(f"The {kind} text has {len(ids)} tokens, but at least 2 are needed.")
    return ids
