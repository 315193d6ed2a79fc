"""The tiny random BERT of the engines' tests, and the real MiniLM."""

from tests.engines.conftest import minilm, tiny, tiny_folder

__all__ = ["minilm", "tiny", "tiny_folder"]
