"""The edit, its files, training on a truth that is known, both on the demo, and the package as users meet it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codi_engine_subspace import bases
from codi_engine_subspace.edit import Subspace, SubspaceOptions
from codi_engine_subspace.training import TrainSubspace, TrainSubspaceOptions

from codi_engine import Experiment, Run
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Rows
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.running.run import plan_experiment
from codi_engine.core.runs.work import Work
from codi_engine.testing import InterventionSuite

ROOT = Path(__file__).parents[1]
PLACE = "resid_post.1@latent[2]"


class TestConformance(InterventionSuite):
    plugin = Subspace
    options = ({"random": 3, "dim": 4}, {"random": 0, "dim": 128})


def rows(values: torch.Tensor, source: torch.Tensor, examples: list[str] | None = None) -> Rows:
    names = np.array(examples or [f"e{i}" for i in range(len(values))])
    return Rows(values, {"example": names}, "resid_post", 1, 2, source)


def written(folder: Path, basis: np.ndarray, **more: Any) -> str:
    (folder / "s.safetensors").write_bytes(bases.saved(bases.Bases({PLACE: basis}, **more)))
    return str(folder / "s.safetensors")


def test_only_the_part_in_the_subspace_is_replaced(tmp_path: Path) -> None:
    h, source = torch.randn(5, 12), torch.randn(5, 12)
    basis = bases.random_basis(12, 3, 0, PLACE)
    new = Subspace(SubspaceOptions(path=written(tmp_path, basis))).apply(rows(h, source))
    inside = torch.from_numpy(basis @ basis.T)
    torch.testing.assert_close(new @ inside, source @ inside, atol=1e-5, rtol=1e-5)
    rest = torch.eye(12) - inside
    torch.testing.assert_close(new @ rest, h @ rest, atol=1e-5, rtol=1e-5)
    whole = Subspace(SubspaceOptions(random=1, dim=12)).apply(rows(h, source))
    torch.testing.assert_close(whole, source, atol=1e-5, rtol=1e-5)


def test_random_bases_are_orthonormal_and_differ_by_seed_and_place() -> None:
    one = bases.random_basis(16, 4, 0, PLACE)
    np.testing.assert_allclose(one.T @ one, np.eye(4), atol=1e-6)
    np.testing.assert_array_equal(one, bases.random_basis(16, 4, 0, PLACE))
    assert not np.allclose(one, bases.random_basis(16, 4, 1, PLACE))
    assert not np.allclose(one, bases.random_basis(16, 4, 0, "resid_post.1@latent[3]"))


def test_what_does_not_fit_is_refused_in_a_line(tmp_path: Path) -> None:
    basis = bases.random_basis(12, 3, 0, PLACE)
    path = written(tmp_path, basis, trained_on=["e1"], model_digest="abc")
    h = torch.randn(2, 12)
    edit = Subspace(SubspaceOptions(path=path))
    with pytest.raises(UserError, match="'e1' is among the examples"):
        edit.apply(rows(h, h))
    Subspace(SubspaceOptions(path=path, seen=True)).apply(rows(h, h))
    other = Rows(h, {"example": np.array(["a", "b"])}, "resid_post", 0, 2, h)
    with pytest.raises(UserError, match=r"no basis for resid_post\.0@latent\[2\]"):
        edit.apply(other)
    nothing: Any = None
    with pytest.raises(UserError, match="has width 12; the site has 128"):
        edit.check(nothing, nothing, 128)
    edit.prepare(type("Sources", (), {"model_digest": "xyz"})())
    with pytest.raises(UserError, match="another model"):
        edit.apply(rows(h, h, ["a", "b"]))
    with pytest.raises(UserError, match="no file"):
        bases.read(str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="orthonormal"):
        bases.read(written(tmp_path, 2 * basis))
    (tmp_path / "s.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(UserError, match="no safetensors file"):
        bases.read(path)
    for options in ({}, {"path": "x", "random": 1, "dim": 2}, {"random": 1}):
        with pytest.raises(ValueError, match="give path: FILE, or random: SEED with dim: N"):
            SubspaceOptions(**options)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- on the demo


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("subspace"))
        yield Path.cwd()


@pytest.fixture(scope="module")
def captured(here: Path) -> Run:
    small = ["data.limit=12", "model.device=cpu", "generate.max_new_tokens=4", "analyses=[]"]
    return Experiment.from_file(ROOT / "examples" / "subspace-train.yaml", small).run().open()


@pytest.fixture(scope="module")
def trained(captured: Run) -> Any:
    options = TrainSubspaceOptions(layers=[1], steps=[0], dim=8, holdout=4, epochs=3, batch=4, random=1)
    return TrainSubspace(options).analyze([captured], Work())


def test_training_lowers_the_loss_and_beats_random_subspaces_on_held_out_pairs(trained: Any) -> None:
    curve = trained.tables["training"]["cross_entropy"].tolist()
    assert curve[-1] < 0.7 * curve[0]
    loss = trained.tables["held_out"].set_index("setting")["cross_entropy"]
    assert loss["whole"] < loss["trained"] < loss["random"]
    assert set(trained.tables["held_out"]["n"]) == {4}
    examples = trained.tables["examples"].pivot(index="example", columns="setting", values="cross_entropy")
    row = trained.tables["gain"].iloc[0]
    assert row["gain"] == pytest.approx((examples["random"] - examples["trained"]).mean())
    assert row["low"] < row["gain"] < row["high"]
    assert set(TrainSubspace(TrainSubspaceOptions(layers=[1], steps=[0])).draw(trained.tables, {})) == {"held_out"}


def test_the_engine_makes_the_edit_that_was_trained(here: Path, captured: Run, trained: Any) -> None:
    """Cross-entropy of held-out pairs: what training measured by its own forward is what the engine's run has."""
    (here / "s.safetensors").write_bytes(trained.files["subspaces.safetensors"])
    kept = bases.read(str(here / "s.safetensors"))
    assert len(kept.trained_on) == 8
    condition = {"intervention": {"plugin": "subspace", "site": "resid_post", "direction": "denoise", "path": "s.safetensors"}}
    value = {
        "name": "engine", "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"},
        "data": {"plugin": "demo-pairs", "both_correct": True, "limit": 4}, "sweep": {"layer": [1], "step": [0]}, **condition,
        "metrics": [{"plugin": "logit_diff"}], "capture": ["resid_post@latent"], "generate": {"max_new_tokens": 4}, "controls": "none",
    }  # fmt: skip
    run = Experiment.from_dict(value).run().open()
    basis = kept.bases["resid_post.1@latent[0]"]
    base, edited = run.activations("resid_post.1@latent[0]"), run.activations("resid_post.1@latent[0]", edited=True)
    sides = {(str(e), str(v)): base.values[i].ravel() for i, (e, v) in enumerate(zip(base["example"].values, base["variant"].values, strict=True))}
    for value_, example in zip(edited.values, edited["example"].values, strict=True):
        h, clean = sides[str(example), "corrupted"], sides[str(example), "clean"]
        np.testing.assert_allclose(value_.ravel(), h + basis @ (basis.T @ (clean - h)), atol=2e-4)
    with pytest.raises(UserError, match="is among the examples"):
        Experiment.from_dict({**value, "name": "seen", "data": {"plugin": "demo-pairs", "both_correct": True, "limit": 12}}).run()


