"""Built-in models."""

from __future__ import annotations

from typing import Any

from codi_engine.core.plugin import Model
from codi_engine.plugins.models.causal_lm import CausalLM
from codi_engine.plugins.models.coconut import Coconut
from codi_engine.plugins.models.codi import Codi

MODELS: list[type[Model[Any]]] = [Codi, Coconut, CausalLM]
