"""Bluejay: the whole GPT-J system on JAX.

import bluejay
lm = bluejay.load("smollm2-135m-instruct")
print(lm.generate("The best thing about the sea is"))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bluejay.runs.language_model import LanguageModel, load

__all__ = ["LanguageModel", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the model code on first use: JAX alone takes half a second to import."""
    if name in ("LanguageModel", "load"):
        from bluejay.runs import language_model

        return getattr(language_model, name)
    raise AttributeError(f"module 'bluejay' has no attribute {name!r}")
