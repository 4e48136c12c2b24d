from __future__ import annotations

from pathlib import Path

import pytest

from codi_engine import Experiment
from codi_engine.core.errors import UserError

GOOD = """
name: test
model: {plugin: codi, checkpoint: demo}
data: {plugin: demo-pairs, limit: 3}
intervention: {plugin: patch, site: resid_post, direction: denoise}
sweep:
  layer: all
  step: [0, 1]
metrics: [kl, {plugin: kl, direction: edited_to_baseline}]
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "e.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_reads_and_writes_itself(tmp_path: Path) -> None:
    experiment = Experiment.from_file(write(tmp_path, GOOD))
    again = Experiment.from_file(write(tmp_path, experiment.to_yaml()))
    assert again == experiment
    assert [m.plugin for m in experiment.metrics] == ["kl", "kl"]


def test_on_is_a_key_and_no_is_a_word(tmp_path: Path) -> None:
    text = GOOD.replace("direction: denoise", "on: clean").replace("plugin: patch", "plugin: zero")
    assert Experiment.from_file(write(tmp_path, text)).intervention.on == "clean"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: test", "name: test\nname: twice", r"e.yaml:3: duplicate key 'name'; it already stands in line 2"),
        ("sweep:", "sweeep:", r"e.yaml:6: sweeep: unknown key 'sweeep'; did you mean 'sweep'"),
        ("name: test", "name: [", "not valid YAML"),
        ("name: test", "name: ../evil", "plain file name"),
        ("name: test", "name: test\nseed: 1.5", r"e.yaml:3: seed: should be a valid integer"),
        ("name: test", "name: test\nmemory: 1e-3", "YAML reads 1e-3 as text; write 1.0e-03"),
        ("name: test", "name: test\ntrials: 5", "do_sample"),
        ("direction: denoise", "direction: denois", "direction"),
        ("data: {plugin: demo-pairs, limit: 3}", "", "data: is missing"),
        ("name: test", "name: &a test\noutput: *a", "aliases"),
        ("name: test", "name: test\ngenerate: {max_new_token: 3}", "did you mean 'max_new_tokens'"),
        ("name: test", "name: test\ncapture: [latent_out, {sea: demo}]", r"e.yaml:3: capture\[1\].sea: unknown key 'sea'; did you mean 'sae'"),
        ("name: test", "name: test\ncapture: [{sae: demo, reduce: men}]", r"capture\[0\].reduce: should be 'last', 'mean' or 'max'; got 'men'"),
        ("name: test", "name: test\ncontrols: [randm]", r"controls\[0\]: should be 'random', 'wrong_step' or 'shuffled'; got 'randm'"),
        ("name: test", "name: test\ncontrols: atuo", "controls: should be 'auto' or 'none'; got 'atuo'"),
    ],
)
def test_errors_name_line_field_and_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Experiment.from_file(write(tmp_path, GOOD.replace(old, new)))
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("text", ["", "- a", "3"])
def test_what_is_no_experiment_is_said_so(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"is empty|must be a mapping"):
        Experiment.from_file(write(tmp_path, text))


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Experiment.from_file(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="directory"):
        Experiment.from_file(tmp_path)


def test_overrides(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    experiment = Experiment.from_file(file, ["sweep.step=[2]", "data.limit=9", "metrics[0]=flip", "generate.max_new_tokens=3"])
    assert experiment.sweep["step"] == [2]
    assert experiment.data.options["limit"] == 9
    assert experiment.metrics[0].plugin == "flip"
    assert experiment.generate.max_new_tokens == 3
    for bad, message in (("swep.step=1", "did you mean 'sweep'"), ("x", "write a.b=value"), ("metrics[7]=kl", "2 entries")):
        with pytest.raises(UserError, match=message):
            Experiment.from_file(file, [bad])


def test_identity_leaves_out_what_a_run_grows_along(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    base = Experiment.from_file(file).identity()
    for change in ("data.limit=50", "sweep.step=[5]", "name=other", "model.device=cpu", "notes=x"):
        assert Experiment.from_file(file, [change]).identity() == base
    for change in ("seed=1", "metrics=[flip]", "intervention.direction=noise", "model.lora_alpha=16.0", "capture=[latent_out]"):
        assert Experiment.from_file(file, [change]).identity() != base
