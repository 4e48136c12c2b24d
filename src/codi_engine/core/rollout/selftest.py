"""The self-test at load: the packed executor against the model's own forward, and bits against batch composition."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from codi_engine.core.errors import GateError
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Rollout, Task, Want

#: largest relative difference of logits that counts as rounding, by dtype
TOLERANCE = {torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class SelfTest:
    """``difference``: max |Δlogit| / std against the model's own forward; ``reproducible``: the same bits again, in any batch.

    ``bits``: a digest of the computed logits, to be compared with other devices' and with those of earlier invocations.
    ``deterministic``: the same batch gave the same bits twice.
    """

    difference: float
    reproducible: bool
    bits: str
    deterministic: bool = True


@torch.inference_mode()
def self_test(net: Network) -> SelfTest:
    """Run four prompts through the model's own attention and through the packed executor.

    Raises
    ------
    GateError: the two disagree, so no number of this model could be trusted
    """
    first = _probe(net, 21)
    second, longer = _probe(net, 5), _probe(net, 37)
    sibling = [*first[:12], 0, *first[13:]]  # begins as the first one does, which goes on from it
    reference = _own_forward(net, first)
    rollout = Rollout(net, cache_bytes=0)
    want = Want(generate=False, read=False, first=False, captures={("final_norm", "prompt"): ((None,), (-1,))})
    alone = rollout.run([first], [Task(0)], want).captures["final_norm", None, "prompt"][0, 0]
    several = [rollout.run([second, first, sibling, longer], [Task(i) for i in range(4)], want).captures["final_norm", None, "prompt"] for _ in range(2)]
    among, deterministic = several[0][1, 0], same_bits(*several)
    logits = net.logits(alone[None])[0]
    deterministic &= same_bits(logits, net.logits(alone[None])[0])
    if not bool(torch.isfinite(logits).all()):
        raise GateError(
            f"model: the logits of an ordinary prompt are not finite in {str(net.dtype).removeprefix('torch.')}.\n"
            "Set model.dtype: float32 (or bfloat16 instead of float16, whose range is small); are the checkpoint's weights finite?"
        )
    scale = float(reference.std().clamp_min(1e-6))
    difference = float((logits - reference).abs().max()) / scale
    if not difference <= TOLERANCE.get(net.dtype, 2e-4):
        raise GateError(
            f"model: the packed executor differs from {type(net.model).__name__}'s own forward by {difference:.2e} of the logits' "
            "spread.\nThis architecture is not supported yet; please report it with its config.json."
        )
    _drop_broken_sites(net, first)
    bits = hashlib.sha256(logits.float().cpu().numpy().tobytes()).hexdigest()
    return SelfTest(difference, deterministic and same_bits(alone, among), bits, deterministic)


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Say whether two results of one computation are the same bits."""
    return bool(torch.equal(first, second))


def arithmetic(net: Network, bits: str) -> dict[str, str]:
    """Return what bits depend on: the digest of the self-test's, torch, threads, the device and what stands behind it."""
    import platform

    device = torch.cuda.get_device_name(net.device) if net.device.type == "cuda" else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"bits": bits, "torch": torch.__version__, "threads": str(torch.get_num_threads()), "device": f"{net.device.type} ({device})"}


def other_bits(then: list[dict[str, str]], now: dict[str, str]) -> str:
    """Say that units of a run were computed with other bits, with what has changed; empty where they are the same."""
    others = [one for one in then if one.get("bits") != now["bits"]]
    if not others:
        return ""
    old = others[0]
    changed = [f"{key} {old.get(key)} then, {now[key]} now" for key in ("torch", "threads", "device") if old.get(key) != now[key]]
    why = "; ".join(changed) or "the same torch, threads and kind of device: other settings or another library"
    return f"units of this run were computed with other bits ({why}): results agree to rounding, not bit for bit"


def _probe(net: Network, length: int) -> list[int]:
    step = max(net.embedding.weight.shape[0] // 97, 1)
    return [(7 + 13 * i * step) % net.embedding.weight.shape[0] for i in range(length)]


def _own_forward(net: Network, ids: list[int]) -> torch.Tensor:
    """Return fp32 logits of the last token by the model's own code."""
    packed = net.model.config._attn_implementation
    net.model.set_attn_implementation("eager")
    try:
        with net.plain():
            out = net.model(input_ids=torch.tensor([ids], device=net.device), use_cache=False)
    finally:
        net.model.set_attn_implementation(packed)
    return out.logits[0, -1].float()  # type: ignore[no-any-return]


def _drop_broken_sites(net: Network, ids: list[int]) -> None:
    """Keep ``resid_mid``, ``attn_out`` and ``mlp_out`` only where they add up to the residual stream."""
    parts = ("resid_pre", "resid_mid", "attn_out", "mlp_out", "resid_post")
    there = tuple(c for c in parts if c in net.components)
    want = Want(generate=False, read=False, first=False, captures={(c, "prompt"): ((0,), (-1,)) for c in there})
    got = {c: v[0, 0].float() for (c, _, _), v in Rollout(net, cache_bytes=0).run([ids], [Task(0)], want).captures.items()}
    broken = set()
    if {"attn_out", "mlp_out"} <= set(there) and not _close(got["resid_pre"] + got["attn_out"] + got["mlp_out"], got["resid_post"]):
        broken |= {"attn_out", "mlp_out", "resid_mid"}
    if "resid_mid" in there and "attn_out" in there and not _close(got["resid_pre"] + got["attn_out"], got["resid_mid"]):
        broken.add("resid_mid")
    net.components -= broken


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a - b).abs() <= 2e-2 * b.abs().max().clamp_min(1e-6)).all())
