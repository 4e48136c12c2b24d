"""Gradients of the rollout against finite differences of runs made otherwise: by plain hooks, and by the engine's own edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codi_engine.core.errors import UserError
from codi_engine.core.model import ModelAdapter
from codi_engine.core.rollout import gradients
from codi_engine.core.rollout.gradients import Target, Tracer, in_single_precision, relative_difference
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Rollout, Task, Want
from codi_engine.core.rollout.tasks import Edit
from codi_engine.core.sites import LAYERED, Site
from codi_engine.plugins.models.codi import Codi, CodiOptions
from codi_engine.plugins.models.hf import describe
from codi_engine.testing import tiny
from tests.support import naive

PROMPT = "there are 7 apples and 5 pears how many apples are there ?"
PREFIX = [1, 2, 3, 4]
GOLD, OTHER = [30], [45]
TARGET = Target("logit_diff", GOLD, OTHER)
LAYERS = (0, 1, 2)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def latent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Network:
    checkpoint, base = tiny.tiny_codi(tmp_path_factory.mktemp(request.param), request.param)
    return Network(Codi(CodiOptions(checkpoint=str(checkpoint), base=str(base), lora_r=4)).load())


def doubled(net: Network) -> Network:
    """Lift a model to double precision, in which small differences are exact enough."""
    net.model.double()
    if net.adapter.projection is not None:
        net.adapter.projection.double()  # type: ignore[attr-defined]
    net.dtype = torch.float64
    return net


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox"])
def plain(request: pytest.FixtureRequest) -> Network:
    model = tiny.network(request.param)
    nothing: Any = None
    return doubled(Network(ModelAdapter(describe(model.config, 0, "float32", "cpu"), model, nothing, nothing, nothing, stop_ids=(0,))))


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Network:
    checkpoint, base = tiny.tiny_codi(tmp_path_factory.mktemp("double"), "gpt2")
    return doubled(Network(Codi(CodiOptions(checkpoint=str(checkpoint), base=str(base), lora_r=4)).load()))


def by_plain_hooks(net: Network, ids: list[int], **kwargs: Any) -> tuple[float, naive.Answered]:
    """Return the metric of a run by the naive twin."""
    net.model.set_attn_implementation("eager")
    start = [*net.adapter.answer_start, *PREFIX]
    out = naive.answer(net.model, net.blocks, net.adapter.projection, ids, start, new=1, **kwargs)  # type: ignore[arg-type]
    net.model.set_attn_implementation("codi_engine_packed")
    return float(out.first_logits[GOLD[0]] - out.first_logits[OTHER[0]]), out


@pytest.mark.parametrize("downstream", ["propagate", "freeze"])
@pytest.mark.parametrize(("layer", "step"), [(0, 0), (1, 0), (2, 2), (0, 4), (2, 5), (1, 5)])
def test_gradient_is_the_finite_difference_through_the_recurrence(double: Network, downstream: Any, layer: int, step: int) -> None:
    ids = double.adapter.encode_prompt(PROMPT)
    trace = Tracer(double, PREFIX).trace(ids, TARGET, "resid_post", LAYERS, "latent", downstream)
    metric, unedited = by_plain_hooks(double, ids)
    assert trace.metric == pytest.approx(metric, rel=1e-5)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(layer * 7 + step), dtype=torch.float64)
    pinned = {k: unedited.z[k] for k in range(step + 1, 6)} if downstream == "freeze" else None

    def moved(size: float) -> float:
        def change(at: int, where: int, out: torch.Tensor) -> torch.Tensor:
            return out + size * direction if (at, where) == (step, layer) else out

        return by_plain_hooks(double, ids, change=change, swap=pinned)[0]

    expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
    found = float(trace.gradients[layer][step].double() @ direction)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-9)
    # the last block's output makes the next latent and nothing else: there is none after step 5, and a frozen one is pinned
    assert (expected == 0) == (layer == 2 and (step == 5 or downstream == "freeze"))


def test_freezing_changes_what_flows_through_later_latents_alone(double: Network) -> None:
    ids = double.adapter.encode_prompt(PROMPT)
    tracer = Tracer(double, PREFIX)
    total = tracer.trace(ids, TARGET, "latent_in", (None,), "latent", "propagate").gradients[None]
    direct = tracer.trace(ids, TARGET, "latent_in", (None,), "latent", "freeze").gradients[None]
    assert torch.allclose(total[5], direct[5], rtol=1e-6)
    assert all(relative_difference(direct[k], total[k]) > 1e-2 for k in range(5))
    state = tracer.trace(ids, TARGET, "latent_out", (None,), "latent", "freeze").gradients[None]
    assert state.shape == (6, 32)
    assert not state.any()  # what the next latent is made of is pinned


def engine_metric(net: Network, ids: list[int], edit: Edit | None, phase: Any, value: torch.Tensor, prefix: list[int]) -> float:
    """Return the metric of the engine's own run with one place replaced."""
    want = Want(generate=False, first=False, prefix=prefix)
    task = Task(0, {} if edit is None else {phase: [edit]}, gold=GOLD, other=OTHER)
    out = Rollout(net).run([ids], [task], want, lambda *_: value[None].to(net.dtype))
    return float(out.gold_logit[0, 0] - out.other_logit[0, 0])


