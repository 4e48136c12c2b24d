"""Built-in file formats of sparse autoencoders; a file is read by the first that knows it."""

from __future__ import annotations

from codi_engine.core.plugin import SaeFormat
from codi_engine.plugins.saes.gemmascope import GemmaScope
from codi_engine.plugins.saes.llamascope import LlamaScope, LlamaScopeR1, Llamascopium
from codi_engine.plugins.saes.saelens import SaeLens
from codi_engine.plugins.saes.sparsify import Sparsify
from codi_engine.plugins.saes.torchfile import TorchFile

SAE_FORMATS: list[type[SaeFormat]] = [SaeLens, Sparsify, LlamaScope, LlamaScopeR1, Llamascopium, GemmaScope, TorchFile]
