"""Built-in analyses."""

from __future__ import annotations

from typing import Any

from codi_engine.core.plugin import Analysis
from codi_engine.plugins.analyses.across import Across
from codi_engine.plugins.analyses.attribution import Attribution
from codi_engine.plugins.analyses.compare import Compare
from codi_engine.plugins.analyses.correlation import Correlation
from codi_engine.plugins.analyses.early_late import EarlyLate
from codi_engine.plugins.analyses.importance import Importance
from codi_engine.plugins.analyses.latent_film import LatentFilm
from codi_engine.plugins.analyses.logit_lens import LogitLens
from codi_engine.plugins.analyses.pathways import Pathways
from codi_engine.plugins.analyses.probes import Probes
from codi_engine.plugins.analyses.proportions import Proportions
from codi_engine.plugins.analyses.resampling import Resampling
from codi_engine.plugins.analyses.select_features import SelectFeatures
from codi_engine.plugins.analyses.shapley import Shapley
from codi_engine.plugins.analyses.step_effects import StepEffects
from codi_engine.plugins.analyses.trajectories import Trajectories
from codi_engine.plugins.analyses.tuned_lens import TunedLens
from codi_engine.plugins.analyses.words import Words

ANALYSES: list[type[Analysis[Any]]] = [
    Across, Attribution, Compare, Correlation, EarlyLate, Importance, LatentFilm, LogitLens, Pathways, Probes, Proportions, Resampling, SelectFeatures, Shapley,
    StepEffects, Trajectories, TunedLens, Words,
]  # fmt: skip
