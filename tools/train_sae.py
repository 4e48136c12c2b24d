"""Train the small sparse autoencoders that ship with codi-engine's demo, one per layer, and write them out.

Example: ``python tools/train_sae.py --output src/codi_engine/plugins/demo``
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from demo_training.problems import Encoded, Encoder, training_problems
from demo_training.sae_data import choose_features, later_steps, model_states, write_features, write_prompts
from demo_training.sae_training import Autoencoder, SaeRecipe, train
from demo_training.training import Recipe
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from train_demo import HeldOut

from codi_engine.core.model import ModelAdapter
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.sae import SAE
from codi_engine.core.saestore import SaeStore
from codi_engine.plugins.models.causal_lm import CausalLM, CausalLMOptions


@dataclass(frozen=True)
class Plan:
    """What is trained on, and what is measured on."""

    problems: int = 5000
    mix: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    features_per_layer: int = 10


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the demo; sae/, prompts.jsonl and features.csv are written into it")
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--updates", type=int, default=SaeRecipe().updates)
    parser.add_argument("--k", type=int, default=SaeRecipe().k)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train, write, read back, measure, choose features."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    recipe, plan = SaeRecipe(seed=arguments.seed, updates=arguments.updates, k=arguments.k), Plan()
    held_out, encoder = HeldOut.draw(Recipe().seed), Encoder()
    lm = CausalLM(CausalLMOptions(path="demo", device="cpu")).load()
    seen = [encoder.problem(p) for p in training_problems(arguments.seed + 10, plan.problems, plan.mix, held_out.signatures())]
    states = model_states(lm, seen)
    print(f"{states[0].shape[0]:,} tokens of {len(seen):,} problems, {time.monotonic() - began:.0f} s")
    folder = arguments.output / "sae"
    for layer, inputs in enumerate(states):
        write(folder / f"layer_{layer}", train(inputs, recipe, layer), layer)
        print(f"layer {layer} trained, {time.monotonic() - began:.0f} s")
    seconds = time.process_time()
    saes = [SaeStore(plugin_manager(load=False), "cpu").get(str(folder / "layer_{layer}"), layer, width=states[0].shape[1]) for layer in range(len(states))]
    measured = [encoder.problem(p) for p in held_out.test]
    layers = {str(layer): measure(lm, sae, layer, measured, states[layer]) for layer, sae in enumerate(saes)}
    write_prompts(arguments.output / "prompts.jsonl", held_out.validation)
    chosen = choose_features(lm, saes, later_steps(held_out.validation), encoder, plan.features_per_layer)
    write_features(arguments.output / "features.csv", chosen)
    card = {
        "summary": "JumpReLU autoencoders of the demo model's residual stream after every block, on questions and written steps.",
        "width": saes[0].width,
        "features": saes[0].features,
        "training": {**asdict(recipe), "problems": plan.problems, "tokens": states[0].shape[0], "minutes_of_cpu_time": round(seconds / 60, 1)},
        "measured_on": f"the {len(measured)} problems of problems.jsonl, which are not in the training set; question, written steps and answer",
        "layers": layers,
        "bytes": {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*.*")) if p.name != "card.json"},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    for layer, numbers in layers.items():
        print(layer, "  ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
    print(f"all in {time.monotonic() - began:.0f} s")


def write(folder: Path, autoencoder: Autoencoder, layer: int) -> None:
    """Write an autoencoder as SAELens 6 does; weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "d_in": autoencoder.encoder.shape[0],
        "d_sae": autoencoder.encoder.shape[1],
        "dtype": "float32",
        "architecture": "jumprelu",
        "normalize_activations": "none",
        "apply_b_dec_to_input": False,
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", "model_name": "codi-engine demo", "hook_name": f"blocks.{layer}.hook_resid_post"},
    }
    (folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    names = {"W_enc": "encoder", "b_enc": "encoder_bias", "W_dec": "decoder", "b_dec": "decoder_bias", "threshold": "threshold"}
    tensors = {name: getattr(autoencoder, field).to(torch.bfloat16).contiguous() for name, field in names.items()}
    save_file(tensors, folder / "sae_weights.safetensors", metadata={"format": "pt"})


def measure(lm: ModelAdapter, sae: SAE, layer: int, problems: list[Encoded], trained: Tensor) -> dict[str, float]:
    """Return explained variance and L0 on held-out states, dead features on the training's, and what splicing costs."""
    states = model_states(lm, problems)[layer]
    codes = sae.encode(states)
    error = (sae.decode(codes) - states).square().sum()
    total = (states - states.mean(0)).square().sum()
    fired = torch.zeros(sae.features, dtype=torch.bool)
    for part in trained.split(65536):
        fired |= (sae.encode(part) != 0).any(0)
    clean = cross_entropy(lm, problems)
    spliced = cross_entropy(lm, problems, layer, sae.reconstruct)
    mean = states.mean(0)
    ablated = cross_entropy(lm, problems, layer, lambda h: mean.expand_as(h))
    return {
        "explained_variance": round(float(1 - error / total), 4),
        "l0": round(float((codes != 0).sum(1).float().mean()), 2),
        "dead_features": int((~fired).sum()),
        "cross_entropy": round(clean, 4),
        "cross_entropy_spliced": round(spliced, 4),
        "cross_entropy_mean_ablated": round(ablated, 4),
        "cross_entropy_recovered": round((ablated - spliced) / (ablated - clean), 4),
    }


@torch.no_grad()
def cross_entropy(lm: ModelAdapter, problems: list[Encoded], layer: int | None = None, edit: Any = None) -> float:
    """Return the mean cross-entropy (nats per token) of written steps and answer, with the states after a block replaced."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        hidden = output if isinstance(output, Tensor) else output[0]
        new = edit(hidden.reshape(-1, hidden.shape[-1])).view_as(hidden)
        return new if isinstance(output, Tensor) else (new, *output[1:])

    handle = lm.network.transformer.h[layer].register_forward_hook(hook) if layer is not None else None
    total, count = 0.0, 0
    for problem in problems:
        ids = torch.tensor([[*problem.prompt, *problem.solution, problem.answer]])
        logits = lm.network(ids).logits[0, len(problem.prompt) - 1 : -1]
        total += float(F.cross_entropy(logits, ids[0, len(problem.prompt) :], reduction="sum"))
        count += logits.shape[0]
    if handle is not None:
        handle.remove()
    return total / count


if __name__ == "__main__":
    main()
