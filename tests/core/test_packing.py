"""Weights that are packed for faster products: the same numbers, the same bits in any batch, and plain ones again on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from codi_engine.core.rollout import packing

pytestmark = pytest.mark.skipif(not packing.available(), reason="torch has no oneDNN here")


def linear(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(96, 80, bias=bias).requires_grad_(False)


def conv1d() -> nn.Module:
    torch.manual_seed(0)
    layer: nn.Module = Conv1D(80, 96)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("make", [linear, conv1d, lambda: linear(False)])
def test_packed_layers_give_the_same_numbers_and_come_back(make: Callable[[], nn.Module]) -> None:
    layer, plain = make(), make()
    packing.pack([layer])
    assert "weight" not in dict(layer.named_parameters())  # the plain weight is given up
    x = torch.randn(3, 48, 96)
    assert torch.allclose(layer(x), plain(x), atol=1e-5)
    assert torch.equal(layer.weight, plain.weight)  # type: ignore[arg-type]
    with packing.plain([layer]):
        assert type(layer) is type(plain)
        assert torch.equal(layer(x), plain(x))
    assert type(layer) is not type(plain)
    packing.unpack([layer])
    assert type(layer) is type(plain)
    assert torch.equal(layer.get_parameter("weight"), plain.get_parameter("weight"))


@pytest.mark.parametrize("make", [linear, conv1d])
def test_bits_of_a_row_do_not_depend_on_the_others(make: Callable[[], nn.Module]) -> None:
    layer, x = make(), torch.randn(512, 96)
    packing.pack([layer])
    whole = layer(x)
    for rows in (16, 32, 48, 160, 256, 400):
        assert torch.equal(layer(x[:rows]), whole[:rows])
        assert torch.equal(layer(x[-rows:].contiguous()), whole[-rows:])


def test_gradients_pass_and_other_types_too() -> None:
    layer, plain = conv1d(), conv1d()
    packing.pack([layer])
    x = torch.randn(16, 96, requires_grad=True)
    first, second = (torch.autograd.grad(one(x).square().sum(), x)[0] for one in (layer, plain))
    assert torch.allclose(first, second, atol=1e-4)
    assert torch.allclose(layer(x.detach().double()), plain.double()(x.detach().double()), atol=1e-6)


def test_what_cannot_be_packed_stays() -> None:
    trained, small, half = nn.Linear(96, 80), nn.Linear(8, 8).requires_grad_(False), nn.Linear(96, 80, dtype=torch.bfloat16).requires_grad_(False)
    packing.pack([trained, small, half, nn.LayerNorm(96)])
    assert [type(m) for m in (trained, small, half)] == [nn.Linear] * 3


def test_rows_are_steady_only_where_all_that_multiplies_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [linear(), conv1d()]
    assert not packing.steady(layers)  # plain ones
    packing.pack(layers)
    assert packing.steady([*layers, nn.LayerNorm(80)])
    assert not packing.steady([*layers, nn.Linear(8, 8)])
    assert not packing.steady([])
    forward = packing._Packed.forward
    monkeypatch.setattr(packing._Packed, "forward", lambda self, x: forward(self, x) + (1e-6 if len(x) == 20 else 0))
    assert not packing.steady(layers)


class Mlp(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.c_fc: Any = linear()
        self.act: Any = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.c_fc(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("act", [nn.GELU("tanh"), nn.GELU(), nn.SiLU()])
def test_the_product_applies_the_activation_that_follows_it(act: nn.Module) -> None:
    module = Mlp(act)
    x = torch.randn(48, 96)
    names = set(module.state_dict())
    want = module(x)
    packing.pack([module.c_fc])
    packing.fuse([module])
    packing.fuse([module])
    assert torch.allclose(module(x), want, atol=1e-5)
    assert torch.equal(module.act(x), x)  # it is done already
    assert set(module.state_dict()) == names
    with packing.plain([module.c_fc]):
        assert torch.allclose(module(x), want, atol=1e-5)
        assert torch.equal(module.act(x), act(x))
    assert torch.allclose(module(x.double()).float(), want, atol=1e-5)
    x.requires_grad_(True)
    assert torch.allclose(
        torch.autograd.grad(module(x).sum(), x)[0], torch.autograd.grad(act(module.c_fc.weight.mul(0).sum() + plain_of(module)(x)).sum(), x)[0], atol=1e-4
    )


def plain_of(module: Mlp) -> nn.Linear:
    layer = nn.Linear(*reversed(module.c_fc.weight.shape))
    layer.load_state_dict({"weight": module.c_fc.weight.clone(), "bias": module.c_fc.bias})
    return layer


def test_other_activations_are_left_alone() -> None:
    module = Mlp(nn.Tanh())
    packing.pack([module.c_fc])
    packing.fuse([module])
    assert type(module.act) is nn.Tanh


def test_what_has_a_hook_is_left_apart() -> None:
    module, seen = Mlp(nn.SiLU()), []
    module.c_fc.register_forward_hook(lambda _, __, out: seen.append(out))
    packing.pack([module.c_fc])
    packing.fuse([module])
    out = module(torch.randn(4, 96))
    assert torch.equal(nn.functional.silu(seen[0]), out)