def check_by_the_engine(net: Network, ids: list[int], component: str, phase: Any, layer: int | None, place: int, prefix: list[int]) -> None:
    trace = Tracer(net, prefix).trace(ids, TARGET, component, (layer,), phase)
    values, slope = trace.values[layer], trace.gradients[layer][place]
    edit = Edit(Site(component, layer), place, 0, 0)
    assert engine_metric(net, ids, edit, phase, values[place], prefix) == pytest.approx(trace.metric, abs=2e-4)
    if float(slope.norm()) == 0:
        return
    direction = slope / slope.norm()
    size = 5e-4 * float(values[place].norm())
    up = engine_metric(net, ids, edit, phase, values[place] + size * direction, prefix)
    down = engine_metric(net, ids, edit, phase, values[place] - size * direction, prefix)
    assert (up - down) / (2 * size) == pytest.approx(float(slope.norm()), rel=2e-2)


@pytest.mark.parametrize("component", [*LAYERED, "embed", "final_norm"])
def test_every_site_of_a_plain_model_agrees_with_the_engines_edits(plain: Network, component: str) -> None:
    if component not in plain.components:
        pytest.skip(f"no {component}")
    ids = torch.randint(1, 120, (11,), generator=torch.Generator().manual_seed(3)).tolist()
    layer = None if component in ("embed", "final_norm") else 1
    check_by_the_engine(plain, ids, component, "prompt", layer, -1 if component == "final_norm" else -4, [])


@pytest.mark.parametrize(
    ("component", "phase", "place"),
    [("resid_post", "latent", 1), ("attn_z", "latent", 0), ("latent_in", "latent", 2), ("latent_out", "latent", 1), ("v", "latent", 3),
     ("latent_out", "prompt", -1), ("resid_pre", "prompt", -3), ("resid_post", "answer", 1), ("mlp_out", "answer", 4), ("final_norm", "answer", 4)],
)  # fmt: skip
def test_sites_of_every_phase_of_a_latent_model(double: Network, component: str, phase: Any, place: int) -> None:
    ids = double.adapter.encode_prompt(PROMPT)
    check_by_the_engine(double, ids, component, phase, None if component in ("latent_in", "latent_out", "final_norm") else 1, place, PREFIX)


@pytest.mark.parametrize("reduce", ["first", "sum", "mean"])
@pytest.mark.parametrize("metric", ["logit_diff", "cross_entropy"])
def test_answers_of_several_tokens_are_read_as_the_metrics_do(latent: Network, metric: Any, reduce: Any) -> None:
    from codi_engine.plugins.metrics.logits import reduced

    ids, gold, other = latent.adapter.encode_prompt(PROMPT), [30, 41, 33], [45, 12]
    out = Rollout(latent).run([ids], [Task(0, gold=gold, other=other)], Want(generate=False, first=False, prefix=PREFIX))
    expected = reduced(out.gold_logit, reduce) - reduced(out.other_logit, reduce) if metric == "logit_diff" else -reduced(out.gold_logprob, reduce)
    tracer = Tracer(latent, PREFIX)
    trace = tracer.trace(ids, Target(metric, gold, other, reduce), "resid_post", LAYERS, "latent")
    assert trace.metric == pytest.approx(float(expected[0]), rel=1e-4, abs=1e-4)
    assert relative_difference(trace.logits, out.number_logits[0]) < 2e-5
    assert all(g.abs().max() > 0 for g in trace.gradients.values())
    assert (tracer.forwards, tracer.backwards) == (1, 1)


