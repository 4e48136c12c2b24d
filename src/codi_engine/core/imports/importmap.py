"""What is imported as what: files with placeholders, and ``TARGET=SOURCE`` entries."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.imports.foreign import ARRAYS
from codi_engine.core.imports.foreign_records import RECORDS, plain_label, template
from codi_engine.core.imports.foreignarray import UNPICKLE
from codi_engine.core.sites import COMPONENTS, parse_site

#: order of a run's cells; other axes follow in the order in which they are named
CANONICAL = ("target", "condition", "example", "variant", "trial")
RESERVED = ("cell", "status", "answer", "text", "key", "slot", "metrics", "activations", "fields", "edited")
#: the record's number, as source of an axis
NUMBER = "#"
_AXIS = re.compile(r"[A-Za-z_]\w*\Z")
_NAME = re.compile(r"[A-Za-z0-9_][\w.@\[\],+=-]{0,99}\Z", re.ASCII)
_BRACKETS = re.compile(r"(?P<path>.+)\[(?P<inside>[^\[\]]*)\]\Z", re.DOTALL)
_PICKLES = (".pkl", ".pickle", ".p", ".joblib", ".bin", ".ckpt")
_HELP = "TARGET is an axis, text, answer, metrics/NAME, activations/SITE or fields/NAME"


@dataclass(frozen=True)
class File:
    """A source file, the axis labels that its name binds, and the name it has in the run's identity."""

    path: Path
    bound: tuple[tuple[str, str | int], ...] = ()
    name: str = ""

    @property
    def records(self) -> bool:
        return self.path.suffix.lower() in RECORDS


@dataclass(frozen=True)
class Entry:
    """One ``TARGET=SOURCE``.

    Attributes
    ----------
    kind: ``axis``, ``text``, ``answer``, ``metrics``, ``activations`` or ``fields``
    name: the axis, metric, site or field
    file: which file alone is meant; empty means any
    path: array name or dotted path
    axes, dims: what the brackets say before and after the semicolon; None where they say nothing
    labels: an axis' labels given in place of a source
    """

    target: str
    source: str
    kind: str
    name: str
    file: str = ""
    path: str = ""
    axes: tuple[str, ...] | None = None
    dims: tuple[str, ...] | None = None
    labels: tuple[Any, ...] | None = None

    def fits(self, file: File) -> bool:
        return not self.file or self.file in (file.path.name, str(file.path))


# ------------------------------------------------------------------------------------------------------- files


def find_files(patterns: Sequence[str]) -> list[File]:
    """Return the files that the arguments name, in order; a placeholder such as ``{target}`` binds an axis to a part of the name.

    Raises
    ------
    UserError: nothing there, or a format that is not read
    """
    out: dict[Path, File] = {}
    for pattern in patterns:
        found = _matching(pattern)
        if not found:
            raise UserError(f"{pattern}: no such file")
        for file in found:
            if file.path in out:
                raise UserError(f"{file.path}: is named twice; give every file once")
            _check_suffix(file.path)
            out[file.path] = file
    if not out:
        raise UserError("import: give at least one file")
    return _named(list(out.values()))


def _matching(pattern: str) -> list[File]:
    if "{" in pattern and not Path(pattern).exists():
        expression = template(pattern, "[^/]+")
        wild = "".join("*" if i % 2 else glob.escape(piece) for i, piece in enumerate(re.split(r"\{([A-Za-z_]\w*)\}", pattern)))
        found = []
        for name in glob.glob(wild):
            if match := expression.fullmatch(name):
                found.append(File(Path(name), tuple((k, plain_label(v)) for k, v in match.groupdict().items())))
        for name in expression.groupindex:
            _check_axis(name, pattern)
        return sorted(found, key=lambda f: ([(isinstance(v, str), v) for _, v in f.bound], f.path))
    paths = [Path(pattern)] if Path(pattern).exists() else sorted(Path(p) for p in glob.glob(pattern))
    for path in paths:
        if path.is_dir():
            raise UserError(f'{path}: is a directory; name its files, for example "{path}/*.npz"')
    return [File(p) for p in paths]


def _named(files: Sequence[File]) -> list[File]:
    """Name every file by its path below the folder that all share, so that a moved folder stays the same source."""
    parents = [f.path.resolve().parent.parts for f in files]
    shared = 0
    while all(len(p) > shared and p[shared] == parents[0][shared] for p in parents):
        shared += 1
    return [File(f.path, f.bound, "/".join(f.path.resolve().parts[shared:])) for f in files]


