"""Convert a pickle that you trust to formats that run nothing: arrays to npz, records to JSON lines.

    python tools/unpickle.py cache.pkl            # writes cache.npz and/or cache.jsonl beside it
    python tools/unpickle.py cache.pkl out/name   # writes out/name.npz and/or out/name.jsonl

READING A PICKLE RUNS WHATEVER CODE ITS AUTHOR PUT INTO IT. Do this only with files that you or somebody you trust made.

Reads .pkl/.pickle, .pt/.pth that hold more than tensors, and .npy/.npz with pickled objects. A list of dictionaries, or
a dictionary of them (its keys become the field `key`), gives records; numbers in nested dictionaries of arrays give
arrays called a/b/c. Arrays inside records go to the npz, stacked over the records that have them, where their shapes
agree; the record's number in the JSON lines is the place on the first dimension.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np


def load(path: Path) -> Any:
    """Read a pickle, and run what it contains."""
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        import torch

        return torch.load(path, map_location="cpu", weights_only=False)
    if path.suffix in (".npy", ".npz"):
        content = np.load(path, allow_pickle=True)
        return {k: content[k] for k in content.files} if path.suffix == ".npz" else content
    if path.suffix == ".joblib":
        import joblib

        return joblib.load(path)
    with path.open("rb") as file:
        return pickle.load(file)


def plain(value: Any) -> Any:
    """Return tensors as arrays, object arrays as what they hold."""
    if type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if isinstance(value, np.ndarray) and value.dtype == object:
        return plain(value.item()) if value.ndim == 0 else [plain(v) for v in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def convert(value: Any) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Return (arrays by name, records)."""
    value = plain(value)
    if isinstance(value, np.ndarray):
        return {"values": value}, []
    records = as_records(value)
    if records is not None:
        return stacked(records), [without_arrays(r) for r in records]
    arrays: dict[str, np.ndarray] = {}
    rest = flatten(value, "", arrays)
    return arrays, [rest] if rest else []


def as_records(value: Any) -> list[dict[str, Any]] | None:
    """Return the records of a list or dictionary of dictionaries with the same kind of content; None for a tree of arrays."""
    if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
        if all(not isinstance(item, dict) for v in value.values() for item in v.values()) and any(plain_item(i) for v in value.values() for i in v.values()):
            return [{"key": k if isinstance(k, (str, int, float)) else str(k), **v} for k, v in value.items()]
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return value
    return None


def plain_item(value: Any) -> bool:
    return not isinstance(value, (np.ndarray, dict))


def stacked(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the arrays that every record has with one shape, stacked over records; others one by one."""
    out: dict[str, np.ndarray] = {}
    for name in {k: None for r in records for k, v in r.items() if isinstance(v, np.ndarray)}:
        found = [r.get(name) for r in records]
        if all(isinstance(v, np.ndarray) and v.shape == found[0].shape for v in found):
            out[str(name)] = np.stack(found)
        else:
            out |= {f"{name}/{number}": v for number, v in enumerate(found) if isinstance(v, np.ndarray)}
    return out


def without_arrays(record: Any) -> Any:
    return {str(k): without_arrays(v) for k, v in record.items() if not isinstance(v, np.ndarray)} if isinstance(record, dict) else record


def flatten(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """Move the arrays of a tree to ``arrays`` and return what is left."""
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return None
    if isinstance(value, dict):
        rest = {str(k): flatten(v, f"{path}/{k}" if path else str(k), arrays) for k, v in value.items()}
        return {k: v for k, v in rest.items() if v is not None}
    return value


def main(arguments: list[str]) -> int:
    """Convert one file."""
    if not 1 <= len(arguments) <= 2 or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    path = Path(arguments[0])
    target = Path(arguments[1]) if len(arguments) == 2 else path.with_suffix("")
    print(f"WARNING: reading {path} runs any code that is in it. Stop now (ctrl-C) if you do not trust it.", file=sys.stderr)
    if not path.is_file():
        print(f"error: {path}: no such file", file=sys.stderr)
        return 2
    arrays, records = convert(load(path))
    outputs = [(target.with_name(target.name + ".npz"), bool(arrays)), (target.with_name(target.name + ".jsonl"), bool(records))]
    for output, wanted in outputs:
        if wanted and output.exists():
            print(f"error: {output} exists already; give another name: python tools/unpickle.py {path} NAME", file=sys.stderr)
            return 2
    if arrays:
        np.savez(outputs[0][0], **arrays)
        print(f"{outputs[0][0]}: " + ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in list(arrays.items())[:12]))
    if records:
        with outputs[1][0].open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, default=str) + "\n" for record in records)
        print(f"{outputs[1][0]}: {len(records)} records")
    if not arrays and not records:
        print(f"error: {path}: holds neither arrays nor records", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
