"""The sparse autoencoders of a session: found, fetched, read once, kept in bounded memory, and named by the digests of their files."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import NoOptions, SaeFormat
from codi_engine.core.returned import knows, read_sae

if TYPE_CHECKING:
    import torch

    from codi_engine.core.plugins import Plugins
    from codi_engine.core.sae import SAE

#: bytes of tensors that a store keeps
BUDGET = 4 << 30
_MOST_LAYERS = 512
_HUB = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(/[^/]+)*/?")
_CALLED = re.compile(r"(.+) \(layer (\d+)\)")


class SaeStore:
    """The autoencoders of a session.

    Parameters
    ----------
    plugins: whose ``sae_formats`` are asked, in their order, which of them knows a file
    device: where their tensors are put
    budget_bytes: of tensors; the one asked for last always stays
    """

    def __init__(self, plugins: Plugins, device: str | torch.device, budget_bytes: int = BUDGET) -> None:
        self.formats: list[SaeFormat] = [r.cls(NoOptions()) for r in plugins.registered if r.kind == "sae_format"]  # type: ignore[misc]
        self.device, self.budget = device, budget_bytes
        self._loaded: OrderedDict[tuple[str, int | None], SAE] = OrderedDict()
        self._asked: dict[tuple[str, int | None], None] = {}
        self._digests: dict[tuple[str, int | None], str] = {}
        self._places: dict[str, Path] = {}

    def get(self, path: str, layer: int | None = None, width: int | None = None) -> SAE:
        """Return an autoencoder, read now if it is not in memory.

        Parameters
        ----------
        path: file, directory, Hub address (``owner/name/folder``) or a format's shortcut (``demo``); ``{layer}`` is filled in
        width: of the model; another one is refused
        """
        key = (path, layer)
        self._asked[key] = None
        sae = self._loaded.get(key)
        if sae is None:
            place = self._place(path, layer)
            sae = read_sae(self.format_of(place), place).to(self.device)
            self._loaded[key] = sae
        self._loaded.move_to_end(key)
        if width is not None and sae.width != width:
            raise UserError(f"sae: '{filled(path, layer)}' reads states of width {sae.width}; the model's are {width} wide")
        self._trim()
        return sae

    def digest(self, path: str, layer: int | None = None) -> str:
        """Return the sha256 of the files that an autoencoder is read from."""
        key = (path, layer)
        if key not in self._digests:
            place = self._place(path, layer)
            root = place if place.is_dir() else place.parent
            digest = hashlib.sha256()
            for file in self.format_of(place).files(place):
                digest.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
                with file.open("rb") as stream:
                    while chunk := stream.read(1 << 22):
                        digest.update(chunk)
            self._digests[key] = digest.hexdigest()
        return self._digests[key]

    def layers(self, path: str) -> list[int | None]:
        """Return the layers that a path has an autoencoder of on this machine; [None] for a path without ``{layer}``."""
        name = self._named(path)
        if "{layer}" not in name:
            return [None]
        found = [layer for layer in range(_MOST_LAYERS) if Path(filled(name, layer)).expanduser().exists()]
        if not found:
            raise UserError(f"sae: '{path}' names one autoencoder per layer; say which layer")
        return list(found)

    def _check_layer(self, path: str, layer: int | None) -> None:
        """Refuse a layer of which there is no autoencoder while there are some of others."""
        if layer is None or "{layer}" not in self._named(path):
            return
        known = [one for one in range(_MOST_LAYERS) if Path(filled(self._named(path), one)).expanduser().exists()]
        if known:
            raise UserError(f"sae: '{path}' has no autoencoder of layer {layer}; it has layers {', '.join(map(str, known))}")

    def format_of(self, place: Path) -> SaeFormat:
        """Return the first format that knows a file or directory."""
        for one in self.formats:
            if knows(one, place):
                return one
        if place.suffix == ".dcp" or (place.is_dir() and (any(place.glob("*.dcp")) or (place / ".metadata").is_file())):
            raise UserError(f"sae: '{place}' is a sharded .dcp checkpoint, which is a pickle inside; save it as safetensors with the library that wrote it")
        raise UserError(f"sae: '{place}' is in no known format ({', '.join(f.name for f in self.formats)}); 'codi-engine plugins' lists them")

    def digests(self) -> dict[str, str]:
        """Return path (``{layer}`` filled in) → digest of every autoencoder that was asked for."""
        return {self._called(path, layer): self.digest(path, layer) for path, layer in self._asked}

    def _called(self, path: str, layer: int | None) -> str:
        """Return a name of its own for every file: a shortcut may stand for one file a layer."""
        return f"{path} (layer {layer})" if "{layer}" not in path and "{layer}" in self._named(path) else filled(path, layer)

    def named_digest(self, name: str) -> str:
        """Return the digest of what :meth:`digests` calls so."""
        shortcut = _CALLED.fullmatch(name)
        return self.digest(shortcut[1], int(shortcut[2])) if shortcut else self.digest(name)

    @property
    def loaded(self) -> tuple[tuple[str, int | None], ...]:
        """What is in memory, the least recently used first."""
        return tuple(self._loaded)

    def _trim(self) -> None:
        while len(self._loaded) > 1 and sum(s.bytes for s in self._loaded.values()) > self.budget:
            self._loaded.popitem(last=False)

    def _place(self, path: str, layer: int | None) -> Path:
        """Return where an autoencoder lies on this machine, fetched from the Hub if it must be."""
        name = filled(self._named(path), layer)
        if name not in self._places:
            local = Path(name).expanduser()
            if path != name and not local.exists():
                self._check_layer(path, layer)
            self._places[name] = local if local.exists() else _fetched(name)
        return self._places[name]

    def _named(self, path: str) -> str:
        """Return the path that a format's shortcut stands for; what is on disk under that name comes first."""
        return path if Path(path).exists() else next((f.shortcuts[path] for f in self.formats if path in f.shortcuts), path)


def filled(path: str, layer: int | None) -> str:
    """Return a path with ``{layer}`` filled in; a path that needs a layer and gets none is refused."""
    if "{layer}" in path and layer is None:
        raise UserError(f"sae: '{path}' names one autoencoder per layer; say which layer")
    return path.replace("{layer}", str(layer))


def _fetched(name: str) -> Path:
    """Return the local copy of a Hub folder or file ``owner/name/folder``.

    Raises
    ------
    UserError: no such file here, and not reachable or not there on the Hub
    """
    if not _HUB.fullmatch(name) or name.startswith((".", "/", "~")):
        raise UserError(f"sae: no such file or directory: '{name}'")
    from huggingface_hub import snapshot_download

    from codi_engine.core.libraries import quiet

    owner, repository, *rest = name.strip("/").split("/")
    inner = "/".join(rest)
    wanted = {"allow_patterns": [inner, f"{inner}/*"]} if inner else {"ignore_patterns": ["*/*"]}
    try:
        with quiet():
            folder = Path(snapshot_download(f"{owner}/{repository}", **wanted))
    except Exception as error:  # the Hub's client raises many types; none of them may reach the user raw
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:160]
        raise UserError(f"sae: '{name}' is neither a path here nor reachable on the Hub: {reason}") from None
    if not (folder / inner).exists():
        raise UserError(f"sae: the Hub repository {owner}/{repository} has no '{inner}'")
    return folder / inner
