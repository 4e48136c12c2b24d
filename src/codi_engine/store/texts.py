"""Generated text beside the arrays: one Arrow IPC file per unit, one row per filled slot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codi_engine.store.arrowframes import is_plain
from codi_engine.store.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa

_STRINGS = ("key", "text")


def encode_texts(columns: Mapping[str, Sequence[Any]], first_slot: int) -> bytes:
    """Return an Arrow IPC file with a ``slot`` column before the others; the same columns give the same bytes.

    Raises
    ------
    StoreError: a column mixes types
    """
    import pyarrow as pa

    count = len(next(iter(columns.values())))
    data = {"slot": pa.array(range(first_slot, first_slot + count), pa.int64())}
    for name, values in columns.items():
        data[name] = _column(name, list(values))
    table = pa.table(data)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    return bytes(sink.getvalue())


def _column(name: str, values: list[Any]) -> Any:
    import pyarrow as pa

    kind = pa.string() if name in _STRINGS else None
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8
        return pa.array([v if v is None else str(v).encode("utf-8", "replace").decode() for v in values], pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise StoreError(f"text column '{name}': {error}") from None


def decode_texts(data: bytes, where: str, slots: range) -> pa.Table:
    """Return the table of one file: the first so many of ``slots``, in their order; ``where`` names it in errors."""
    import numpy as np
    import pyarrow as pa

    if not is_plain(data):
        raise StoreError(f"{where}: is no file of texts, or damaged")
    try:
        file = pa.ipc.open_file(pa.py_buffer(data))
        _check_columns(file.schema, where)
        table = file.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise StoreError(f"{where}: is damaged: {(str(error).splitlines() or ['no Arrow file'])[0][:200]}") from None
    count = len(table)
    if count > len(slots) or table["slot"].null_count or not np.array_equal(table["slot"].to_numpy(), np.arange(slots.start, slots.start + count)):
        raise StoreError(f"{where}: its rows are not those of its unit")
    return table


def _check_columns(schema: pa.Schema, where: str) -> None:
    """Refuse columns that no writer makes: nested, encoded or counted types hold more rows than their bytes say."""
    import pyarrow as pa

    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_null)
    names = schema.names
    fits = all(any(check(kind) for check in plain) for kind in schema.types) and len(set(names)) == len(names)
    if not fits or "slot" not in names or schema.field("slot").type != pa.int64() or any(n in names and schema.field(n).type != pa.string() for n in _STRINGS):
        raise StoreError(f"{where}: holds columns that no run writes; get the run again from where it came from")


def join_texts(tables: Iterable[pa.Table]) -> pa.Table:
    """Return all rows in one table; columns that some units lack are null there."""
    import pyarrow as pa

    parts = list(tables)
    if not parts:
        return pa.table({"slot": pa.array([], pa.int64()), "key": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    try:
        return pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise StoreError(f"texts: the units' columns do not fit together: {error}") from None
