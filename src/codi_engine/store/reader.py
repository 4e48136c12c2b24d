"""Reading a run: only what the ledger says is committed, and only bytes that are what the ledger says."""

from __future__ import annotations

from collections.abc import Container
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from codi_engine.store.codec import blocks
from codi_engine.store.errors import StoreError, repairing
from codi_engine.store.files import CheckedFiles, difference, read_file
from codi_engine.store.layout import LEDGER, STATUS, ArraySpec, text_file, unit_of
from codi_engine.store.ledger import read_ledger
from codi_engine.store.provenance import read_provenance
from codi_engine.store.sparse import codes_width, fill_dense, room_for
from codi_engine.store.state import State
from codi_engine.store.texts import decode_texts, join_texts

if TYPE_CHECKING:
    import pyarrow as pa


#: how often a run that grows is looked at again
_LOOKS = 50
_NOTHING = (-1, np.empty(0, np.uint8), np.empty(0, np.uint8))


def _buffer_of(future: Future[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the buffer of a shard that was read in vain."""
    return _NOTHING[2] if future.exception() else future.result()[1]


def read_rows(state: State, files: CheckedFiles, name: str, unit: int) -> np.ndarray:
    """Return the ``unit_cells`` rows that a committed unit wrote of an array.

    Raises
    ------
    StoreError: unknown array or unit, the unit did not write the array, or the shard is missing or damaged
    """
    if name not in state.specs:
        raise StoreError(f"{files.root}: has no array '{name}'")
    if unit not in state.committed:
        raise StoreError(f"{files.root}: unit {unit} is not committed")
    spec = state.specs[name]
    file = spec.shard(unit)
    stated = state.committed[unit]["files"].get(file)
    if stated is None:
        raise StoreError(f"{files.root}: unit {unit} wrote no '{name}'")
    return files.read_rows(file, stated, spec, state.unit_cells)


class RunReader:
    """A run as it was when this object was made; units committed later are not seen.

    Parameters
    ----------
    path: the run directory
    verify: ``full`` compares size and sha256 of each file when it is first read, ``size`` its size alone
        (the codecs' own checksums are always compared)

    Raises
    ------
    StoreError: no run, another format, a damaged ledger or damaged metadata
    """

    def __init__(self, path: str | Path, verify: Literal["size", "full"] = "full") -> None:
        self.path = Path(path)
        self.files = CheckedFiles(self.path, verify == "full")
        self._recent: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}
        self._coming: dict[str, tuple[int, Future[tuple[np.ndarray, np.ndarray]]]] = {}
        self._spare: dict[str, np.ndarray] = {}
        self._ahead: ThreadPoolExecutor | None = None
        problem = self._look()
        for _ in range(_LOOKS):
            if not problem:
                return
            before = self.digest
            problem = self._look()  # a plan that was added since the ledger was read changes the metadata
            if problem and self.digest == before:
                break
        if problem:
            raise StoreError(f"{self.path / problem}; repeating the run's command, or {repairing(self.path)}, mends it")

    def _look(self) -> str:
        """Read the ledger, and return the first metadata file that is not what it says, with the difference."""
        content = read_ledger(self.path / LEDGER)
        if not content.records:
            raise StoreError(f"{self.path}: holds no run (there is no ledger)")
        self.torn, self.digest = content.torn, content.chain
        self.state = State.of(content.records, str(self.path))
        return next((f"{name}: {problem}" for name in self.state.documents if (problem := self._document_problem(name))), "")

    # ---------------------------------------------------------------------------------------- what there is

    @property
    def plans(self) -> list[dict[str, Any]]:
        """Return the plan records, oldest first."""
        return self.state.plans

    @property
    def unit_cells(self) -> int:
        """Return the slots per unit."""
        return self.state.unit_cells

    @property
    def units(self) -> int:
        """Return the number of planned units."""
        return self.state.units

    @property
    def committed(self) -> dict[int, dict[str, Any]]:
        """Return unit → its ledger record."""
        return self.state.committed

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """Return array name → specification, in order of declaration."""
        return self.state.specs

    @property
    def arrays(self) -> list[str]:
        """Return the names of the arrays that committed units have written, in alphabetical order."""
        written = {file for record in self.committed.values() for file in record["files"]}
        return sorted({place[0] for file in written if (place := unit_of(file)) and place[0] in self.specs})

    @property
    def experiment(self) -> str:
        """Return the text of ``experiment.yaml``."""
        return self.state.experiment

    @property
    def provenance(self) -> dict[str, Any]:
        """Return what ``provenance.json`` says."""
        return read_provenance(self.path)

    def attrs(self, name: str) -> dict[str, Any]:
        """Return an array's attributes."""
        return dict(self.spec(name).attrs)

    def spec(self, name: str) -> ArraySpec:
        """Return an array's specification."""
        if name not in self.specs:
            raise StoreError(f"{self.path}: has no array '{name}'")
        return self.specs[name]

    # --------------------------------------------------------------------------------------------- values

    def read_unit(self, name: str, unit: int) -> np.ndarray:
        """Return all ``unit_cells`` rows that a committed unit wrote of an array."""
        return read_rows(self.state, self.files, name, unit)

    def read_into(self, name: str, unit: int, rows: np.ndarray, out: np.ndarray, into: np.ndarray, then: int = -1) -> int:
        """Copy chosen rows of a unit's dense array into ``out`` (leading dimension flat), chunk by chunk.

        Parameters
        ----------
        rows: rows of the unit, ascending
        out: anything × row shape
        into: for each of ``rows`` its place in ``out``
        then: the unit that will be wanted next; it is read while this one is decoded

        Returns
        -------
        bytes read
        """
        spec = self.spec(name)
        data = self._shard(name, unit)
        if then >= 0:
            self._expect(name, then)
        at, taken = 0, 0
        try:
            for block in blocks(spec, self.unit_cells, data):
                stop = int(np.searchsorted(rows, at + len(block)))
                if stop > taken:
                    here, there = rows[taken:stop] - at, into[taken:stop]
                    if there[-1] - there[0] == stop - 1 - taken == here[-1] - here[0] and (np.diff(there) == 1).all():
                        out[there[0] : there[-1] + 1] = block[here[0] : here[-1] + 1]
                    else:
                        out[there] = block[here]
                taken, at = stop, at + len(block)
        except StoreError as error:
            raise StoreError(f"{self.path / spec.shard(unit)}: is damaged ({error})") from None
        return len(data)

    def _expect(self, name: str, unit: int) -> None:
        """Begin to read a unit's shard in another thread, so that the disk works while its predecessor is being decoded."""
        if self._recent.get(name, _NOTHING)[0] == unit or name in self._coming or self._stated(name, unit) is None:
            return
        if self._ahead is None:
            self._ahead = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._coming[name] = (unit, self._ahead.submit(self._load, name, unit, self._spare.pop(name, None)))

    def _stated(self, name: str, unit: int) -> dict[str, Any] | None:
        stated: dict[str, Any] | None = self.committed.get(unit, {"files": {}})["files"].get(self.spec(name).shard(unit))
        return stated

    def _load(self, name: str, unit: int, buffer: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Read a shard into a buffer that is large enough; returns (the part it fills, the buffer)."""
        stated = self._stated(name, unit)
        if stated is None:
            raise StoreError(f"{self.path}: unit {unit} wrote no '{name}'")
        if buffer is None or len(buffer) < self.files.size(self.spec(name).shard(unit), stated):
            buffer = np.empty(stated["size"], np.uint8)
        return self.files.read_array(self.spec(name).shard(unit), stated, buffer), buffer

    def codes_of(self, name: str, unit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the sparse codes that a unit wrote of ``name``: (ptr, index, value).

        ``ptr`` (unit_cells × 2) says where each cell's entries begin and end in ``index`` and ``value``.
        """
        ptr = self.read_unit(f"{name}/ptr", unit)
        width = codes_width(name, self.spec(f"{name}/ptr"), self.spec(f"{name}/index"), self.spec(f"{name}/value"))
        first = unit * self.spec(f"{name}/index").rows(self.unit_cells)
        count = int(ptr.max(initial=first)) - first
        ptr = np.where(ptr > 0, ptr - first, 0)
        index, value = (self.read_unit(f"{name}/{part}", unit) for part in ("index", "value"))
        inside = min(len(index), len(value)) >= count and not (ptr < 0).any() and not (np.diff(ptr, axis=1) < 0).any()
        # a feature beyond the width, or more entries than features, would be read or written outside the arrays
        if not inside or index[:count].max(initial=0) >= width or np.diff(ptr, axis=1).max(initial=0) > width:
            raise StoreError(f"{self.path}: unit {unit}: {name}/ptr does not fit its entries")
        return ptr, index[:count], value[:count]

    def is_sparse(self, name: str) -> bool:
        """Say whether ``name`` is stored as sparse codes."""
        return f"{name}/ptr" in self.specs

    def read_codes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (slots, values) of the finished cells that have sparse codes of ``name``, zeros filled in (slots × width)."""
        ptr_spec, index_spec, value_spec = (self.spec(f"{name}/{part}") for part in ("ptr", "index", "value"))
        width = codes_width(name, ptr_spec, index_spec, value_spec)
        slots = self.read_slots(f"{name}/ptr")
        out = room_for(f"{self.path}: {name}", len(slots), width, np.dtype(value_spec.dtype))
        for unit in np.unique(slots // self.unit_cells).tolist():
            mine = slice(*np.searchsorted(slots, (unit * self.unit_cells, (unit + 1) * self.unit_cells)))
            ptr, index, value = self.codes_of(name, unit)
            fill_dense(out[mine], ptr[slots[mine] % self.unit_cells], index, value)
        return slots, out

    def _shard(self, name: str, unit: int) -> np.ndarray:
        """Return a committed shard's bytes after comparing its size (its checksums are compared when it is decoded).

        The last shard of each array is kept; two buffers take turns.
        """
        number, data, buffer = self._recent.get(name, _NOTHING)
        if number == unit:
            return data
        coming = self._coming.pop(name, None)
        if coming is not None and coming[0] != unit:  # something else was wanted after all
            self._spare[name] = _buffer_of(coming[1])
            coming = None
        self._recent.pop(name, None)
        spare = self._spare.pop(name, None)
        data, used = coming[1].result() if coming is not None else self._load(name, unit, spare if spare is not None else buffer)
        self._recent[name] = (unit, data, used)
        if used is not buffer and len(buffer):
            self._spare[name] = buffer
        return data

    @cached_property
    def _done(self) -> dict[int, np.ndarray]:
        """Unit → its filled rows, ascending, for units that have cells."""
        done = {}
        for unit, record in sorted(self.committed.items()):
            if STATUS in self.specs and self.specs[STATUS].shard(unit) in record["files"]:
                done[unit] = np.flatnonzero(self.read_unit(STATUS, unit) == 1)
        return done

    @cached_property
    def slots(self) -> np.ndarray:
        """Slots of all finished cells, int64, ascending."""
        parts = [unit * self.unit_cells + rows for unit, rows in self._done.items()]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    @property
    def stages(self) -> np.ndarray:
        """Return the stage of each cell of ``slots``, as objects."""
        parts = [np.full(len(rows), self.committed[unit]["stage"], object) for unit, rows in self._done.items()]
        return np.concatenate(parts) if parts else np.zeros(0, object)

    def read(self, name: str, stages: Container[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return (slots, values) of the finished cells whose unit wrote this array.

        Parameters
        ----------
        name: the array
        stages: only units of these stages
        """
        spec = self.spec(name)
        if spec.entries:
            raise StoreError(f"{name}: lists entries of sparse codes; read it with codes_of")
        slots, values = [np.zeros(0, np.int64)], [np.zeros((0, *spec.shape), np.dtype(spec.dtype))]
        for unit, rows in self._done.items():
            record = self.committed[unit]
            if spec.shard(unit) in record["files"] and (stages is None or record["stage"] in stages):
                slots.append((unit * self.unit_cells + rows).astype(np.int64))
                values.append(self.read_unit(name, unit)[rows])
        return np.concatenate(slots), np.concatenate(values)

    def read_slots(self, name: str) -> np.ndarray:
        """Return the slots of the finished cells whose unit wrote this array, int64, ascending; nothing of it is read."""
        spec = self.spec(name)
        parts = [u * self.unit_cells + rows for u, rows in self._done.items() if spec.shard(u) in self.committed[u]["files"]]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def column(self, name: str) -> np.ndarray:
        """Return an array's value of each cell of ``slots``; the fill value where its unit did not write it."""
        spec = self.spec(name)
        slots, values = self.read(name)
        out = np.full((len(self.slots), *spec.shape), spec.fill, np.dtype(spec.dtype))
        out[np.searchsorted(self.slots, slots)] = values
        return out

    def codes(self, axis: str) -> np.ndarray:
        """Return the int32 code of each cell of ``slots`` on an axis; −1 where the axis does not apply."""
        return self.column(f"cells/{axis}")

    def labels(self, axis: str) -> list[Any]:
        """Return what the codes of an axis stand for."""
        return list(self.spec(f"cells/{axis}").attrs.get("labels", []))

    def texts(self) -> pa.Table:
        """Return the texts of all committed units in unit order."""
        tables = []
        for unit, record in sorted(self.committed.items()):
            file = text_file(unit)
            if file in record["files"]:
                tables.append(self.texts_of(unit))
        return join_texts(tables)

    def texts_of(self, unit: int) -> pa.Table:
        """Return the texts of a committed unit that has any."""
        file = text_file(unit)
        if file not in self.committed[unit]["files"]:
            raise StoreError(f"{self.path}: unit {unit} wrote no texts")
        slots = range(unit * self.unit_cells, (unit + 1) * self.unit_cells)
        return decode_texts(self.files.read(file, self.committed[unit]["files"][file]), str(self.path / file), slots)

    def text_units(self) -> dict[int, int]:
        """Return unit → bytes of its texts, for units that have any."""
        found = {unit: record["files"].get(text_file(unit)) for unit, record in sorted(self.committed.items())}
        return {unit: stated["size"] for unit, stated in found.items() if stated is not None}

    def text_bytes(self, unit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a unit's texts as (slots, UTF-8 bytes, offsets); rows whose text is null are left out."""
        table = self.texts_of(unit)
        if "text" not in table.column_names:
            return np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(1, np.int64)
        column = table["text"]
        if column.null_count:
            table = table.filter(column.is_valid())
        whole = table.combine_chunks()
        slots = whole["slot"].to_numpy().astype(np.int64)
        if not len(slots):
            return slots, np.zeros(0, np.uint8), np.zeros(1, np.int64)
        text = whole["text"].chunk(0)
        _, offsets, data = text.buffers()
        bounds = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text) + 1].astype(np.int64)
        return slots, np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8), bounds

    # --------------------------------------------------------------------------------------------- verify

    def verify(self) -> list[str]:
        """Compare every file with the ledger as it is now and return the damage, ``file: what is wrong`` each."""
        from codi_engine.store.verifying import verify

        return [str(finding) for finding in verify(self.path) if finding.damage]

    def _document_problem(self, name: str) -> str:
        """Say what is wrong with a metadata file; it may lag behind while a plan has just been added."""
        former = self.state.former.get(name, []) if self.state.pending else []
        try:
            data = read_file(self.path, name)  # read once: it may be replaced at any moment
        except StoreError as error:
            new = self.state.pending and not former and not (self.path / name).exists()
            return "" if new else str(error).split(": ", 1)[1]
        problem = difference(data, self.state.documents[name])
        return "" if any(not difference(data, stated) for stated in former) else problem
