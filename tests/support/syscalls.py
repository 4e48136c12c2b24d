"""A tap on what a process does to the files below one directory, call by call: to watch it, or to let it fail at any call.

``os`` and ``open`` are wrapped; what compiled libraries write by themselves (Parquet tables) passes unseen.
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITING = os.O_CREAT | os.O_TRUNC
_OS = ("open", "write", "pwrite", "writev", "fsync", "fdatasync", "replace", "rename", "mkdir", "unlink", "remove", "rmdir", "ftruncate", "truncate")


@dataclass
class Call:
    """One call: ``kind`` is open, write, truncate, fsync, rename, mkdir, unlink or rmdir; paths are relative to the tap's root.

    Attributes
    ----------
    data, at: of a write; ``at`` is the new size of a truncation
    to: the new name of a rename
    empties: an opening that makes the file or cuts it to nothing
    half: writes the first half of the data and nothing more
    """

    kind: str
    path: str
    data: bytes = b""
    at: int = 0
    to: str = ""
    half: Callable[[], None] = lambda: None


def ignore(call: Call) -> None:
    """Do nothing about a call."""


class Tap:
    """``before`` is told of each call below ``root`` before it is made, ``after`` when it has succeeded."""

    def __init__(self, root: Path, before: Callable[[Call], None] = ignore, after: Callable[[Call], None] = ignore) -> None:
        self.root, self.before, self.after = os.path.abspath(root), before, after
        self.real = {name: getattr(os, name) for name in _OS}
        self.real_open = io.open

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap the calls of this process."""
        self.install()
        try:
            yield
        finally:
            for name, function in self.real.items():
                setattr(os, name, function)
            builtins.open = io.open = self.real_open

    def install(self) -> None:
        """Wrap the calls of this process for good."""
        for name in _OS:
            setattr(os, name, getattr(self, f"_{name}", None) or self._named(name))
        builtins.open = io.open = self._open_file

    def _named(self, name: str) -> Callable[..., Any]:
        kind = {"remove": "unlink", "truncate": "truncate"}.get(name, name)

        def run(path: Any, *args: Any, dir_fd: int | None = None, **more: Any) -> Any:
            keywords = {**more, **({} if dir_fd is None else {"dir_fd": dir_fd})}
            at = int(args[0]) if name == "truncate" else 0
            return self._made(self._relative(path, dir_fd), Call(kind, "", at=at), lambda: self.real[name](path, *args, **keywords))

        return run

    def _made(self, path: str | None, call: Call, real: Callable[[], Any]) -> Any:
        if path is None:
            return real()
        call.path = path
        self.before(call)
        result = real()
        self.after(call)
        return result

    def _relative(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Return a path below the root relative to it, ``.`` for the root itself, None for others."""
        if isinstance(path, int):
            try:
                full = os.readlink(f"/proc/self/fd/{path}").removesuffix(" (deleted)")
            except OSError:
                return None
        else:
            base = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else os.getcwd()
            full = os.path.normpath(os.path.join(base, os.fspath(path)))
        return os.path.relpath(full, self.root) if isinstance(full, str) and (full + "/").startswith(self.root + "/") else None

    # ------------------------------------------------------------------------------------------ os.*

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def real() -> int:
            return int(self.real["open"](path, flags, mode, dir_fd=dir_fd))

        return int(self._made(self._relative(path, dir_fd) if flags & _WRITING else None, Call("open", "", at=int(bool(flags & os.O_TRUNC))), real))

    def _write(self, descriptor: int, data: Any) -> int:
        return self._written(descriptor, bytes(data), lambda: self.real["write"](descriptor, data))

    def _pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        return self._written(descriptor, bytes(data), lambda: self.real["pwrite"](descriptor, data, offset), offset)

    def _writev(self, descriptor: int, buffers: Any) -> int:
        return self._written(descriptor, b"".join(map(bytes, buffers)), lambda: self.real["writev"](descriptor, buffers))

    def _written(self, descriptor: int, data: bytes, real: Callable[[], Any], offset: int | None = None) -> int:
        path = self._relative(descriptor)
        if path is None:
            return int(real())
        at = offset if offset is not None else os.lseek(descriptor, 0, os.SEEK_CUR)
        call = Call("write", path, data, at, half=lambda: self.real["pwrite"](descriptor, data[: len(data) // 2], at))
        self.before(call)
        count = int(real())
        call.data = data[:count]
        self.after(call)
        return count

    def _fsync(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        self._made(self._relative(number), Call("fsync", ""), lambda: self.real["fsync"](number))

    _fdatasync = _fsync

    def _ftruncate(self, descriptor: int, size: int) -> None:
        self._made(self._relative(descriptor), Call("truncate", "", at=size), lambda: self.real["ftruncate"](descriptor, size))

    def _replace(self, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        def real() -> None:
            self.real["replace"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        self._made(self._relative(old, src_dir_fd), Call("rename", "", to=self._relative(new, dst_dir_fd) or ""), real)

    _rename = _replace

    # --------------------------------------------------------------------------------------- open(…)

    def _open_file(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **keywords: Any) -> Any:
        path = None if isinstance(file, int) or not set(mode) & set("wax+") else self._relative(file)
        if path is None:
            return self.real_open(file, mode, buffering, *args, **keywords)
        call = Call("open", path, at=int("w" in mode))
        new = "w" in mode or not os.path.exists(file)
        if new:
            self.before(call)
        raw = _File(self, path, file, mode.replace("b", "").replace("t", ""))
        if new:
            self.after(call)
        if buffering == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **keywords)


class _File(io.FileIO):
    """A file whose writes are told."""

    def __init__(self, tap: Tap, path: str, file: Any, mode: str) -> None:
        self._tap, self._path = tap, path
        super().__init__(file, mode)

    def write(self, data: Any) -> int:
        content = bytes(data)
        at = self.tell()
        call = Call("write", self._path, content, at, half=lambda: self._tap.real["pwrite"](self.fileno(), content[: len(content) // 2], at))
        self._tap.before(call)
        count = int(super().write(content) or 0)
        call.data = content[:count]
        self._tap.after(call)
        return count

    def truncate(self, size: int | None = None) -> int:
        at = self.tell() if size is None else size
        call = Call("truncate", self._path, at=at)
        self._tap.before(call)
        result = super().truncate(at)
        self._tap.after(call)
        return result
