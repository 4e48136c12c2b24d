"""Arrays in safetensors files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from reprlib import repr as repr_of

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.imports.foreignarray import MOST_DIMS, ForeignArray, Header, Mapped, header_of

#: bytes of a safetensors header
_LARGEST_HEADER = 16 << 20
_SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip


def safetensors_headers(path: Path) -> dict[str, Header]:
    size = path.stat().st_size
    out = {}
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise UserError(f"{path}: is no safetensors file: its header would have {length:,} bytes")
        try:
            content = {k: v for k, v in json.loads(stream.read(length)).items() if k != "__metadata__"}
            described = {k: (str(v["dtype"]), [int(n) for n in v["shape"]], [int(n) for n in v["data_offsets"]]) for k, v in content.items()}
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            raise UserError(f"{path}: is no safetensors file: its header is damaged") from None
    for name, (kind, shape, place) in described.items():
        if len(shape) > MOST_DIMS or len(place) != 2 or not all(0 <= n < 1 << 63 for n in shape):
            raise UserError(f"{path}: {name[:80]}: its header claims the shape {repr_of(shape)}; it is damaged")
        begin, end = place
        dtype = np.dtype(_SAFETENSORS.get(kind, "V1"))
        where = f"{path}: {name}"
        if not 0 <= begin <= end <= size - 8 - length or min(shape, default=1) < 0:
            raise UserError(f"{where}: its header points outside the file; it is damaged")
        if kind in _SAFETENSORS and math.prod(shape) * dtype.itemsize != end - begin:
            raise UserError(f"{where}: its header claims the shape {shape} for {end - begin:,} bytes; it is damaged")
        out[name] = header_of(where, shape, dtype, kind, size if kind in _SAFETENSORS else 1 << 62, 8 + length + begin)
    return out


def safetensors_open(path: Path, name: str, header: Header) -> ForeignArray:
    return Mapped(f"{path}: {name}", header, path, header.type == "BF16")
