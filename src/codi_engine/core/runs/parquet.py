"""Parquet files that may come from anybody: what they claim is compared with what they can hold before it is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

#: a table may have so many bytes, and so many more for each byte of its file: columns of one value take next to no room in it
ROOM, RATIO = 512 << 20, 50
#: bytes of a page that Arrow makes room for are stated in the page itself; the footer's sums are what can be seen before
_WIDTH = 8


def read_table(file: Path | bytes) -> pa.Table:
    """Read a Parquet file.

    Raises
    ------
    ValueError: it is no Parquet file, damaged, or claims more than such a file can hold
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = file if isinstance(file, bytes) else _content(file)
    most = ROOM + RATIO * len(raw)
    try:
        source = pq.ParquetFile(pa.BufferReader(raw))
        about = source.metadata
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        packed = sum(max(group.column(c).total_uncompressed_size, 0) for group in groups for c in range(group.num_columns))
        if max(packed, about.num_rows * about.num_columns * _WIDTH, about.num_rows * _WIDTH) > most:
            raise ValueError(f"it claims {about.num_rows:,} rows of {about.num_columns:,} columns in {len(raw):,} bytes; it is made to exhaust memory")
        texts = [field.name for field in source.schema_arrow if pa.types.is_string(field.type) or pa.types.is_binary(field.type)]
        table = pq.ParquetFile(pa.BufferReader(raw), read_dictionary=texts).read()
        return _written_out(table, texts, most)
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0][:200]) from None


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


def _written_out(table: pa.Table, texts: list[str], most: int) -> pa.Table:
    """Return the table with its texts as texts; they were read by number, since one long text may stand in every row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    total = 0
    for name in texts:
        place = table.schema.get_field_index(name)
        column = table.column(place)
        if not pa.types.is_dictionary(column.type):
            continue
        for chunk in column.chunks:
            longest = pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0
            total += longest * len(chunk) if longest * len(chunk) > most else pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() or 0
        if total > most:
            raise ValueError(f"its texts would take {total:,} bytes; it is made to exhaust memory")
        table = table.set_column(place, table.schema.field(place).with_type(column.type.value_type), column.cast(column.type.value_type))
    return table
