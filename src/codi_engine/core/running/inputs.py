"""What a run is computed from: a digest for every file, kept in the ledger's plans and compared whenever the run goes on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.calling import calling
from codi_engine.core.errors import CodiEngineError, DifferentRun, UserError
from codi_engine.core.planning.conditions import build_intervention
from codi_engine.core.planning.features import table_path
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import EXPERIMENT, LEDGER
from codi_engine.store.ledger import read_ledger
from codi_engine.store.state import State

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.planning.conditions import Condition
    from codi_engine.core.planning.plan import Plan
    from codi_engine.core.plugin import Model
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.saestore import SaeStore

#: what the digests of a plan record are called
KEY = "inputs"
MODEL, DATA = "model", "data"
MODEL_FILE, _SAE, _FILE, _RUN, _TABLE = "model file ", "autoencoder ", "file ", "run ", "table "
_CHAIN = re.compile(r'"chain":"([0-9a-f]{64})"')
#: bytes up to which every worker reads a model's file again; larger ones are weights, which the model's own digest covers
SMALL = 1 << 24


# --------------------------------------------------------------------------------------------- digests


def digest_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, of all files of a directory, or the hash at the end of a run's ledger.

    Raises
    ------
    OSError: it cannot be read
    """
    if (path / LEDGER).is_file():
        return read_ledger(path / LEDGER).chain
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def model_digests(model: Model[Any], most: int | None = None) -> dict[str, str]:
    """Return the digests of a model's files: weights, configuration and tokenizer; those of ``most`` bytes only where it is given."""
    with calling(model, "files"):
        files = dict(model.files())
    return {f"{MODEL_FILE}{name}": digest_of(path) for name, path in files.items() if most is None or path.stat().st_size <= most}


def other_digests(experiment: Experiment, plugins: Plugins, conditions: Sequence[Condition], saes: SaeStore) -> dict[str, str]:
    """Return the digests of everything else that units are computed from: autoencoders, and the files and runs that options name."""
    found = {f"{_SAE}{name}": digest for name, digest in saes.digests().items()}
    for path in sorted(_named(plugins, conditions)):
        place = Path(path).expanduser()
        if place.exists():
            found[f"{_RUN if (place / LEDGER).is_file() else _FILE}{path}"] = digest_of(place)
    for name in sorted(set(_tables(experiment.to_dict()))):
        if table_path(name).is_file():
            found[f"{_TABLE}{name}"] = digest_of(table_path(name))
    return found


def _named(plugins: Plugins, conditions: Sequence[Condition]) -> set[str]:
    """Return the files and run directories that the conditions' interventions name."""
    from codi_engine.core.planning.plan import build_intervention

    out: set[str] = set()
    for condition in conditions:
        made = build_intervention(plugins, condition.plugin, condition.first_options, "", "")
        with calling(made, "files"):
            out |= {str(path) for path in made.files()}
    return out