def test_what_training_lacks_is_named(captured: Run) -> None:
    for options, said in (
        ({"layers": [9]}, "layers: 9 was not captured"),
        ({"holdout": 10}, "leave 2 to train on"),
        ({"steps": [7]}, "steps: 7 was not captured"),
    ):
        given: Any = {"layers": [1], "steps": [0], "holdout": 4, **options}
        with pytest.raises(UserError, match=said):
            TrainSubspace(TrainSubspaceOptions(**given)).analyze([captured], Work())


def test_it_is_discovered_documented_and_its_experiments_plan(here: Path, captured: Run) -> None:
    mine = {(r.kind, r.name) for r in plugin_manager().registered if r.package == "codi-engine-subspace"}
    assert mine == {("intervention", "subspace"), ("analysis", "train_subspace")}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = {*SubspaceOptions.model_fields, *TrainSubspaceOptions.model_fields}
    assert [o for o in names if not re.search(rf"`{o}\b", text)] == []
    assert plan_experiment(Experiment.from_file(ROOT / "examples" / "subspace-train.yaml"), limit=3).cells == 0
    random = ["conditions.trained.intervention.path=null", "conditions.trained.intervention.random=4", "conditions.trained.intervention.dim=8"]
    assert plan_experiment(Experiment.from_file(ROOT / "examples" / "subspace.yaml", random), limit=3).cells > 0
    sources = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "src").rglob("*.py"))
    assert "codi_engine.plugins" not in sources
