"""Built-in interventions."""

from __future__ import annotations

from codi_engine.core.plugin import Intervention
from codi_engine.plugins.interventions.ablate import Mean, Noise, Zero
from codi_engine.plugins.interventions.latents import EarlyDecode
from codi_engine.plugins.interventions.recorded import Recorded
from codi_engine.plugins.interventions.replace import Patch, Resample
from codi_engine.plugins.interventions.sae import Sae
from codi_engine.plugins.interventions.steer import Steer

INTERVENTIONS: list[type[Intervention]] = [Zero, Mean, Resample, Patch, Recorded, Noise, Steer, Sae, EarlyDecode]  # type: ignore[type-arg]
