"""Labels of checkpoints: what may be one, and the number that orders them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from codi_engine.core.naming import unfit_name

FROM = "from"
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
#: what else lies beside the runs
_TAKEN = ("results", "experiment.yaml")


def label_of(path: str) -> str:
    """Return what a checkpoint is called: its last name, without the suffix of a weight file."""
    name = Path(path).name
    return name.removesuffix(".safetensors").removesuffix(".bin").removesuffix(".pt")


def checked(value: Any) -> Any:
    """Return the ``checkpoints`` of an experiment with labels as words; paths are not looked at.

    Raises
    ------
    ValueError: what is wrong with their shape, or with a label
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        if list(value) == [FROM] and isinstance(value[FROM], str):
            return dict(value)
        if not all(isinstance(k, (str, int, float)) and not isinstance(k, bool) for k in value):
            raise ValueError("labels are words or numbers")
        for label, model in value.items():
            if not (isinstance(model, str) and model.strip()) and not isinstance(model, Mapping):
                raise ValueError(f"'{label}' is what differs in model:, such as {{checkpoint: runs/ckpt-1000}}, or a path; got {model!r}")
        check_labels([str(k) for k in value])
        return {str(k): v for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not all(isinstance(v, str) and v.strip() for v in value):
            raise ValueError("a list is one of paths; to change other keys of model: write label: {key: value}")
        check_labels([label_of(v) for v in value])
        return list(value)
    raise ValueError(f"write label: {{checkpoint: path}}, a list of paths, or {{from: 'ckpts/step-*'}}; got {value!r}")


def check_labels(labels: Sequence[str]) -> None:
    """Refuse labels that cannot name directories beside each other.

    Raises
    ------
    ValueError: none, a label that is no file name, or one that stands twice
    """
    if not labels:
        raise ValueError("is empty; name at least one checkpoint")
    seen: dict[str, str] = {}
    for label in labels:
        why = "lies beside the runs" if label.lower() in _TAKEN else unfit_name(label, 61)
        if why:
            raise ValueError(f"the label '{label[:80]}' {why}; write another one: {{other: {{checkpoint: …}}}}")
        if label.lower() in seen:
            raise ValueError(f"the label '{label}' stands twice{'' if seen[label.lower()] == label else ' (upper and lower case alike)'}")
        seen[label.lower()] = label


def numbers_of(labels: Iterable[str]) -> list[float] | None:
    """Return the one number in which labels differ (``step-100``, ``step-200``), or None where they differ otherwise."""
    found = list(labels)
    if len({tuple(_NUMBER.split(label)) for label in found}) != 1 or len(set(found)) < len(found):
        return None
    columns = list(zip(*([float(n) for n in _NUMBER.findall(label)] for label in found), strict=True))
    varying = [c for c in columns if len(set(c)) > 1]
    if len(found) == 1:
        varying = columns if len(columns) == 1 else []
    return list(varying[0]) if len(varying) == 1 and len(set(varying[0])) == len(found) else None


def in_order(labels: Iterable[str]) -> list[str]:
    """Return labels by their numbers, the words between them by name."""

    def rank(label: str) -> tuple[list[str], list[float]]:
        return _NUMBER.split(label), [float(n) for n in _NUMBER.findall(label)]

    return sorted(labels, key=rank)
