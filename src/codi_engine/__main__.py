"""``python -m codi_engine``."""

from codi_engine.cli.main import entry

entry()
