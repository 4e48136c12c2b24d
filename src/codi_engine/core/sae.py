"""Sparse autoencoders in one form: every file format is read into this one, and everything else sees nothing of formats.

A state h (width d) is normalised, encoded into F codes and decoded again; what the formats differ in is which normalisation,
which activation and which units the codes have. Codes are in the units of the file's own library; states are those of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch

from codi_engine.core.errors import UserError

Activation = Literal["relu", "jumprelu", "gated", "topk", "abs_topk"]
Norm = Literal["none", "rescale", "layer_norm"]

#: rows and columns of every matrix product are padded to a multiple of this, so that bits do not depend on how many there are
QUANTUM = 16
#: choices of features whose columns an autoencoder keeps picked, each of no more than this share of its features
PICKS, LARGEST_PICK = 8, 1 / 8
_EPSILON = 1e-5
_SEPARABLE: frozenset[str] = frozenset({"relu", "jumprelu", "gated"})


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder: f = act(W_enc·(norm(h) − center) + b_enc), h ≈ un-norm(f·W_dec + b_dec); float32, rows independent.

    Attributes
    ----------
    format, path: name of the format it was read from, and where
    w_enc, b_enc, w_dec, b_dec: d × F, F, F × d, d; a fixed scale of the data set is folded into them by the reader
    activation: ``relu``; ``jumprelu`` (pre where pre·gauge > threshold and pre > 0); ``gated`` (Rajamanoharan et al. 2024);
        ``topk`` (the k largest of pre·gauge, then relu unless ``signed``); ``abs_topk`` (the k largest by \\|pre\\|, signs kept)
    k: of top-k kinds
    threshold: F, of jumprelu
    gate_bias, mag_scale, mag_bias: F each, of gated: on where W_enc·x + gate_bias > 0, size relu(W_enc·x · mag_scale + mag_bias)
    gauge: F or None; what pre is multiplied by where the activation decides, not in the codes
    glu, glu_bias: d × F and F, or None; pre is multiplied by sigmoid(x·glu + glu_bias)
    center: d or None; subtracted from the normalised state
    norm: ``rescale`` (to length √d, per state; a zero state stays zero) and ``layer_norm`` (mean 0, unbiased std 1, eps 1e-5) are undone by ``decode``
    site: where its states come from, as an address (``resid_post.26``), when the file says so
    """

    format: str
    path: str
    w_enc: torch.Tensor
    b_enc: torch.Tensor
    w_dec: torch.Tensor
    b_dec: torch.Tensor
    activation: Activation
    k: int | None = None
    threshold: torch.Tensor | None = None
    gate_bias: torch.Tensor | None = None
    mag_scale: torch.Tensor | None = None
    mag_bias: torch.Tensor | None = None
    gauge: torch.Tensor | None = None
    glu: torch.Tensor | None = None
    glu_bias: torch.Tensor | None = None
    center: torch.Tensor | None = None
    norm: Norm = "none"
    signed: bool = False
    site: str | None = None
    _picks: dict[tuple[int, ...], dict[str, torch.Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, tensor in self._tensors().items():
            object.__setattr__(self, name, tensor.detach().to(torch.float32).contiguous())
        self._check()

    # --------------------------------------------------------------------------------------------- what it is

    @property
    def width(self) -> int:
        return self.w_dec.shape[-1]

    @property
    def features(self) -> int:
        return self.w_dec.shape[0]

    @property
    def separable(self) -> bool:
        """True when a feature's code does not depend on the other features (not so for top-k kinds)."""
        return self.activation in _SEPARABLE

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self._tensors().values())

    @property
    def device(self) -> torch.device:
        return self.w_dec.device

    def to(self, device: str | torch.device) -> SAE:
        """Return the same autoencoder on a device."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return replace(self, **moved)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)}

    def summary(self) -> dict[str, str]:
        """Return what it is, in words."""
        activation = self.activation + ("" if self.k is None else f", k = {self.k}") + (", gated linear unit" if self.glu is not None else "")
        norm = {"none": "none", "rescale": "every state to length √d", "layer_norm": "every state to mean 0, std 1"}[self.norm]
        size = {"width": f"{self.width:,}", "features": f"{self.features:,}", "activation": activation, "normalisation": norm}
        return {"format": self.format, **size, "site": self.site or "not stated", "bytes": f"{self.bytes:,}"}

    # --------------------------------------------------------------------------------------------- what it does

    @torch.no_grad()
    def encode(self, h: torch.Tensor, features: torch.Tensor | tuple[int, ...] | None = None) -> torch.Tensor:
        """Return codes: rows × width → rows × F float32, or rows × len(features) of the features named.

        Where ``separable``, only those are computed, with the same bits as among all. Columns of a tuple of features are kept for the next call.
        """
        rows = h.shape[0]
        x, _, _ = self._normalised(_padded(h.to(torch.float32)))
        if self.center is not None:
            x = x - self.center
        if features is not None and self.separable:
            return self._codes(x, self._chosen(features))[:rows, : len(features)]
        codes = self._codes(x, self._padded_columns())[:rows, : self.features]
        return codes if features is None else codes[:, self._index(features)]

    def _index(self, features: torch.Tensor | tuple[int, ...]) -> torch.Tensor:
        return torch.tensor(features, device=self.device) if isinstance(features, tuple) else features

    def _padded_columns(self) -> dict[str, torch.Tensor]:
        """Return the tensors of all features, filled up to a multiple of the quantum."""
        if self.features % QUANTUM == 0:
            return self._by_feature()
        return self._picked(torch.arange(self.features, device=self.device))

    def _chosen(self, features: torch.Tensor | tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Return the columns of some features; those of a tuple are kept, as long as they are few."""
        if not isinstance(features, tuple):
            return self._picked(features)
        found = self._picks.get(features)
        if found is None:
            found = self._picked(self._index(features))
            if len(features) <= self.features * LARGEST_PICK:
                if len(self._picks) >= PICKS:
                    self._picks.pop(next(iter(self._picks)), None)
                self._picks[features] = found
        return found

    def _by_feature(self) -> dict[str, torch.Tensor]:
        """Return the encoder's tensors whose last dimension is the features."""
        names = ("w_enc", "b_enc", "threshold", "gate_bias", "mag_scale", "mag_bias", "gauge", "glu", "glu_bias")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _picked(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the columns of some features, filled up to a multiple of the quantum."""
        index = torch.cat([features, features.new_zeros(-len(features) % QUANTUM)])
        return {name: value[..., index].contiguous() for name, value in self._by_feature().items()}

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, h: torch.Tensor | None = None) -> torch.Tensor:
        """Return states: rows × F → rows × width, in the dtype of ``h`` (float32 without it).

        ``h`` is the state whose length, or mean and std, undo the normalisation, where that is per state.
        """
        rows = codes.shape[0]
        out = _padded(codes.to(torch.float32)) @ self.w_dec + self.b_dec
        if self.norm != "none":
            if h is None:
                raise ValueError("an autoencoder that normalises every state needs h to decode")
            _, shift, scale = self._normalised(_padded(h.to(torch.float32)))
            out = out * scale + shift
        return out[:rows].to(torch.float32 if h is None else h.dtype)

    def reconstruct(self, h: torch.Tensor) -> torch.Tensor:
        """Return decode(encode(h)), in the dtype of h."""
        return self.decode(self.encode(h), h)

    @torch.no_grad()
    def add(self, h: torch.Tensor, features: torch.Tensor | tuple[int, ...], delta: torch.Tensor) -> torch.Tensor:
        """Return h + delta·W_dec[features], un-normalised: rows × width; delta is rows × len(features).

        What the autoencoder does not explain stays as it is. Rows whose delta is zero come back bit for bit. Features are
        added one after the other in the order given, so a feature that a row leaves alone changes nothing of its bits.
        """
        total = torch.zeros(h.shape, dtype=torch.float32, device=h.device)
        for index, feature in enumerate(features if isinstance(features, tuple) else features.tolist()):
            total += delta[:, index : index + 1].to(torch.float32) * self.w_dec[feature]
        if self.norm != "none":
            rows = h.shape[0]
            _, _, scale = self._normalised(_padded(h.to(torch.float32)))
            total = total * scale[:rows]
        touched = (delta != 0).any(1, keepdim=True)
        return torch.where(touched, (h.to(torch.float32) + total).to(h.dtype), h)

    def _normalised(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float, torch.Tensor]:
        """Return normalised states, and the shift and scale (rows × 1) that bring a decoded state back."""
        if self.norm == "rescale":
            length = h.norm(dim=1, keepdim=True)
            size = float(self.width) ** 0.5
            scale = torch.where(length > 0, length / size, torch.ones_like(length))
            return h * torch.where(length > 0, size / length, torch.ones_like(length)), 0.0, scale
        if self.norm == "layer_norm":
            mean = h.mean(1, keepdim=True)
            centred = h - mean
            std = centred.std(1, keepdim=True)
            return centred / (std + _EPSILON), mean, std
        return h, 0.0, h.new_ones(h.shape[0], 1)

    def _codes(self, x: torch.Tensor, columns: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the codes of the columns given, a multiple of the quantum of them."""
        linear = x @ columns["w_enc"]
        if self.activation == "gated":
            size = torch.relu(linear * columns["mag_scale"] + columns["mag_bias"])
            return torch.where(linear + columns["gate_bias"] > 0, size, torch.zeros_like(linear))
        pre = linear + columns["b_enc"]
        if self.glu is not None:
            pre = pre * torch.sigmoid(x @ columns["glu"] + columns["glu_bias"])
        judged = pre * columns["gauge"] if self.gauge is not None else pre
        if self.activation == "relu":
            return torch.relu(pre)
        if self.activation == "jumprelu":
            return torch.where(judged > columns["threshold"], torch.relu(pre), torch.zeros_like(pre))
        return self._largest(pre[:, : self.features], judged[:, : self.features])

    def _largest(self, pre: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
        """Keep the k largest of every row."""
        assert self.k is not None
        by = judged.abs() if self.activation == "abs_topk" else judged
        kept = torch.zeros_like(pre, dtype=torch.bool).scatter_(1, by.topk(self.k, dim=1).indices, True)
        values = pre if self.signed or self.activation == "abs_topk" else torch.relu(pre)
        return torch.where(kept, values, torch.zeros_like(pre))

    # ------------------------------------------------------------------------------------------------- checks

    def _check(self) -> None:
        """Refuse shapes that do not fit together, values that are not finite, and parts that the activation lacks."""
        if self.w_dec.ndim != 2 or min(self.w_dec.shape) == 0:
            raise UserError(f"sae: '{self.path}': W_dec must be features × width; it is {_shape(self.w_dec)}")
        f, d = self.w_dec.shape
        wanted: dict[str, Sequence[int]] = {"w_enc": (d, f), "w_dec": (f, d), "b_dec": (d,), "center": (d,), "glu": (d, f)}
        for name, tensor in self._tensors().items():
            want = wanted.get(name, (f,))
            if tuple(tensor.shape) != tuple(want):
                raise UserError(
                    f"sae: '{self.path}': {_shown(name)} is {_shape(tensor)}; with {f} features and width {d} it must be {'×'.join(map(str, want))}"
                )
            if not torch.isfinite(tensor).all() and not (name == "threshold" and not tensor.isnan().any()):
                raise UserError(f"sae: '{self.path}': {_shown(name)} holds NaN or infinite values")
        needs = {"jumprelu": ("threshold",), "gated": ("gate_bias", "mag_scale", "mag_bias"), "topk": ("k",), "abs_topk": ("k",)}
        needed = (*needs.get(self.activation, ()), *(("glu_bias",) if self.glu is not None else ()))
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise UserError(f"sae: '{self.path}': {self.activation} without {', '.join(map(_shown, missing))}")
        if self.k is not None and not 1 <= self.k <= f:
            raise UserError(f"sae: '{self.path}': k is {self.k}; it must lie between 1 and its {f} features")


def _padded(rows: torch.Tensor) -> torch.Tensor:
    extra = -rows.shape[0] % QUANTUM
    return torch.cat([rows, rows.new_zeros(extra, rows.shape[1])]) if extra else rows.contiguous()


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"


def _shown(name: str) -> str:
    return {"w_enc": "W_enc", "w_dec": "W_dec", "gate_bias": "b_gate", "mag_scale": "r_mag", "mag_bias": "b_mag"}.get(name, name)
