"""What a file format of sparse autoencoders must be: sure of its own files, silent about others, and never a crash."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from hypothesis import given
from hypothesis import strategies as st

from codi_engine.core.errors import UserError
from codi_engine.testing.suite import TRIES, Suite, demand


class SaeFormatSuite(Suite):
    """Conformance of a file format. Override :meth:`written`.

    Attributes
    ----------
    names: of files that junk is put into
    """

    kind = "sae_format"
    names: ClassVar[tuple[str, ...]] = ("sae.safetensors", "params.npz", "sae.pt", "cfg.json", "checkpoint")

    def written(self, folder: Path) -> Path | None:
        """Write a small autoencoder of this format below ``folder`` and return its path; None tries junk only."""
        return None

    def test_junk_is_neither_its_own_nor_a_crash(self) -> None:
        reader = self.build({})

        @TRIES
        @given(st.binary(max_size=200), st.sampled_from(self.names))
        def check(junk: bytes, name: str) -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                path.write_bytes(junk)
                for place in (path, Path(folder), Path(folder) / "missing"):
                    demand(reader.matches(place) in (True, False), "matches() must say True or False of anything, and never raise")
                    try:
                        reader.read(place)
                    except UserError:
                        continue
                    raise AssertionError(f"read() must refuse junk with a UserError; it read {len(junk)} random bytes as an autoencoder")

        check()

    def test_its_own_files_are_known_and_read(self, tmp_path: Path) -> None:
        path = self.written(tmp_path)
        if path is None:
            return
        reader = self.build({})
        demand(reader.matches(path), "matches() must know the format's own files")
        sae = reader.read(path)
        demand(sae.device.type == "cpu", "read() must give the autoencoder on the CPU")
        h = torch.randn(5, sae.width, generator=torch.Generator().manual_seed(0))
        codes = sae.encode(h)
        demand(tuple(codes.shape) == (5, sae.features), f"encode() must give rows × features; it gave {list(codes.shape)}")
        demand(sae.reconstruct(h).shape == h.shape, "decode() must give rows × width")
        demand(torch.isfinite(codes).all(), "codes of finite states must be finite")
        files = list(reader.files(path))
        demand(files and all(f.is_file() for f in files), "files() must name the files that decide the numbers: the digest is theirs")

    def test_cut_files_are_refused(self, tmp_path: Path, setting: Mapping[str, Any]) -> None:
        path = self.written(tmp_path)
        if path is None:
            return
        reader = self.build(setting)
        largest = max(reader.files(path), key=lambda f: f.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        try:
            reader.read(path)
        except UserError:
            return
        raise AssertionError("read() must refuse a file that is cut in half with a UserError")
