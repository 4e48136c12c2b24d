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


def test_draws_are_those_of_the_sorted_vocabulary() -> None:
    """Bins change nothing: the token is the one at which a uniform is reached when likely tokens come first, equal ones by id."""
    logits = torch.randn(6, 5000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.3], [1.0], [3.0], [8.0], [1.0], [1.0]])
    logits[4] = (logits[4] * 2).round() / 2  # many equal ones
    logits[5, 3000:] = -torch.inf
    n = 300
    for sampler in (Sampler(0.7), Sampler(1.0, top_p=0.9), Sampler(0.5, top_k=40, top_p=0.95), Sampler(1.3, top_k=5)):
        rows = np.arange(n) % 6
        drawn = sample(logits, rows, list(range(n)), [2] * n, sampler)
        assert drawn.tolist() == [sorted_draw(logits[row], uniform(cell, 2), sampler) for cell, row in enumerate(rows.tolist())]
        alone = [int(sample(logits[row][None], np.zeros(1, np.int64), [cell], [2], sampler)[0]) for cell, row in enumerate(rows[:12].tolist())]
        assert alone == drawn[:12].tolist()


def sorted_draw(logits: torch.Tensor, at: float, sampler: Sampler) -> int:
    values = logits.double() / sampler.temperature
    if sampler.top_k:
        values = values.masked_fill(values < values.topk(sampler.top_k).values[-1], -torch.inf)
    probability, order = torch.sort(torch.softmax(values, -1), descending=True, stable=True)
    before = probability.cumsum(-1) - probability
    reached = probability.masked_fill(before >= sampler.top_p, 0.0).cumsum(-1)
    return int(order[int(torch.searchsorted(reached, at * reached[-1], right=True))])


def test_a_row_that_is_no_number_draws_nothing() -> None:
    logits = torch.zeros(4, 300)
    logits[0, 5], logits[1, 7], logits[2] = torch.nan, torch.inf, -torch.inf
    assert sample(logits, np.arange(4), [1] * 4, [0] * 4, Sampler()).tolist()[:3] == [-1, -1, -1]
    assert sample(logits, np.arange(4), [1] * 4, [0] * 4, Sampler())[3] >= 0
