"""A format of autoencoders that breaks one clause fails the test of that clause and no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import SaeFormat
from codi_engine.core.sae import SAE
from codi_engine.plugins.saes.reading import read_tensors
from codi_engine.testing import SaeFormatSuite
from tests.support.clauses import failures, suite
from tests.support.saes import BASIC, drawn, tensors


class Plain(SaeFormat):
    """One file of four tensors, ``*.plain.safetensors``."""

    name = "plain"

    def matches(self, path: Path) -> bool:
        return path.is_file() and path.name.endswith(".plain.safetensors")

    def read(self, path: Path) -> SAE:
        if not self.matches(path):
            raise UserError(f"sae: '{path}' is no plain autoencoder")
        return self.built(path, read_tensors(path))

    def built(self, path: Path, made: dict[str, torch.Tensor]) -> SAE:
        missing = sorted(set(BASIC) - set(made))
        if missing:
            raise UserError(f"sae: '{path}' lacks {', '.join(missing)}")
        return SAE(
            format=self.name, path=str(path), w_enc=made["W_enc"], b_enc=made["b_enc"], w_dec=made["W_dec"], b_dec=made["b_dec"], activation="relu", site=None
        )


class OfPlain(SaeFormatSuite):
    plugin = Plain
    names = ("a.plain.safetensors", "other.json")

    def written(self, folder: Path) -> Path:
        save_file(tensors(drawn(**BASIC)), folder / "a.plain.safetensors")
        return folder / "a.plain.safetensors"


class Raises(Plain):
    """Fails where it should say no."""

    def matches(self, path: Path) -> bool:
        return path.stat().st_size > 0 and super().matches(path)


class Crashes(Plain):
    """Lets the library's errors out."""

    def read(self, path: Path) -> SAE:
        from safetensors.torch import load_file

        return self.built(path, load_file(path))


class Trusts(Plain):
    """Fills in what a damaged file lacks."""

    def read(self, path: Path) -> SAE:
        try:
            return super().read(path)
        except UserError:
            if not self.matches(path) or path.stat().st_size < 1000:
                raise
            return self.built(path, tensors(drawn(**BASIC)))


class Stranger(Plain):
    """Does not know its own."""

    def matches(self, path: Path) -> bool:
        return path.suffix == ".other"

    def read(self, path: Path) -> SAE:
        if not path.is_file():
            raise UserError(f"sae: '{path}': no such file")
        return self.built(path, read_tensors(path))


class Infinite(Plain):
    """Codes that no float holds."""

    def read(self, path: Path) -> SAE:
        sae = super().read(path)
        return replace(sae, w_enc=sae.w_enc * 1e38)


class NoFiles(Plain):
    """Names a file that is not there beside its own."""

    def files(self, path: Path) -> Sequence[Path]:
        return [path, path.parent]


JUNK, OWN, CUT = "junk_is_neither_its_own_nor_a_crash", "its_own_files_are_known_and_read", "cut_files_are_refused"
WRONG: dict[type[Plain], tuple[str, set[str]]] = {
    Raises: ("FileNotFoundError", {JUNK}),
    Crashes: ("", {JUNK, CUT}),
    Trusts: ("cut in half", {CUT}),
    Stranger: ("know the format's own", {OWN}),
    Infinite: ("must be finite", {OWN}),
    NoFiles: ("files() must name", {OWN}),
}


@pytest.mark.parametrize("cls", WRONG, ids=lambda c: c.__name__)
def test_a_wrong_format_fails_its_clauses_and_no_other(cls: type[Plain], tmp_path: Path) -> None:
    words, clauses = WRONG[cls]
    failed = failures(suite(OfPlain, cls), tmp_path)
    assert set(failed) == clauses, failed
    assert any(words in said for said in failed.values()), failed


class TestPlain(OfPlain):
    """A sound one."""