def test_nothing_is_left_behind(latent: Network) -> None:
    """Parameters have no gradient, hooks are gone, and the engine's rows have the bits they had before."""
    ids = latent.adapter.encode_prompt(PROMPT)
    want = Want(generate=False, first=False, prefix=PREFIX)
    before = Rollout(latent).run([ids], [Task(0)], want).number_logits
    trace = Tracer(latent, PREFIX).trace(ids, TARGET, "attn_z", LAYERS, "latent", gradient=False)
    assert trace.gradients == {}
    Tracer(latent, PREFIX).trace(ids, TARGET, "attn_z", LAYERS, "latent")
    assert all(p.grad is None and not p.requires_grad for p in latent.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in latent.model.modules())
    assert torch.equal(Rollout(latent).run([ids], [Task(0)], want).number_logits, before)


def test_input_vectors_can_be_given(latent: Network) -> None:
    ids = latent.adapter.encode_prompt(PROMPT)
    tracer = Tracer(latent, PREFIX)
    first = tracer.trace(ids, TARGET, "resid_post", LAYERS, "latent")
    again = tracer.trace([1] * len(ids), TARGET, "resid_post", LAYERS, "latent", embeds=first.embeds)
    np.testing.assert_array_equal(first.logits, again.logits)
    assert tracer.trace([1] * len(ids), TARGET, "resid_post", LAYERS, "latent").metric != pytest.approx(first.metric, rel=1e-3)


def test_reduced_precision_is_lifted(tmp_path: Path) -> None:
    checkpoint, base = tiny.tiny_codi(tmp_path, "llama")
    net = Network(Codi(CodiOptions(checkpoint=str(checkpoint), base=str(base), lora_r=4, dtype="bfloat16")).load())
    in_single_precision(net)
    ids = net.adapter.encode_prompt(PROMPT)
    trace = Tracer(net, PREFIX).trace(ids, TARGET, "resid_post", LAYERS, "latent")
    engine = Rollout(net).run([ids], [Task(0)], Want(generate=False, first=False, prefix=PREFIX)).number_logits[0]
    assert trace.logits.dtype == torch.float32
    assert relative_difference(trace.logits, engine) < 2e-5


@pytest.mark.parametrize(
    ("component", "layer", "step"), [("resid_post", 1, 2), ("mlp_out", 0, 3), ("attn_out", 2, 0), ("latent_in", None, 1), ("latent_out", None, 2)]
)
def test_an_edit_of_ones_own_is_the_engines_edit_and_its_gradient_the_finite_difference(double: Network, component: str, layer: int | None, step: int) -> None:
    ids, tracer = double.adapter.encode_prompt(PROMPT), Tracer(double, PREFIX)
    plain = tracer.trace(ids, TARGET, component, (layer,), "latent")
    shift = torch.randn(32, generator=torch.Generator().manual_seed(step), dtype=torch.float64).mul_(0.1).requires_grad_(True)

    def measured(size: float) -> tuple[torch.Tensor, torch.Tensor]:
        return tracer.measure(ids, TARGET, [gradients.Edit(component, layer, step, lambda h: h + size * shift)])

    assert float(measured(0.0)[0].detach()) == pytest.approx(plain.metric, abs=1e-6)
    metric, logits = measured(1.0)
    value = (plain.values[layer][step].double() + shift).detach()
    edit = Edit(Site(component, layer), step, 0, 0)
    assert float(metric.detach()) == pytest.approx(engine_metric(double, ids, edit, "latent", value, PREFIX), abs=2e-4)
    assert float(logits[GOLD[0]].detach() - logits[OTHER[0]].detach()) == pytest.approx(float(metric.detach()), rel=1e-6)
    (slope,) = torch.autograd.grad(metric, shift)
    with torch.no_grad():
        expected = float(measured(1 + 1e-2)[0] - measured(1 - 1e-2)[0]) / 2e-2  # logits are single precision
    assert float(slope @ shift.detach()) == pytest.approx(expected, rel=2e-2, abs=1e-3)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in double.model.modules())


def test_edits_that_cannot_be_made_are_refused(double: Network) -> None:
    tracer, ids = Tracer(double, PREFIX), double.adapter.encode_prompt(PROMPT)
    for component, layer, step, said in (
        ("resid_post", 1, 6, "latent steps 0 to 5"), ("resid_post", None, 1, "with a layer"), ("resid_post", 3, 1, "layers 0 to 2"),
        ("latent_in", 1, 1, "without one"), ("final_norm", None, 1, "name resid_post"), ("attn_z", 1, 1, "cannot be edited with gradients"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            tracer.measure(ids, TARGET, [gradients.Edit(component, layer, step, lambda h: h)])
