"""Text to token ids and back: `Tokenizer`, `Detokenizer`, `find_tokenizer`."""

from pyllama2c.tokenizer.detokenizer import Detokenizer
from pyllama2c.tokenizer.find import find_tokenizer
from pyllama2c.tokenizer.tokenizer import Tokenizer

__all__ = ["Detokenizer", "Tokenizer", "find_tokenizer"]