def _check_suffix(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise UserError(f"{path}: is not read: {UNPICKLE.format(path)}")
    if suffix not in (*ARRAYS, *RECORDS):
        raise UserError(f"{path}: files ending in '{suffix}' are not read; convert it to one of {', '.join((*ARRAYS, *RECORDS))}")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


# --------------------------------------------------------------------------------------------------------- map


def read_map(given: Sequence[str] | Mapping[str, Any]) -> list[Entry]:
    """Return the entries of ``TARGET=SOURCE`` texts (``@FILE`` reads a YAML file of them) or of a mapping.

    Raises
    ------
    UserError: an entry that cannot be read, or a target that is mapped twice
    """
    pairs: list[tuple[str, Any]] = []
    if isinstance(given, Mapping):
        pairs = _pairs(given, "map")
    else:
        for text in given:
            pairs += _from_file(text[1:]) if text.startswith("@") else [_split(text, "--map")]
    entries = [_entry(target, source) for target, source in pairs]
    seen: dict[str, Entry] = {}
    for entry in entries:
        old = seen.setdefault(entry.target, entry)
        if old is not entry and entry.kind != "axis":
            raise UserError(f"--map {entry.target}: is mapped twice, to '{old.source}' and '{entry.source}'; give one source")
    if all(entry.kind == "axis" for entry in entries):
        raise UserError("--map: says no values; add one, for example --map text=response or --map 'activations/latent_out=states[example ; step, width]'")
    return entries


def _split(text: str, where: str) -> tuple[str, str]:
    target, equals, source = text.partition("=")
    if not equals or not target.strip() or not source.strip():
        raise UserError(f"{where} {text}: write TARGET=SOURCE; {_HELP}")
    return target.strip(), source.strip()


def _from_file(path: str) -> list[tuple[str, Any]]:
    from codi_engine.core.yamlfile import read_yaml

    content = read_yaml(Path(path))[0]
    if isinstance(content, list):
        return [_split(str(item), path) for item in content]
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: must be a mapping of TARGET: SOURCE, or a list of TARGET=SOURCE")
    return _pairs(content, path)


def _pairs(content: Mapping[str, Any], where: str) -> list[tuple[str, Any]]:
    out = []
    for target, source in content.items():
        if not isinstance(source, (str, list, tuple)) or not source:
            raise UserError(f"{where}: {target}: the source must be text, or a list of labels; got {source!r}")
        out.append((str(target), source if isinstance(source, str) else list(source)))
    return out


def _entry(target: str, source: Any) -> Entry:
    kind, name = _target(target)
    where = f"--map {target}"
    if isinstance(source, list) or source.startswith("["):
        if kind != "axis":
            raise UserError(f"{where}: a list of labels can be given for an axis only")
        labels = _labels(source, where)
        return Entry(target, json.dumps(labels), kind, name, labels=labels)
    match = _BRACKETS.match(source)
    path, inside = (match["path"], match["inside"]) if match else (source, None)
    file, path = _qualified(path)
    if inside is None:
        return Entry(target, source, kind, name, file, path)
    if kind == "axis":
        raise UserError(f"{where}: labels are a whole array or a dotted path; write {target}={match['path'] if match else source}")
    before, semicolon, after = inside.partition(";")
    axes, dims = _names(before, where), _names(after, where) if semicolon else None
    if kind == "activations" and dims is None and axes:
        axes, dims = axes[:-1], axes[-1:]
    if kind != "activations" and dims:
        raise UserError(f"{where}: is one value a cell; write all dimensions of {path} as axes, before the semicolon")
    for axis in axes:
        _check_axis(axis, where)
    if len({*axes, *(dims or ())}) != len(axes) + len(dims or ()) or "cell" in (dims or ()):
        raise UserError(f"{where}: [{inside}] names a dimension twice, or 'cell', which the run uses itself")
    return Entry(target, source, kind, name, file, path, axes, dims or ())


def _target(target: str) -> tuple[str, str]:
    kind, slash, name = target.partition("/")
    if not slash and kind in ("text", "answer"):
        return kind, kind
    if not slash:
        _check_axis(target, "--map")
        return "axis", target
    if kind not in ("metrics", "activations", "fields"):
        raise UserError(f"--map {target}: {nearest(kind, ['metrics', 'activations', 'fields'])} {_HELP}")
    if kind == "activations":
        return kind, site_name(name)
    if not _NAME.match(name) or name in ("key", "text", "slot", "answer"):
        raise UserError(f"--map {target}: '{name}' cannot be the name of a column; use letters, digits and _ . -")
    return kind, name


def site_name(name: str) -> str:
    """Return the canonical address of a site; a name that is no address of ours is kept as it is."""
    try:
        return str(parse_site(name, f"--map activations/{name}"))
    except UserError:
        if re.split(r"[.@\[]", name)[0] in COMPONENTS or "@" in name:  # meant as an address
            raise
    if not _NAME.match(name):
        raise UserError(f"--map activations/{name}: a site is an address such as resid_post.8@latent, or a name of letters, digits and _ . -")
    return name


def _check_axis(name: str, where: str) -> None:
    if not _AXIS.match(name) or name in RESERVED:
        raise UserError(f"{where}: '{name}' cannot be an axis; {_HELP}")


def _names(text: str, where: str) -> tuple[str, ...]:
    names = tuple(n.strip() for n in text.split(",")) if text.strip() else ()
    for name in names:
        if not _AXIS.match(name):
            raise UserError(f"{where}: '{name}' is not the name of a dimension; write for example [example ; step, width]")
    return names


def _qualified(path: str) -> tuple[str, str]:
    """Split ``FILE:path``."""
    file, colon, rest = path.partition(":")
    if colon and rest and Path(file).suffix.lower() in (*ARRAYS, *RECORDS):
        return file, rest
    return "", path


def _labels(source: Any, where: str) -> tuple[Any, ...]:
    try:
        values = json.loads(source) if isinstance(source, str) else source
        return tuple(label(v) for v in values)
    except (ValueError, RecursionError):
        raise UserError(f'{where}: labels are a JSON list of words and numbers, for example ["safe", "risky"]') from None


def label(value: Any) -> str | int | float:
    """Return an axis label: text, or a number; ``ValueError`` for what can be neither."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError
        return int(value) if value.is_integer() else value
    if isinstance(value, str):
        return plain_label(value.encode("utf-8", "replace").decode())  # a lone surrogate has no UTF-8
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    raise ValueError
