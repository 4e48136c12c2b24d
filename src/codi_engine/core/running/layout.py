"""How a job's arrays are laid out in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codi_engine.core.running.marks import MARKED
from codi_engine.core.running.reading import ANSWER_TOKENS
from codi_engine.store.layout import ArraySpec
from codi_engine.store.sparse import sparse_specs

if TYPE_CHECKING:
    from codi_engine.core.running.job import Job


def array_specs(job: Job) -> list[ArraySpec]:
    """Return every array that units of the job write."""
    axes = ["example", "condition", "variant", *job.plan.axes]
    if job.plan.trials > 1 or job.experiment.generate.do_sample:
        axes.append("trial")
    specs = [_scalar(f"cells/{axis}", "int32", -1, {"labels": []}) for axis in axes]
    specs += [_scalar("cells/status", "uint8", 0), _scalar("cells/answer", "float64", float("nan")), _scalar(MARKED, "uint8", 0)]
    columns = [job.column(m, c) for m in job.metrics for c in m.columns()]
    columns += ["attempts"] if job.experiment.generate.retries else []
    specs += [_scalar(f"cells/metrics/{column}", "float64", float("nan")) for column in columns]
    return specs + _activations(job) + _sources(job)


def _scalar(name: str, dtype: str, fill: float, attrs: dict[str, Any] | None = None) -> ArraySpec:
    return ArraySpec(name=name, dims=("cell",), shape=(), dtype=dtype, fill=fill, attrs=attrs or {})


def _values(name: str, dims: tuple[str, ...], shape: tuple[int, ...], coords: dict[str, Any], dtype: str = "float32") -> ArraySpec:
    return ArraySpec(name=name, dims=dims, shape=shape, dtype=dtype, fill=float("nan"), attrs={"coords": coords})


def _activations(job: Job) -> list[ArraySpec]:
    specs = []
    for capture in job.captures:
        coords = capture.coords()
        width = job.net.width_of(capture.site.component)
        shape = (*tuple(len(v) for v in coords.values()), width)
        specs.append(_values(capture.array, capture.dims, shape, coords))
    for code in job.code_captures:
        labels = code.labels
        specs += sparse_specs(code.array, len(labels), {"coords": {"feature": labels}})
    return specs


def _sources(job: Job) -> list[ArraySpec]:
    specs = [_values("sources/answer/value", ("cell", "answer"), (1,), {}, "float64")]
    vocabulary = job.net.info.vocab_size
    if job.needs.number:
        specs.append(_values("sources/number_logits/value", ("cell", "vocabulary"), (vocabulary,), {}))
        for name in ("gold_logprob", "other_logprob", "gold_logit", "other_logit"):
            specs.append(_values(f"sources/{name}/value", ("cell", "token"), (ANSWER_TOKENS,), {}, "float64"))
    if job.needs.first:
        specs.append(_values("sources/first_logits/value", ("cell", "vocabulary"), (vocabulary,), {}))
    for name, (component, _, phase, places) in job.source_arrays.items():
        dim = "step" if phase == "latent" else "position"
        shape = (len(places), job.net.width_of(component))
        specs.append(_values(name, ("cell", dim, "width"), shape, {dim: list(places)}))
    return specs
