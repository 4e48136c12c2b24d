"""Weights of matrix products in the layout in which oneDNN's kernels read them: on a CPU in float32, reordered once.

A product then runs at nearly the same rate with 16 tokens as with 500, where a plain layout is copied anew at every call; and a
row's bits do not depend on how many rows there are (``core.rollout.selftest`` looks). The plain weights are given up, so that
the model is held once; whoever reads ``weight`` gets them back, computed from the packed ones, bit for bit.

An activation that follows such a layer is computed by the product's own kernel while its values are at hand (:func:`fuse`): the layer's
output is then the activated one. Code that hooks or wraps modules of the model itself does so within :func:`plain`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

#: tokens of a product that the layout is chosen for
TOKENS = 256
#: fewest rows and columns of a weight that is worth it
SMALLEST = 64
#: a layer and the activation that a model applies to its output, by their names in the module that holds both
_FOLLOWED = (("c_fc", "act"), ("gate_proj", "act_fn"), ("dense_h_to_4h", "act"), ("fc1", "activation_fn"))
#: rows of a product, and the fewer ones whose bits are compared with theirs
_PROBE, _FEWER = 68, (4, 20, 36, 60)


class _Packed:
    """Mixed into a layer whose weight is packed; ``_transposed`` where the plain one is inputs × outputs."""

    _transposed = False
    _packed: torch.Tensor
    _activation: _Activation | None = None
    bias: torch.Tensor | None

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, computed anew."""
        dense = self._packed.to_dense()
        return dense.t() if self._transposed else dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32 or (torch.is_grad_enabled() and x.requires_grad):  # no gradient passes a packed product
            bias = None if self.bias is None else self.bias.to(x.dtype)
            out = nn.functional.linear(x, self._packed.to_dense().to(x.dtype), bias)
            return out if self._activation is None else self._activation.inner(out)
        after = ("none", "") if self._activation is None else self._activation.name
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, after[0], [], after[1])  # type: ignore[no-any-return]

    def _save_to_state_dict(self, destination: dict[str, torch.Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        destination[f"{prefix}weight"] = self.weight


class _Activation(nn.Module):
    """In the place of an activation whose packed layer applies it; of a plain layer it is the activation as it was."""

    def __init__(self, layer: nn.Module, inner: nn.Module, name: tuple[str, str]) -> None:
        super().__init__()
        self.inner, self.name = inner, name
        self.__dict__["layer"] = layer  # it is held by its own module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if isinstance(self.layer, _Packed) else self.inner(x)


class _Linear(_Packed, nn.Linear):  # type: ignore[misc, override]
    pass


def packable(module: nn.Module) -> bool:
    """True for a linear layer (torch's, or transformers' Conv1D) whose weight can be packed here."""
    from transformers.pytorch_utils import Conv1D

    if type(module) not in (nn.Linear, Conv1D):
        return False
    weight = module.weight
    return (
        isinstance(weight, torch.Tensor) and weight.device.type == "cpu" and weight.dtype == torch.float32 and min(weight.shape) >= SMALLEST
        and not weight.requires_grad
    )  # fmt: skip


def available() -> bool:
    """True where torch has oneDNN and its packed linear product, which gives here what a plain one gives."""
    there = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled  # type: ignore[no-untyped-call]
    return bool(there and hasattr(torch.ops.mkldnn, "_linear_pointwise") and _works())


@cache
def _works() -> bool:
    """Try it: the operator is torch's own affair, and other processors and versions may lack it or take other arguments."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(SMALLEST, SMALLEST, generator=generator), torch.randn(TOKENS, SMALLEST, generator=generator)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, TOKENS)
        product = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        return bool(torch.allclose(product, x @ weight.t(), atol=1e-4) and torch.equal(packed.to_dense(), weight))
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def pack(modules: Iterable[nn.Module]) -> None:
    """Pack the weights of all linear layers that can be (idempotent)."""
    if not available():
        return
    for module in modules:
        if packable(module):
            _pack(module)


def unpack(modules: Iterable[nn.Module]) -> None:
    """Give packed layers their plain weights back (idempotent)."""
    for module in modules:
        if isinstance(module, nn.Module) and isinstance(module, _Packed):
            plain = nn.Parameter(module.weight.contiguous(), requires_grad=False)
            del module._packed
            module.__class__ = type(module).__mro__[2]
            module.register_parameter("weight", plain)


def fuse(modules: Iterable[nn.Module]) -> None:
    """Let packed layers apply the activation that follows them (idempotent)."""
    for module in modules:
        for first, second in _FOLLOWED:
            layer, inner = getattr(module, first, None), getattr(module, second, None)
            name = _in_the_kernel(inner)
            if any(one._forward_hooks or one._forward_pre_hooks for one in (layer, inner) if isinstance(one, nn.Module)):
                continue  # somebody looks at what is between the two
            if isinstance(layer, nn.Module) and isinstance(layer, _Packed) and isinstance(inner, nn.Module) and name is not None and _fuses(*name):
                activation = _Activation(layer, inner, name)
                layer.__dict__["_activation"] = activation
                setattr(module, second, activation)


def _in_the_kernel(activation: Any) -> tuple[str, str] | None:
    """Return oneDNN's name of an activation; None where it has none."""
    from transformers.activations import GELUActivation, SiLUActivation

    if type(activation) is nn.GELU:
        return "gelu", activation.approximate
    if type(activation) is GELUActivation and activation.act is nn.functional.gelu:
        return "gelu", "none"
    return ("swish", "") if type(activation) in (nn.SiLU, SiLUActivation) else None


@cache
def _fuses(name: str, kind: str) -> bool:
    """Try it, as :func:`_works` does."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(SMALLEST, SMALLEST, generator=generator), torch.randn(TOKENS, SMALLEST, generator=generator)
    plain = nn.functional.silu if name == "swish" else nn.GELU(kind)
    try:
        product = torch.ops.mkldnn._linear_pointwise(x, torch.ops.mkldnn._reorder_linear_weight(weight, TOKENS), None, name, [], kind)
        return bool(torch.allclose(product, plain(x @ weight.t()), atol=1e-4))
    except (RuntimeError, TypeError, NotImplementedError):
        return False


@torch.inference_mode()
def steady(modules: Iterable[nn.Module]) -> bool:
    """True where all that multiplies is packed, and a row's bits are the same among few rows and among many.

    One layer of every shape is looked at: its kernel is chosen by the shape.
    """
    shapes: set[tuple[int, ...]] = set()
    for module in modules:
        if any(p.ndim > 1 for p in module.parameters(recurse=False)):
            return False
        if isinstance(module, nn.Module) and isinstance(module, _Packed) and tuple(module._packed.shape) not in shapes:
            shapes.add(tuple(module._packed.shape))
            x = torch.randn(_PROBE, module._packed.shape[1], generator=torch.Generator().manual_seed(0))
            among = module(x)
            if not all(torch.equal(module(x[:rows]), among[:rows]) for rows in _FEWER):
                return False
    return bool(shapes)


def _pack(module: nn.Module) -> None:
    transposed = type(module) is not nn.Linear
    plain: torch.Tensor = module.weight  # type: ignore[assignment]
    packed = torch.ops.mkldnn._reorder_linear_weight((plain.t() if transposed else plain).detach().contiguous(), TOKENS)
    del module._parameters["weight"], plain
    module.__class__ = _conv1d() if transposed else _Linear
    module._packed = packed


def _conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    if not _CONV1D:
        _CONV1D.append(type("_Conv1D", (_Packed, Conv1D), {"_transposed": True}))
    return _CONV1D[0]


_CONV1D: list[type[nn.Module]] = []


@contextmanager
def plain(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it layers have their plain weights; those that were packed are packed again after it."""
    packed = [m for m in modules if isinstance(m, _Packed)]
    unpack(packed)
    try:
        yield
    finally:
        pack(packed)


__all__ = ["available", "fuse", "pack", "packable", "plain", "steady", "unpack"]
