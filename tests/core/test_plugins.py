"""The plugin manager: built-ins, installed packages, and packages that misbehave."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codi_engine.core import hookspecs
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import SPEC_VERSION
from codi_engine.core.plugins import ENVIRONMENT, HOOKS, KINDS, Plugins, plugin_manager

Install = Callable[..., str]

SCALE = '''
"""A third party's plugins."""
from codi_engine import hookimpl
from codi_engine.core.plugin import Intervention, Options


class ScaleOptions(Options):
    """``factor``: what values are multiplied by."""

    factor: float = 2.0


class Scale(Intervention[ScaleOptions]):
    """Multiply the site's values."""

    name = "{name}"
    Options = ScaleOptions

    def apply(self, rows):
        return rows.values * self.options.factor


@hookimpl
def interventions():
    return [{classes}]
'''


def scale(name: str = "scale", classes: str = "Scale") -> str:
    return SCALE.replace("{name}", name).replace("{classes}", classes)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with entry points on sys.path, as an installer leaves it; returns the module's name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    tag = re.sub(r"\W", "_", tmp_path.name)

    def make(package: str, *sources: str, version: str = "1.2") -> str:
        modules = [f"{package.replace('-', '_')}_{tag}_{number}" for number in range(len(sources))]
        for module, source in zip(modules, sources, strict=True):
            (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        folder = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n", encoding="utf-8")
        entries = "".join(f"part{number} = {module}\n" for number, module in enumerate(modules))
        (folder / "entry_points.txt").write_text(f"[{hookspecs.PROJECT}]\n{entries}", encoding="utf-8")
        return modules[0]

    return make


def only_problem(plugins: Plugins) -> str:
    assert len(plugins.problems) == 1, plugins.problems
    return str(plugins.problems[0])


def full_names(plugins: Plugins) -> set[str]:
    return {f"{r.kind}:{r.package}/{r.name}" for r in plugins.registered}


BUILTIN = full_names(plugin_manager(load=False))


# ------------------------------------------------------------------------------------------------ built-ins


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("model", {"codi", "causal_lm"}),
        ("dataset", {"problems", "pairs", "prompts", "demo-pairs", "demo-problems"}),
        ("intervention", {"zero", "mean", "resample", "patch", "noise", "steer"}),
        ("metric", {"accuracy", "flip", "kl", "logit_diff", "normalized_effect", "prob", "rank", "cross_entropy"}),
        ("analysis", {"importance"}),
        ("sae_format", {"saelens", "sparsify", "llama_scope", "llama_scope_r1", "llamascopium", "gemma_scope", "torch_pt"}),
    ],
)
def test_builtins_are_registered_without_problems(kind: str, names: set[str]) -> None:
    plugins = plugin_manager(load=False)
    assert plugins.problems == []
    assert names <= set(plugins.names(kind))
    assert {f"codi-engine/{n}" for n in names} <= set(plugins.names(kind))


def test_every_builtin_has_help_and_documented_options() -> None:
    for item in plugin_manager(load=False).registered:
        assert inspect.cleandoc(item.cls.__doc__ or "").splitlines()[0].strip(), item.name
        assert item.cls.Options.model_config.get("extra") == "forbid", item.name
        assert item.cls.Options.model_config.get("strict") is True, item.name


def test_managers_share_nothing() -> None:
    first, second = plugin_manager(load=False), plugin_manager(load=False)
    first.register(types.ModuleType("empty"), "somebody", "1")
    assert first.manager.has_plugin("somebody")
    assert not second.manager.has_plugin("somebody")


# --------------------------------------------------------------------------------------- asking and building


def test_get_by_short_and_full_name() -> None:
    plugins = plugin_manager(load=False)
    assert plugins.get("intervention", "zero") is plugins.get("intervention", "codi-engine/zero")


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UserError, match=r"file\.yaml: intervention\.plugin: unknown intervention 'patsh'; did you mean 'patch'"):
        plugin_manager(load=False).get("intervention", "patsh", "file.yaml: intervention.plugin")


def test_kinds_do_not_mix() -> None:
    with pytest.raises(UserError, match="unknown metric 'zero'"):
        plugin_manager(load=False).get("metric", "zero")


@pytest.mark.parametrize("mapping", ["noise", {"plugin": "noise"}, {"plugin": "codi-engine/noise", "sigma": 1.0}])
def test_build_validates_options(mapping: Any) -> None:
    built = plugin_manager(load=False).build("intervention", mapping, where="intervention", source="x.yaml")
    assert built.name == "noise"
    assert built.options.sigma == 1.0


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"plugin": "noise", "sigm": 1.0}, "unknown key 'sigm'; did you mean 'sigma'"),
        ({"plugin": "noise", "sigma": "1e-3"}, "YAML reads 1e-3 as text"),
        ({"plugin": "noise", "sigma": -1.0}, "greater than or equal to 0"),
        ({"sigma": 1.0}, "write {plugin: name"),
        (3, "write {plugin: name"),
    ],
)
def test_build_refuses_bad_options(mapping: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"x\.yaml: intervention") as caught:
        plugin_manager(load=False).build("intervention", mapping, where="intervention", source="x.yaml")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


# ------------------------------------------------------------------------------------------ a third party's


def test_an_installed_package_is_found(install: Install) -> None:
    install("codi-scale", scale())
    plugins = plugin_manager()
    found = next(r for r in plugins.registered if r.package == "codi-scale")
    assert (found.kind, found.name, found.version) == ("intervention", "scale", "1.2")
    built = plugins.build("intervention", {"plugin": "scale", "factor": 3.0}, where="intervention", source="x.yaml")
    assert built.options.factor == 3.0
    assert plugins.get("intervention", "codi-scale/scale") is type(built)
    assert plugins.problems == []


def test_a_hook_hidden_by_a_submodule_is_a_problem(install: Install, tmp_path: Path) -> None:
    """`from package.models import …` inside models() puts the submodule in the function's place: the next manager finds no hook."""
    module = install("codi-scale", "")
    (tmp_path / f"{module}.py").unlink()
    (tmp_path / module).mkdir()
    body = f"from codi_engine import hookimpl\n\n\n@hookimpl\ndef interventions():\n    from {module}.interventions import Scale\n\n    return [Scale]\n"
    (tmp_path / module / "__init__.py").write_text(body, encoding="utf-8")
    (tmp_path / module / "interventions.py").write_text(scale().split("@hookimpl")[0], encoding="utf-8")
    assert "interventions() is hidden by the submodule 'interventions'; give the submodule another name" in only_problem(plugin_manager())


def test_load_false_leaves_it_alone(install: Install) -> None:
    install("codi-scale", scale())
    assert full_names(plugin_manager(load=False)) == BUILTIN


def test_two_entry_points_of_one_package_both_count(install: Install) -> None:
    install("codi-scale", scale("first"), scale("second"))
    plugins = plugin_manager()
    assert plugins.problems == []
    assert {"first", "second"} <= set(plugins.names("intervention"))


def test_a_builtin_keeps_its_short_name(install: Install) -> None:
    install("codi-scale", scale("zero"))
    plugins = plugin_manager()
    assert plugins.get("intervention", "zero").__module__ == "codi_engine.plugins.interventions.ablate"
    assert plugins.get("intervention", "codi-scale/zero").__name__ == "Scale"


def test_a_short_name_of_two_packages_is_ambiguous(install: Install) -> None:
    install("codi-scale", scale())
    install("codi-other", scale())
    with pytest.raises(UserError, match="write one of codi-other/scale, codi-scale/scale"):
        plugin_manager().get("intervention", "scale")


@pytest.mark.parametrize(("allowed", "found"), [("codi-scale", True), ("Codi_Scale, other", True), ("", False), ("other", False)])
def test_the_environment_restricts(install: Install, monkeypatch: pytest.MonkeyPatch, allowed: str, found: bool) -> None:
    install("codi-scale", scale())
    monkeypatch.setenv(ENVIRONMENT, allowed)
    plugins = plugin_manager()
    assert ("scale" in plugins.names("intervention")) is found
    assert full_names(plugins) >= BUILTIN


def test_a_package_named_but_not_installed_is_reported(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("codi-scale", scale())
    monkeypatch.setenv(ENVIRONMENT, "codi-scael")
    assert only_problem(plugin_manager()).startswith("codi-scael: named in CODI_ENGINE_PLUGINS, but")
    monkeypatch.setenv(ENVIRONMENT, "codi-engine")  # always there
    assert plugin_manager().problems == []


# ---------------------------------------------------------------------------------------- what is left out

HOOK = "from codi_engine import hookimpl\n@hookimpl\n"
METRIC = """
from codi_engine import hookimpl
from codi_engine.core.plugin import Metric, NoOptions

class Mine(Metric):
    'A metric.'
    name = 'mine'
    Options = NoOptions
    ATTRIBUTE
    def measure(self, read): return {'mine': read.gold}

@hookimpl
def metrics(): return [Mine]
"""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('broken')", "cannot be imported: RuntimeError: broken"),
        ("import no_such_module_at_all", "cannot be imported: ModuleNotFoundError"),
        ("import sys\nsys.exit(3)", "cannot be imported: SystemExit"),
        ("def (", "cannot be imported: SyntaxError"),
        ("codi_engine_spec = 99\n" + scale(), f"written for hook specification 99, this codi-engine has {SPEC_VERSION}: upgrade codi-engine"),
        ("codi_engine_spec = 0\n" + scale(), f"written for hook specification 0, this codi-engine has {SPEC_VERSION}: upgrade codi-broken"),
        ("codi_engine_spec = '1'\n" + scale(), "codi_engine_spec must be a whole number, the specification it was written for; it is '1'"),
        ("codi_engine_spec = True\n" + scale(), "codi_engine_spec must be a whole number"),
        (HOOK + "def interventionz(): return []", "interventionz() is no hook and is passed over; did you mean 'interventions'"),
        (HOOK + "def unit_comitted(unit): pass", "unit_comitted() is no hook and is passed over; did you mean 'unit_committed'"),
        (scale().replace("@hookimpl", ""), "interventions() is not marked with @hookimpl and is passed over; write 'from codi_engine import hookimpl'"),
        (HOOK + "def interventions(everything): return []", "cannot be registered: "),
        (HOOK + "def analyses(): raise KeyError('k')", "analyses() failed: KeyError"),
        (HOOK + "def metrics(): return None", "metrics() must return a list of classes; it returned None"),
        (HOOK + "def metrics(): return 'kl'", "metrics() must return a list of classes; it returned 'kl'"),
        (HOOK + "def metrics(): return {'int': int}", "metrics() must return a list of classes; it returned {'int': <class 'int'>}"),
        (scale().replace("[Scale]", "Scale"), "interventions() must return a list of classes; it returned <class '"),
        (scale().replace("[Scale]", "[Scale(ScaleOptions())]"), "not a subclass of Intervention (an instance: return the class itself)"),
        (scale().replace('name = "scale"', 'name = "scale"\n    source = "donors"'), "`source` must be one of None, 'own', 'partner', 'donor'"),
        ("def __getattr__(name): raise RuntimeError(name)", "cannot be registered: RuntimeError: codi_engine_spec"),
        ("from codi_engine import hookimpl\n@hookimpl(wrapper=True)\ndef run_started(path): yield", "run_started() is marked as a wrapper"),
        (METRIC.replace("ATTRIBUTE", "needs = frozenset({'number_logit'})"), "`needs` holds 'number_logit'; did you mean 'number_logits'"),
        (METRIC.replace("ATTRIBUTE", "needs = 'generation'"), "`needs` must be a set of names, such as frozenset({'captures'}); it is 'generation'"),
        (METRIC.replace("ATTRIBUTE", "applies_to = frozenset({'problem'})"), "`applies_to` holds 'problem'; did you mean 'problems'"),
        (HOOK + "def metrics(): return [int]", "metric 'int' of metrics() left out: not a subclass of Metric"),
        (HOOK + "def metrics(): return [3]", "metric '3' of metrics() left out: not a subclass of Metric"),
        (scale().replace("interventions()", "metrics()"), "metric 'scale' of metrics() left out: not a subclass of Metric"),
        (scale("a b"), "`name` must be letters"),
        (scale().replace('name = "scale"', ""), "intervention 'Scale' of interventions() left out: `name` must be letters"),
        (scale().replace("    Options = ScaleOptions\n", "    Options = dict\n"), "`Options` is not a subclass"),
        (scale().replace('"""Multiply the site\'s values."""', ""), "has no docstring"),
        (scale().replace("def apply", "def applied"), "intervention 'scale' of interventions() left out: lacks apply()"),
        (scale().replace("factor: float = 2.0", "site: str = 'x'"), "its option 'site' is a key that the experiment file reads itself"),
        (scale().replace("factor: float = 2.0", "plugin: str = 'x'"), "its option 'plugin' is a key that the experiment file reads itself"),
        (
            "from collections.abc import Callable\n" + scale().replace("factor: float = 2.0", "factor: Callable[[], int] = int"),
            "its options cannot be turned into a schema (PydanticInvalidForJsonSchema",
        ),
        (scale().replace("factor: float = 2.0", "factor: 'Unknown' = 2.0"), "its options cannot be turned into a schema ("),
    ],
)
def test_a_broken_package_is_named_and_left_out(install: Install, source: str, message: str) -> None:
    install("codi-broken", source)
    plugins = plugin_manager()
    problem = only_problem(plugins)
    assert problem.startswith("codi-broken 1.2: ")
    assert message in problem
    assert "\n" not in problem
    assert full_names(plugins) == BUILTIN
    if "cannot be registered" in message:
        assert not plugins.manager.has_plugin("codi-broken:part0")


def test_what_was_left_out_under_the_name_that_is_missed_comes_alone(install: Install) -> None:
    install("codi-broken", "raise RuntimeError('broken')")
    install("codi-scale", scale().replace("def apply", "def applied"))
    with pytest.raises(UserError) as caught:
        plugin_manager().get("intervention", "scale")
    assert str(caught.value).splitlines()[1] == "left out: codi-scale 1.2: intervention 'scale' of interventions() left out: lacks apply()"
    with pytest.raises(UserError, match=r"left out: codi-broken 1\.2: cannot be imported"):
        plugin_manager().get("intervention", "other")


def test_a_broken_package_does_not_take_others_along(install: Install) -> None:
    install("codi-broken", "raise RuntimeError('broken')")
    install("codi-scale", scale())
    plugins = plugin_manager()
    assert "scale" in plugins.names("intervention")
    assert only_problem(plugins).startswith("codi-broken 1.2")


def test_the_second_class_of_a_name_is_left_out(install: Install) -> None:
    install("codi-scale", scale(classes="Scale, Scale"))
    plugins = plugin_manager()
    assert sum(r.name == "scale" for r in plugins.registered) == 1
    assert only_problem(plugins) == "codi-scale 1.2: intervention 'scale' of interventions() left out: the name stands twice"


def test_a_misspelt_hook_leaves_the_others_in_place(install: Install) -> None:
    install("codi-scale", scale() + "\n\n@hookimpl\ndef metricz():\n    return []\n")
    plugins = plugin_manager()
    assert only_problem(plugins) == "codi-scale 1.2: metricz() is no hook and is passed over; did you mean 'metrics'?"
    assert "scale" in plugins.names("intervention")


def test_what_was_left_out_is_said_where_a_name_is_unknown(install: Install) -> None:
    install("codi-broken", "import no_such_module_at_all")
    with pytest.raises(UserError) as caught:
        plugin_manager().get("metric", "foo", "x.yaml: metrics[0].plugin")
    first, second = str(caught.value).splitlines()
    assert first.startswith("x.yaml: metrics[0].plugin: unknown metric 'foo'; ")
    assert second == "left out: codi-broken 1.2: cannot be imported: ModuleNotFoundError: No module named 'no_such_module_at_all'"


def test_many_left_out_are_counted(install: Install) -> None:
    for number in range(5):
        install(f"codi-broken{number}", "import no_such_module_at_all")
    with pytest.raises(UserError, match=r"codi-broken2 1\.2: .*; and 2 more \('codi-engine plugins' lists them\)$") as caught:
        plugin_manager().get("metric", "foo")
    assert "codi-broken3" not in str(caught.value)


def test_a_builtin_that_lacks_a_library_is_said_like_a_third_partys(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        @hookspecs.hookimpl
        def metrics() -> list[type]:
            raise ModuleNotFoundError("No module named 'sklearn'")

    plugins = Plugins()
    plugins.register(Broken, "codi-engine", "0.1.0")
    with pytest.raises(UserError) as caught:
        plugins.get("metric", "kl")
    said = "unknown metric 'kl'; none is known\nleft out: codi-engine 0.1.0: metrics() failed: ModuleNotFoundError: No module named 'sklearn'"
    assert str(caught.value).endswith(said)


def test_how_a_name_is_written(install: Install) -> None:
    install("codi-scale", scale())
    install("codi-other", scale())
    install("codi-third", scale("zero"))
    plugins = plugin_manager()
    written = {r.package: plugins.written(r) for r in plugins.registered if r.name in ("scale", "zero")}
    assert written == {"codi-scale": "codi-scale/scale", "codi-other": "codi-other/scale", "codi-third": "codi-third/zero", "codi-engine": "zero"}


def test_a_package_registered_twice_keeps_its_first() -> None:
    plugins = plugin_manager(load=False)
    plugins.register(types.ModuleType("one"), "somebody", "1")
    plugins.register(types.ModuleType("two"), "somebody", "1")
    assert only_problem(plugins).startswith("somebody 1: cannot be registered")
    assert plugins.manager.has_plugin("somebody")


# --------------------------------------------------------------------------------------------- the hooks


def test_lifecycle_hooks_reach_an_installed_package(install: Install) -> None:
    install("codi-watch", HOOK + "def unit_committed(unit, cells):\n    return (unit, cells)\n")
    plugins = plugin_manager()
    assert plugins.problems == []
    assert plugins.hook.unit_committed(path=Path("runs/x"), unit=2, units=5, cells=256) == [(2, 256)]


def hooks() -> dict[str, list[str]]:
    """Hook → its arguments, from the specification."""
    found = {n: f for n, f in vars(hookspecs).items() if hasattr(f, f"{hookspecs.PROJECT}_spec")}
    return {name: list(inspect.signature(function).parameters) for name, function in found.items()}


def test_there_is_a_hook_for_every_kind() -> None:
    assert set(HOOKS) == set(KINDS)
    assert set(HOOKS.values()) <= set(hooks())


def test_docs_head_every_hook_with_its_signature() -> None:
    text = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    headed = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert headed == [f"{name}({', '.join(arguments)})" for name, arguments in hooks().items()]


def test_the_whole_plugin_of_the_docs_works(install: Install) -> None:
    text = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    source = re.search(r"```python\n(# codi_scale\.py.+?)```", text, re.DOTALL)
    assert source is not None
    install("codi-scale", source[1])
    plugins = plugin_manager()
    assert plugins.problems == []
    built = plugins.build("intervention", {"plugin": "scale"}, where="intervention", source="x.yaml")
    assert built.identity()
