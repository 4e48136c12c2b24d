"""The one place that knows how a transformers decoder is put together: blocks, norms, heads, and where its sites are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from codi_engine.core.errors import UserError
from codi_engine.core.model import ModelAdapter
from codi_engine.core.rollout import attention, packing, rectangles, tokenwise

#: reads (and may replace) the values at a site: tokens × width in, replacement or None out
Handler = Callable[[torch.Tensor], "torch.Tensor | None"]

_BLOCKS = ("h", "layers", "blocks")
_NORMS = ("ln_f", "norm", "final_layer_norm", "final_layernorm")
_ATTENTION = ("attn", "self_attn", "attention")
_ATTENTION_OUT = ("c_proj", "o_proj", "dense", "out_proj")
_MLP = ("mlp", "feed_forward")
_MLP_OUT = ("c_proj", "down_proj", "dense_4h_to_h", "fc2", "fc_out")
_MIDDLE_NORM = ("ln_2", "post_attention_layernorm")


class _Tapped(Exception):
    """Carries what the model hands to its first block; raised there so that nothing after it is computed."""

    def __init__(self, hidden: torch.Tensor, kwargs: dict[str, Any]) -> None:
        self.hidden, self.kwargs = hidden, kwargs


@dataclass(frozen=True)
class _Point:
    """Where in a block a component is read: a module, its side, and the columns that are the component."""

    module: nn.Module
    side: str  # "output", "input", or "stream" (the input, edited in place because the residual is the same tensor)
    columns: tuple[str, int] | None = None  # ("slice" | "interleaved", which third)


def _find(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    for name in names:
        found = getattr(module, name, None)
        if isinstance(found, nn.Module):
            return found
    return None


def first_tensor(output: Any) -> torch.Tensor:
    """Return a block's hidden state, whether it comes as a tensor (transformers 5) or leads a tuple (4.x)."""
    return output if isinstance(output, torch.Tensor) else next(iter(output))


