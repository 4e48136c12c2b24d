"""What all suites share: the plugin under test, its options, and the demands that hold for every kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
from hypothesis import settings

from codi_engine.core import plugins as core_plugins
from codi_engine.core.contributed import fault
from codi_engine.core.errors import UserError
from codi_engine.core.explaining import plugin_options
from codi_engine.core.plugin import Options, Plugin
from codi_engine.core.plugins import KINDS, Plugins, Registered

#: the package that a plugin which no installed package contributes is tried as
UNDER_TEST = "under-test"
#: of hypothesis: the same tries in every invocation, and nothing left on disk
TRIES = settings(max_examples=25, deadline=None, derandomize=True, database=None)
DEMO: Mapping[str, Any] = {"plugin": "codi", "checkpoint": "demo", "device": "cpu"}


def demand(holds: object, contract: str) -> None:
    """Fail with the contract's words unless it holds."""
    __tracebackhide__ = True
    if not holds:
        raise AssertionError(contract)


@contextmanager
def offered(kind: str, cls: type[Plugin[Any]]) -> Iterator[str]:
    """Let every plugin manager know a class for a while, as if a package had contributed it; gives the name to ask for it by."""
    real = core_plugins.plugin_manager
    known = [r for r in real().registered if r.cls is cls]
    if known:
        yield f"{known[0].package}/{known[0].name}"
        return

    def manager(load: bool = True) -> Plugins:
        plugins = real(load)
        plugins.registered.append(Registered(kind, cls.name, UNDER_TEST, "0", cls))
        return plugins

    core_plugins.plugin_manager = manager
    try:
        yield f"{UNDER_TEST}/{cls.name}"
    finally:
        core_plugins.plugin_manager = real


class Suite:
    """Base of the suites. A subclass called ``Test…`` names the class and the options to try; pytest collects it.

    Attributes
    ----------
    plugin: the class under test
    options: one mapping per setting to try, as it would stand in an experiment file; every test runs for each of them
    """

    kind: ClassVar[str]
    plugin: ClassVar[Any]
    options: ClassVar[Sequence[Mapping[str, Any]]] = ({},)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run every test that asks for ``setting`` once per options mapping."""
        if "setting" in metafunc.fixturenames:
            given = list(metafunc.cls.options)
            metafunc.parametrize("setting", given, ids=[", ".join(f"{k}={v}" for k, v in g.items())[:60] or "defaults" for g in given])

    def build(self, setting: Mapping[str, Any]) -> Any:
        """Return the plugin with validated options."""
        return self.plugin(plugin_options(self.plugin, dict(setting), self.plugin.name, "options under test"))

    # ---------------------------------------------------------------------------------- every kind of plugin

    def test_it_is_a_complete_plugin_class(self) -> None:
        wrong = fault(self.plugin, self.kind, KINDS[self.kind], schema=True)
        demand(not wrong, f"{self.plugin!r} cannot be registered as {self.kind}: {wrong}")

    def test_its_docstrings_name_every_option(self) -> None:
        text = f"{self.plugin.__doc__}\n" + "\n".join(c.__doc__ or "" for c in self.plugin.Options.__mro__ if c is not Options and issubclass(c, Options))
        missing = [name for name in self.plugin.Options.model_fields if f"`{name}" not in text]
        demand(not missing, f"the docstring of {self.plugin.Options.__name__} is its help: name {', '.join(f'``{m}``' for m in missing)} there")

    def test_its_options_are_strict(self) -> None:
        config = self.plugin.Options.model_config
        for key in ("strict", "frozen"):
            demand(config.get(key), f"{self.plugin.Options.__name__} must keep `{key}=True` of codi_engine.core.plugin.Options")
        demand(config.get("extra") == "forbid", f"{self.plugin.Options.__name__} must keep `extra='forbid'`: a misspelt option must not pass in silence")

    def test_an_unknown_option_is_refused(self, setting: Mapping[str, Any]) -> None:
        with pytest.raises(UserError, match="no_such_option"):
            self.build({**setting, "no_such_option": 1})

    def test_its_options_survive_a_round_trip(self, setting: Mapping[str, Any]) -> None:
        options = self.build(setting).options
        again = type(options).model_validate_json(options.model_dump_json(by_alias=True))
        demand(again == options, f"options must be the same after writing them as JSON and reading them back: {options!r} became {again!r}")
