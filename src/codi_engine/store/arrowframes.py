"""Whether an Arrow IPC file is what a run writes: plain record batches. Compressed ones may claim any size, dictionaries any number of rows.

Only the few fields that tell this are read from the file's flatbuffers; Arrow itself reads and checks the rest.

References
----------
https://arrow.apache.org/docs/format/Columnar.html: ``Footer``, ``Message``, ``RecordBatch``.
"""

from __future__ import annotations

import struct

_MAGIC = b"ARROW1"
_BLOCK = struct.Struct("<qi4xq")
_RECORD_BATCH = 3


class _Table:
    """A flatbuffer table of a buffer; raises ``struct.error`` where it points outside."""

    def __init__(self, data: memoryview, at: int) -> None:
        if at < 0:
            raise struct.error("negative offset")
        self.data, self.at = data, at
        self.vtable = at - self._number("<i", at)

    def _number(self, form: str, at: int) -> int:
        if at < 0:
            raise struct.error("negative offset")
        value: int = struct.unpack_from(form, self.data, at)[0]
        return value

    def _place(self, field: int) -> int | None:
        """Return where a field's value stands; None where it is absent."""
        slot = 4 + 2 * field
        if slot + 2 > self._number("<H", self.vtable):
            return None
        offset = self._number("<H", self.vtable + slot)
        return self.at + offset if offset else None

    def has(self, field: int) -> bool:
        return self._place(field) is not None

    def byte(self, field: int) -> int:
        place = self._place(field)
        return 0 if place is None else self._number("<B", place)

    def table(self, field: int) -> _Table:
        place = self._place(field)
        if place is None:
            raise struct.error("a table is absent")
        return _Table(self.data, place + self._number("<I", place))

    def blocks(self, field: int) -> list[int]:
        """Return the offsets of a vector of blocks."""
        place = self._place(field)
        if place is None:
            return []
        start = place + self._number("<I", place)
        count = self._number("<I", start)
        if count * _BLOCK.size > len(self.data):
            raise struct.error("more blocks than bytes")
        return [_BLOCK.unpack_from(self.data, start + 4 + i * _BLOCK.size)[0] for i in range(count)]


def is_plain(data: bytes) -> bool:
    """Return whether a file holds record batches only, none of them compressed; False for what is no Arrow file."""
    view = memoryview(data)
    try:
        if data[-6:] != _MAGIC:
            return False
        end = len(data) - 10
        start = end - struct.unpack_from("<i", view, end)[0]
        footer = _root(view, start)
        return not footer.blocks(2) and all(_is_plain_batch(view, at) for at in footer.blocks(3))
    except (struct.error, IndexError):
        return False


def _root(view: memoryview, at: int) -> _Table:
    if at < 0:
        raise struct.error("negative offset")
    return _Table(view, at + struct.unpack_from("<I", view, at)[0])


def _is_plain_batch(view: memoryview, at: int) -> bool:
    """Say whether the message at an offset is a record batch without compression."""
    if at < 0:
        return False
    begins = struct.unpack_from("<I", view, at)[0] == 0xFFFFFFFF  # older files have the length alone
    message = _root(view, at + (8 if begins else 4))
    return message.byte(1) == _RECORD_BATCH and not message.table(2).has(3)
