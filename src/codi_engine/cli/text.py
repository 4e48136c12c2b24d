"""Text of models, data and files made safe for a terminal."""

from codi_engine.core.text import neutral

__all__ = ["neutral"]
