"""Built-in file formats of sparse autoencoders."""

from __future__ import annotations

from typing import Any

from codi_engine.core.plugin import SaeFormat
from codi_engine.plugins.saes.gemmascope import GemmaScope
from codi_engine.plugins.saes.saelens import SaeLens

SAE_FORMATS: list[type[SaeFormat]] = [SaeLens, GemmaScope]