class Network:
    """A transformers decoder taken apart: embed, blocks called one by one on packed tokens, final norm, head.

    Parameters
    ----------
    adapter: the loaded model; its attention implementation is switched to the packed one

    Raises
    ------
    UserError: the model is not a decoder with a list of blocks, a final norm and an attention interface
    """

    def __init__(self, adapter: ModelAdapter) -> None:
        self.adapter = adapter
        self.model = adapter.network
        self.info = adapter.info
        self.decoder = self.model.base_model
        blocks = _find(self.decoder, _BLOCKS)
        norm = _find(self.decoder, _NORMS)
        if not isinstance(blocks, nn.ModuleList) or norm is None:
            raise UserError(
                f"model: {type(self.model).__name__} has no list of blocks with a final norm that codi-engine knows; "
                "GPT-2, LLaMA, Qwen, Mistral and GPT-NeoX style decoders are supported"
            )
        self.blocks, self.norm = blocks, norm
        self.head = self.model.get_output_embeddings()
        self.embedding = self.model.get_input_embeddings()
        parameter = next(self.model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        #: token counts are padded to a multiple of this, so that bits do not depend on them
        self.quantum = attention.BLOCK
        #: how attention is computed
        self.attention: attention.Way = tokenwise if tokenwise.suits(self.device, self.dtype) else rectangles
        _fuse_gelu(self.model)
        attention.register()
        self.model.set_attn_implementation(attention.NAME)
        self.missing: set[str] = set()
        self.components = self._available()

    # ------------------------------------------------------------------------------------------ running

    def pack(self) -> None:
        """Bring the blocks' and the head's weights into the layout of the fastest products (idempotent)."""
        modules = [*self.blocks.modules(), self.head]
        if any(packing.packable(m) for m in modules) and packing.available():
            packing.pack(modules)
            packing.fuse(self.blocks.modules())
            if packing.steady(modules):  # then hardly a product has rows that nobody needs
                self.quantum = attention.MIN_ROWS

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Within it the weights lie as the model's own code has them: for its own forward, with or without gradients."""
        with packing.plain([*self.blocks.modules(), self.head]):
            yield

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings before any position is added: ids → … × width."""
        return self.embedding(ids)  # type: ignore[no-any-return]

    def enter(self, inputs: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return what the model hands its first block for 1 × N × width inputs at 1 × N positions.

        The model's own code adds position embeddings, scales embeddings or makes rotary tables: nothing of it is
        written again here.
        """

        def tap(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            raise _Tapped(hidden, {k: v for k, v in kwargs.items() if v is not None})

        handle = self.blocks[0].register_forward_pre_hook(tap, with_kwargs=True)
        try:
            self.decoder(inputs_embeds=inputs, position_ids=positions, use_cache=False)
        except _Tapped as tapped:
            return tapped.hidden, tapped.kwargs
        finally:
            handle.remove()
        raise UserError(f"model: {type(self.model).__name__} never calls its first block")

    def block(self, layer: int, hidden: torch.Tensor, kwargs: dict[str, Any], handlers: Mapping[str, Handler], tokens: int) -> torch.Tensor:
        """Call one block on 1 × N × width packed tokens, with handlers on the sites inside it (first ``tokens`` only)."""
        if not handlers:
            return first_tensor(self.blocks[layer](hidden, **kwargs))
        with self._hooked(layer, handlers, tokens):
            return first_tensor(self.blocks[layer](hidden, **kwargs))

    def normalise(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden)  # type: ignore[no-any-return]

    def logits(self, normed: torch.Tensor) -> torch.Tensor:
        """Rows × width of final-norm states → rows × vocabulary, fp32; rows are padded to the quantum."""
        rows = normed.shape[0]
        extra = -rows % self.quantum
        if extra:
            normed = torch.cat([normed, normed.new_zeros(extra, normed.shape[1])])
        return self.head(normed)[:rows].float()  # type: ignore[no-any-return]

    def project(self, c: torch.Tensor) -> torch.Tensor:
        """c (rows × width) → z (rows × width) through the model's own projection; rows are padded to a multiple of the block."""
        assert self.adapter.projection is not None
        rows = c.shape[0]
        extra = -rows % attention.BLOCK
        if extra:
            c = torch.cat([c, c.new_zeros(extra, c.shape[1])])
        return self.adapter.projection(c)[:rows]

    # -------------------------------------------------------------------------------------------- sites

    def width_of(self, component: str) -> int:
        """Width of a component's vectors (heads × head_dim where it has heads)."""
        info = self.info
        return {
            "attn_z": info.heads * info.head_dim,
            "q": info.heads * info.head_dim,
            "k": info.kv_heads * info.head_dim,
            "v": info.kv_heads * info.head_dim,
            "mlp_act": info.mlp_width,
            "logits": info.vocab_size,
        }.get(component, info.width)

    def heads_of(self, component: str) -> int:
        return self.info.kv_heads if component in ("k", "v") else self.info.heads

    def watch(self, component: str, layer: int, see: Callable[[torch.Tensor], None]) -> Any:
        """Show ``see`` the very tensor that holds a layered site's values whenever the block runs; return the hook's handle.

        The tensor is the one that the model computes on with, so that gradients can be taken with respect to it;
        :meth:`site_columns` finds the site in it.
        """

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(args[0] if args else kwargs["hidden_states"])

        if component == "resid_pre":
            return self.blocks[layer].register_forward_pre_hook(before, with_kwargs=True)
        point = _Point(self.blocks[layer], "output") if component == "resid_post" else self._point(component, layer)
        assert point is not None, component
        if point.side == "output":
            return point.module.register_forward_hook(lambda _, __, output: see(first_tensor(output)))
        return point.module.register_forward_pre_hook(before, with_kwargs=True)

    def replace(self, component: str, layer: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """Put ``change`` of a layered site's tensor (1 × tokens × width) in its place whenever the block runs; return the hook's handle.

        Gradients pass. What has columns of its own in a shared tensor (q, k, v of some models) or stands at a module's input is refused.

        Raises
        ------
        UserError: such a component
        """
        point = _Point(self.blocks[layer], "output") if component == "resid_post" else self._point(component, layer)
        if point is None or point.side != "output" or point.columns is not None:
            raise UserError(f"{component} cannot be edited with gradients; resid_post, attn_out and mlp_out can")

        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            new = change(first_tensor(output))
            return new if isinstance(output, torch.Tensor) else (new, *list(output)[1:])

        return point.module.register_forward_hook(hook)

    def site_columns(self, component: str, layer: int | None, tensor: torch.Tensor) -> torch.Tensor:
        """Return tokens × width of a site out of tokens × (width of the tensor that holds it)."""
        point = None if layer is None or component in ("resid_pre", "resid_post") else self._point(component, layer)
        return tensor if point is None else self._columns(tensor, point).reshape(len(tensor), -1)

    def _available(self) -> frozenset[str]:
        found = {"embed", "resid_pre", "resid_post", "final_norm", "logits"}
        if self.adapter.projection is not None:
            found |= {"latent_in", "latent_out"}
        for component in ("resid_mid", "attn_out", "mlp_out", "attn_z", "q", "k", "v", "mlp_act"):
            if self._point(component, 0) is not None:
                found.add(component)
        return frozenset(found)

    def _point(self, component: str, layer: int) -> _Point | None:
        block = self.blocks[layer]
        attn, mlp = _find(block, _ATTENTION), _find(block, _MLP)
        if component == "mlp_out":
            return _Point(mlp, "output") if mlp is not None else None
        if component == "mlp_act":
            down = _find(mlp, _MLP_OUT) if mlp is not None else None
            return _Point(down, "input") if down is not None else None
        if component == "resid_mid":
            middle = _find(block, _MIDDLE_NORM)
            parallel = getattr(block, "use_parallel_residual", False) or _find(block, ("pre_feedforward_layernorm",))
            sequential = middle is not None and not parallel and not isinstance(mlp, type(None))
            known = hasattr(block, "ln_2") or hasattr(block, "self_attn")
            return _Point(middle, "stream") if sequential and known and middle is not None else None
        if attn is None:
            return None
        if component == "attn_out":
            return _Point(attn, "output")
        if component == "attn_z":
            out = _find(attn, _ATTENTION_OUT)
            return _Point(out, "input") if out is not None else None
        which = "qkv".index(component)
        single = _find(attn, (f"{component}_proj",))
        if single is not None:
            return _Point(single, "output")
        joint = _find(attn, ("c_attn",))
        if joint is not None:
            return _Point(joint, "output", ("slice", which))
        joint = _find(attn, ("query_key_value",))
        return _Point(joint, "output", ("interleaved", which)) if joint is not None else None

    @contextmanager
    def _hooked(self, layer: int, handlers: Mapping[str, Handler], tokens: int) -> Iterator[None]:
        handles = []
        try:
            for component, handler in handlers.items():
                point = self._point(component, layer)
                assert point is not None, component
                if point.side == "output":
                    handles.append(point.module.register_forward_hook(self._on_output(point, handler, tokens)))
                else:
                    handles.append(point.module.register_forward_pre_hook(_on_input(point, handler, tokens)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_output(self, point: _Point, handler: Handler, tokens: int) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            view = self._columns(tensor[0, :tokens], point)
            new = handler(view.reshape(tokens, -1))
            if new is None:
                return None
            changed = tensor.clone()
            self._columns(changed[0, :tokens], point).copy_(new.view(view.shape))
            return changed if isinstance(output, torch.Tensor) else (changed, *list(output)[1:])

        return hook

    def _columns(self, x: torch.Tensor, point: _Point) -> torch.Tensor:
        if point.columns is None:
            return x
        kind, which = point.columns
        third = x.shape[1] // 3
        if kind == "slice":
            return x[:, which * third : (which + 1) * third]
        return x.view(x.shape[0], self.info.heads, 3, self.info.head_dim)[:, :, which]


def _on_input(point: _Point, handler: Handler, tokens: int) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> Any:
        tensor = args[0]
        new = handler(tensor[0, :tokens])
        if new is None:
            return None
        if point.side == "stream":
            tensor[0, :tokens] = new
            return None
        changed = tensor.clone()
        changed[0, :tokens] = new
        return (changed, *args[1:])

    return hook


def _fuse_gelu(model: nn.Module) -> None:
    """Replace transformers' tanh-GELU, written as six passes over memory, by torch's one-pass kernel of the same formula."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child).__name__ in ("NewGELUActivation", "FastGELUActivation", "GELUTanh"):
                setattr(module, name, nn.GELU(approximate="tanh"))


def select_tokens(kwargs: dict[str, Any], index: torch.Tensor, count: int) -> dict[str, Any]:
    """Reindex every per-token tensor that the model hands its blocks (position ids, rotary tables) by ``index``."""

    def select(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value.ndim >= 2 and value.shape[1] == count:
                return value[:, index]
            return value[index] if value.ndim == 1 and value.shape[0] == count else value
        if isinstance(value, tuple):
            return tuple(select(v) for v in value)
        return value

    return {name: select(value) for name, value in kwargs.items()}
