"""``codi-engine new-plugin``: a complete package of one plugin, which installs, is found and passes its own tests."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import click

from codi_engine.cli.options import DEBUG
from codi_engine.cli.plugins import KINDS

PREFIX = "codi-engine-"
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_LONGEST = 24
_BASES = {
    "model": "Model", "dataset": "Dataset", "intervention": "Intervention", "metric": "Metric", "analysis": "Analysis", "tracker": "Tracker",
    "sae_format": "SaeFormat",
}  # fmt: skip
_WORDS = {"dataset": "data set", "sae_format": "file format of sparse autoencoders"}
#: what a package of each kind does as it is written
_DOES = {
    "model": "A model plugin of codi-engine: a causal LM that is asked in a fixed form.",
    "dataset": "A data set plugin of codi-engine: problems from a CSV file.",
    "intervention": "An intervention plugin of codi-engine: the values at a site multiplied by a factor.",
    "metric": "A metric plugin of codi-engine: the lead of the right number over the next best token.",
    "analysis": "An analysis plugin of codi-engine: the mean of a metric at every place, with its interval and a figure.",
    "tracker": "A tracker plugin of codi-engine: when each unit of a run was committed, as a CSV file.",
    "sae_format": "A plugin of codi-engine that reads sparse autoencoders from .npz files.",
}
#: scipy comes without types
_SCIPY = '\n[[tool.mypy.overrides]]\nmodule = ["scipy.*"]\nignore_missing_imports = true\n'


@dataclass(frozen=True)
class Names:
    """How a new plugin is called everywhere: in experiment files, as a package, a module, a class."""

    kind: str
    snake: str

    @property
    def package(self) -> str:
        return PREFIX + self.snake.replace("_", "-")

    @property
    def module(self) -> str:
        return self.package.replace("-", "_")

    @property
    def cls(self) -> str:
        return "".join(part.capitalize() for part in self.snake.split("_"))

    def values(self) -> dict[str, str]:
        """Return what the templates fill in."""
        hook = "analyses" if self.kind == "analysis" else f"{self.kind}s"
        base = _BASES[self.kind]
        use = {
            "python -m pip install -e '.[test]'": "install it, editable",
            "python -m pytest": "its tests",
            f"codi-engine plugins show {self.snake}": "codi-engine knows it, with its options",
            "codi-engine run examples/experiment.yaml": "an experiment on the packaged demo model",
        }
        return {
            "name": self.snake, "snake": self.snake, "package": self.package, "module": self.module, "Class": self.cls, "title": self.cls,
            "kind": self.kind, "kind_words": _WORDS.get(self.kind, self.kind), "article": "an" if self.kind[0] in "aeiou" else "a",
            "Base": base, "hook": hook, "hook_type": "type[SaeFormat]" if base == "SaeFormat" else f"type[{base}[Any]]",
            "typing": "" if base == "SaeFormat" else "from typing import Any\n\n",
            "mypy": _SCIPY if self.kind == "analysis" else "", "summary": _DOES[self.kind],
            "commands": "\n".join(f"    {command:<50} # {what}" for command, what in use.items()),
        }  # fmt: skip


@click.command("new-plugin")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it is.")
@click.option("--directory", "parent", default=".", metavar="DIR", help="Where the package's folder is made. Default: here.")
@DEBUG
def new_plugin(name: str, kind: str, parent: str, debug: bool) -> None:
    """Write a package codi-engine-NAME with a working plugin, its tests and an experiment on the demo: start from there.

    \b
      codi-engine new-plugin scale --kind intervention
      codi-engine new-plugin answer-length --kind metric --directory ~/code
    """
    names = Names(kind, _checked(name))
    _refuse_builtin(names)
    folder = Path(parent).expanduser() / names.package
    _refuse_what_is_there(folder, parent)
    for path, text in rendered(names).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    if kind == "sae_format":
        _write_autoencoder(folder / "examples" / "sae_layer_0.npz")
    click.echo(f"{folder}: {names.values()['article']} {names.values()['kind_words']} called {names.snake}, in src/{names.module}/{names.snake}.py\n\nnext:")
    click.echo(f"  cd {folder}\n  python -m pip install -e '.[test]'\n  python -m pytest\n  codi-engine run examples/experiment.yaml")


def _checked(name: str) -> str:
    """Return the name in the form of experiment files.

    Raises
    ------
    UserError: it cannot be a package's, a module's and a class' name, or stands for something else already
    """
    from codi_engine.core.errors import UserError

    bare = name.removeprefix(PREFIX)
    if not _NAME.fullmatch(bare) or len(bare) > _LONGEST:
        hint = re.sub(r"[^a-z0-9]+", "-", bare.lower()).strip("-0123456789")[:_LONGEST].strip("-")
        raise UserError(f"new-plugin: '{name}': write small letters, digits and single dashes, {_LONGEST} at most" + (f", such as {hint}" if hint else ""))
    snake = bare.replace("-", "_")
    taken = {"models", "datasets", "interventions", "metrics", "analyses", "trackers", "sae_formats", "codi_engine", "plugin", "test"}
    taken |= {base.lower() for base in _BASES.values()} | {"options", "rows", "readings", "data", "example", "prompt", "run", "work", "sae", "figure", "path"}
    if keyword.iskeyword(snake) or snake.capitalize() in ("None", "True", "False") or snake in taken | set(KINDS):
        raise UserError(f"new-plugin: '{name}' stands for something else in Python or in codi-engine; call it my-{snake.replace('_', '-')}")
    return snake


def _refuse_builtin(names: Names) -> None:
    """Refuse a built-in's name: it keeps its short name, and the package's example would run the built-in."""
    from codi_engine.core.errors import UserError
    from codi_engine.core.plugins import plugin_manager

    if names.snake in plugin_manager(load=False).names(names.kind):
        shown = names.snake.replace("_", "-")
        raise UserError(f"new-plugin: '{shown}' is a built-in {names.values()['kind_words']}, which keeps its short name; call it my-{shown}")


def _refuse_what_is_there(folder: Path, parent: str) -> None:
    from codi_engine.core.errors import UserError

    if not Path(parent).expanduser().is_dir():
        raise UserError(f"new-plugin: --directory: '{parent}' is no directory; make it first, or give another")
    if folder.exists():
        raise UserError(f"new-plugin: '{folder}' is there already; choose another name or --directory")


def rendered(names: Names) -> dict[str, str]:
    """Return path → text of every file of the package."""
    root = Path(__file__).parents[1] / "templates" / "plugin"
    common, own, module = root / "common", root / names.kind, f"src/{names.module}"
    sources = {
        "pyproject.toml": common / "pyproject.toml.tmpl",
        "README.md": common / "README.md.tmpl",
        ".gitignore": common / "gitignore.tmpl",
        f"{module}/__init__.py": common / "__init__.py.tmpl",
        f"{module}/{names.snake}.py": own / "plugin.py.tmpl",
        f"tests/test_{names.snake}.py": own / "test.py.tmpl",
        "examples/experiment.yaml": own / "experiment.yaml.tmpl",
    }
    if names.kind == "dataset":
        sources["examples/problems.csv"] = own / "problems.csv.tmpl"
    values = names.values()
    texts = {path: Template(source.read_text(encoding="utf-8")).substitute(values) for path, source in sources.items()}
    return {**texts, f"{module}/py.typed": ""}


def _write_autoencoder(path: Path) -> None:
    """Write the packaged autoencoder of layer 0 in the template's format, for its example to read."""
    import numpy as np

    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.saestore import SaeStore

    sae = SaeStore(plugin_manager(load=False), "cpu").get("demo", 0)
    assert sae.threshold is not None
    tensors = {"W_enc": sae.w_enc, "b_enc": sae.b_enc, "W_dec": sae.w_dec, "b_dec": sae.b_dec, "threshold": sae.threshold}
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez(path, **arrays)
