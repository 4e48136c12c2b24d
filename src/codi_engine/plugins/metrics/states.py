"""Metrics of the edited states themselves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from codi_engine.core.plugin import Metric, NoOptions, Readings


class Unusual(Metric[NoOptions]):
    """How unusual an edited state is: the share of natural states that are less extreme.

    Natural states are the unedited ones of the data's first 128 examples at the same site, layer and place, of the variant that
    is run. A state x is as extreme as d(x) = √(mean_i ((x_i − μ_i) / σ_i)²), its distance to the natural mean in units of each
    dimension's natural standard deviation. 0.5 is ordinary, 1 lies beyond all natural states. Of several edited places the
    largest share counts. NaN in unedited cells, where nothing is edited (``early_decode``), and with fewer than 8 natural states.
    """

    name = "unusual"
    Options = NoOptions
    needs = frozenset({"natural"})

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"unusual": np.full(len(read.gold), np.nan) if read.unusual is None else read.unusual}
