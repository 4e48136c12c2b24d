"""The built-in models through the suite, on tiny checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codi_engine.core.plugins import plugin_manager
from codi_engine.plugins.models.causal_lm import CausalLM
from codi_engine.plugins.models.coconut import Coconut
from codi_engine.plugins.models.codi import Codi
from codi_engine.testing import ModelSuite, tiny_causal_lm, tiny_coconut, tiny_codi

SMALL: dict[str, Any] = {"base": "gpt2", "lora_r": 4, "device": "cpu"}


class TestCodi(ModelSuite):
    plugin = Codi
    options = ({"checkpoint": "gpt2", **SMALL}, {"checkpoint": "llama", **SMALL})

    def written(self, setting: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        checkpoint, base = tiny_codi(folder, setting["checkpoint"])
        return {**setting, "checkpoint": str(checkpoint), "base": str(base)}


class TestCoconut(ModelSuite):
    plugin = Coconut
    options = ({"checkpoint": "gpt2", "base": "", "device": "cpu"},)

    def written(self, setting: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        checkpoint, base, _ = tiny_coconut(folder, setting["checkpoint"])
        return {**setting, "checkpoint": str(checkpoint), "base": str(base)}


class TestCausalLM(ModelSuite):
    plugin = CausalLM
    options = ({"path": "gpt2", "device": "cpu"}, {"path": "llama", "device": "cpu"})

    def written(self, setting: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        return {**setting, "path": str(tiny_causal_lm(folder, setting["path"]))}


def test_every_builtin_model_has_a_suite() -> None:
    known = {r.cls for r in plugin_manager(load=False).registered if r.kind == "model"}
    assert known == {TestCodi.plugin, TestCoconut.plugin, TestCausalLM.plugin}
