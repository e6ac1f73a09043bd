"""Converting models between llama2.c, Hugging Face, training and Meta's formats."""

from pyllama2c.convert.job import TARGETS, Conversion, convert
from pyllama2c.convert.open import open_any

__all__ = ["TARGETS", "Conversion", "convert", "open_any"]