def _tables(value: Any) -> Iterator[str]:
    """Yield the tables of features that an experiment names: ``{from: FILE}``."""
    if isinstance(value, Mapping):
        if isinstance(value.get("from"), str) and set(value) <= {"from", "limit"}:
            yield value["from"]
        for key, inner in value.items():
            if key != "checkpoints":
                yield from _tables(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _tables(inner)


# ------------------------------------------------------------------------------------------- comparing


def recorded(plans: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return what a run says it was computed from; runs of before say it in their provenance."""
    out = {name: str(provenance[key]) for name, key in ((MODEL, "model_digest"), (DATA, "data_digest")) if provenance.get(key)}
    out.update({f"{_SAE}{path}": str(digest) for path, digest in dict(provenance.get("saes") or {}).items()})
    for plan in plans:
        out.update({str(k): str(v) for k, v in (plan.get(KEY) or {}).items()})
    return out


def compare(then: Mapping[str, str], now: Mapping[str, str], path: Path, pooled: str | None) -> None:
    """Refuse to go on with a run whose inputs have changed. Data may grow, and so may runs and tables of features.

    Parameters
    ----------
    pooled: the condition (or metric) that takes values of all examples; None where none does, and then other data are only more examples

    Raises
    ------
    DifferentRun: something has changed
    """
    changed = [name for name, digest in then.items() if name in now and now[name] != digest]
    for name in sorted(changed, key=lambda n: n != MODEL):
        said = f"sha256 {then[name][:12]} then, {now[name][:12]} now"
        if name == MODEL:
            files = ", ".join(n.removeprefix(MODEL_FILE) for n in changed if n.startswith(MODEL_FILE))
            what = f"other model files ({said}{f'; changed: {files}' if files else ''})"
        elif name == DATA:
            if pooled is None:
                continue
            what = f"other data ({said}); '{pooled}' draws from all of them"
        elif name.startswith(_TABLE) or (name.startswith(_RUN) and _grew(Path(name.removeprefix(_RUN)), then[name])):
            continue
        else:
            what = f"{in_words(name)} ({said})"
        raise DifferentRun(f'{path}: was computed with {what}.\nChoose a new output, for example --output "runs/{{date}}_{{name}}_s{{seed}}".')


def in_words(name: str) -> str:
    """Say which other input it was: ``other data``, ``another file 'x'``."""
    if name in (MODEL, DATA):
        return "other model files" if name == MODEL else "other data"
    for prefix, words in (
        (MODEL_FILE, "another {} of the model"),
        (_SAE, "another autoencoder '{}'"),
        (_FILE, "another file '{}'"),
        (_RUN, "another run '{}'"),
    ):
        if name.startswith(prefix):
            return words.format(name.removeprefix(prefix))
    return f"another {name}"


def _grew(run: Path, chain: str) -> bool:
    """Say whether a run's ledger still holds, as its beginning, the ledger that ended with this hash."""
    try:
        text = (run.expanduser() / LEDGER).read_bytes().decode("ascii", "replace")
    except OSError:
        return False
    return chain in _CHAIN.findall(text)


# --------------------------------------------------------------------------------- of a run that is there


def changed_inputs(run_path: str | Path) -> list[tuple[str, str]]:
    """Return (what, problem) for every input of a run that is no longer what it was computed with, or is not here; no model is loaded.

    Relative paths count from the current directory, as they did when the run was computed. Imported and synthetic runs have no inputs.

    Raises
    ------
    UserError: no run there
    """
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.yamlfile import parse_yaml
    from codi_engine.store.provenance import read_provenance

    root = Path(run_path)
    try:
        content = read_ledger(root / LEDGER)
        state = State.of(content.records, str(root)) if content.records else None
    except StoreError as error:
        raise UserError(str(error)) from None
    if state is None:
        raise UserError(f"{root}: holds no run")
    try:
        provenance = read_provenance(root)
    except StoreError:
        provenance = {}  # whoever asks has named it already; the ledger says the same
    then = recorded(state.plans, provenance)
    try:
        value, _ = parse_yaml(state.experiment, EXPERIMENT)
        if not then or not isinstance(value, dict) or "model" not in value:
            return []
        experiment, plugins = Experiment.from_dict(value, source=str(root)), plugin_manager()
    except CodiEngineError as error:  # of another version, or a package that is not here or fails: nothing of it can be compared
        return [(EXPERIMENT, _absent(error))]
    return [(name.removeprefix(MODEL_FILE), problem) for name, problem in _problems(experiment, plugins, then)]


def _problems(experiment: Experiment, plugins: Plugins, then: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what has changed, by name; nothing is said of a model whose files were never recorded one by one."""
    from codi_engine.core.returned import loaded
    from codi_engine.core.saestore import SaeStore

    files: dict[str, Path] = {}
    if any(name.startswith(MODEL_FILE) for name in then):
        try:
            model = plugins.build("model", experiment.model, where="model", source=experiment.source)
            with calling(model, "files"):
                files = dict(model.files())
        except (CodiEngineError, StoreError, OSError) as error:  # a plugin that fails says nothing of the other inputs
            yield MODEL, _absent(error)
            then = {n: d for n, d in then.items() if not n.startswith(MODEL_FILE)}
    for name, digest in then.items():
        try:
            if name == MODEL:
                continue
            if name == DATA:
                now = loaded(plugins.build("dataset", experiment.data, where="data", source=experiment.source)).digest
            elif name.startswith(MODEL_FILE):
                if name.removeprefix(MODEL_FILE) not in files:
                    yield name, "is not here"
                    continue
                now = digest_of(files[name.removeprefix(MODEL_FILE)])
            elif name.startswith(_SAE):
                now = SaeStore(plugins, "cpu").named_digest(name.removeprefix(_SAE))
            else:
                now = digest_of(_path(name))
        except (CodiEngineError, StoreError, OSError) as error:
            yield name, _absent(error)
            continue
        if now != digest and not (name.startswith(_RUN) and _grew(_path(name), digest)):
            yield name, f"is no longer what the run was computed with (sha256 {digest[:12]} then, {now[:12]} now)"


def _absent(error: Exception) -> str:
    return f"is not here or cannot be read: {getattr(error, 'strerror', None) or ' '.join(str(error).splitlines())}"


def _path(name: str) -> Path:
    return table_path(name.removeprefix(_TABLE)) if name.startswith(_TABLE) else Path(name.split(" ", 1)[1]).expanduser()


def pooled(plan: Plan, plugins: Plugins) -> str | None:
    """Name what takes values of all examples, not of its own alone: there another data file is another experiment."""
    found = next((c.name for c in plan.conditions if c.differences or c.plugin.needs_scale or _draws(c, plugins)), None)
    return found or ("unusual" if plan.natural else None)


def _draws(condition: Condition, plugins: Plugins) -> bool:
    probe = build_intervention(plugins, condition.plugin, condition.first_options, "", "")
    return probe.source in ("donor", "mean", "mean_over_steps") or condition.control == "shuffled"
