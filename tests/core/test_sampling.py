from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from codi_engine.core.rollout.sampling import Sampler, sample, uniform


def test_draws_follow_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    n = 4000
    drawn = sample(logits, np.zeros(n, np.int64), list(range(n)), [0] * n, Sampler())
    expected = np.array([0.5, 0.3, 0.15, 0.05]) * n
    assert stats.chisquare(np.bincount(drawn, minlength=4), expected).pvalue > 1e-3


def test_top_k_top_p_and_temperature() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    n = 500

    def seen(sampler: Sampler) -> set[int]:
        return set(sample(logits, np.zeros(n, np.int64), list(range(n)), [3] * n, sampler).tolist())

    assert seen(Sampler(top_k=2)) == {0, 1}
    assert seen(Sampler(top_p=0.6)) == {0, 1}
    assert seen(Sampler(temperature=0.01)) == {0}


def test_uniforms_are_counted_not_streamed() -> None:
    assert uniform(5, 2) == uniform(5, 2)
    values = [uniform(k, i) for k in range(50) for i in range(20)]
    assert len(set(values)) == 1000
    assert stats.kstest(values, "uniform").pvalue > 1e-3
