"""Writes the trained demo in the reference's layout: checkpoint, base config, tokenizer and data."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config

from demo_training.model import CodiModel, ModelSize
from demo_training.problems import EOS, MAX_STEPS, TOKEN_PATTERN, UNK, Problem, vocabulary

RANK = 128
ALPHA = 32
PREFIX = "codi.base_model.model."
ADAPTED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
PROJECTION_NAMES = {"first": "1", "second": "3", "ln": "ln"}


def low_rank(delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return LoRA's A (r x in) and B (out x r) with ``alpha / r * B @ A`` equal to ``delta`` transposed.

    ``delta`` is inputs by outputs. It is exact, since one side of every matrix is no larger than r.
    """
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    root = (values / (ALPHA / RANK)).sqrt()
    rank = values.shape[0]
    factor_a = torch.zeros(RANK, delta.shape[0], dtype=torch.double)
    factor_b = torch.zeros(delta.shape[1], RANK, dtype=torch.double)
    factor_a[:rank] = root[:, None] * left.T
    factor_b[:, :rank] = right.T * root
    return factor_a.float(), factor_b.float()


def reference_state(model: CodiModel, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the reference's names.

    The matrices are split into those of the end of the base stage, in bf16, and the LoRA difference
    that the joint stage made. All other parameters are the final ones, in fp32.
    """
    weights = {name: p.detach().float().contiguous() for name, p in model.named_parameters()}
    out = {PREFIX + "transformer.wpe.weight": weights["wpe"], PREFIX + "lm_head.weight": weights["wte"]}
    for name, value in weights.items():
        parts = name.split(".")
        if parts[0] == "prj":
            out[".".join(("prj", PROJECTION_NAMES[parts[1]], parts[2]))] = value
        elif parts[0] == "ln_f":
            out[PREFIX + "transformer." + name] = value
        elif parts[0] == "blocks":
            layer = ".".join(parts[2:-1])
            stem = f"{PREFIX}transformer.h.{parts[1]}.{layer}"
            if layer not in ADAPTED:
                out[f"{stem}.{parts[-1]}"] = value
            elif parts[-1] == "bias":
                out[f"{stem}.base_layer.bias"] = value
            else:
                frozen = base[name].to(torch.bfloat16)
                factor_a, factor_b = low_rank(value - frozen.float())
                out[f"{stem}.base_layer.weight"] = frozen.contiguous()
                out[f"{stem}.lora_A.default.weight"] = factor_a
                out[f"{stem}.lora_B.default.weight"] = factor_b
    return {name: value.contiguous() for name, value in out.items()}


def write_checkpoint(folder: Path, model: CodiModel, base: dict[str, Tensor]) -> None:
    """Write ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(reference_state(model, base), folder / "model.safetensors", metadata={"format": "pt"})


def write_base(folder: Path, size: ModelSize) -> None:
    """Write the config and the tokenizer of the base model; there are no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    words = vocabulary()
    eos = words.index(EOS)
    config = GPT2Config(
        vocab_size=size.vocab,
        n_positions=size.positions,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=eos,
        eos_token_id=eos,
        architectures=["GPT2LMHeadModel"],
    )
    (folder / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    build_tokenizer(words).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "unk_token": UNK,
        "model_max_length": size.positions,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)


def build_tokenizer(words: list[str]) -> Tokenizer:
    """Return a word-level tokenizer with one token per number, whose decoder sets natural spaces."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TOKEN_PATTERN), "isolated"),
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<=[-+*/=<$(]) | (?=[-+*/=>.:;,?!%)]|'s)"), ""),
        ]
    )
    tokenizer.add_special_tokens([EOS, UNK])
    return tokenizer


def problem_record(problem: Problem) -> dict[str, object]:
    """Return question, answer and number of steps."""
    return {
        "question": problem.question(),
        "answer": problem.answer(),
        "reasoning_steps": len(problem.steps),
    }


def write_problems(path: Path, problems: list[Problem]) -> None:
    """Write the held-out problems, the numbers of steps in turn."""
    groups = [[p for p in problems if len(p.steps) == steps] for steps in range(1, MAX_STEPS + 1)]
    mixed = [problem for turn in zip(*groups, strict=True) for problem in turn]
    write_lines(
        path,
        [{"id": f"demo-{index:04d}", **problem_record(problem), "steps": problem.written_steps()} for index, problem in enumerate(mixed, start=1)],
    )


def write_pairs(path: Path, pairs: list[tuple[Problem, Problem, str]], both: list[bool]) -> None:
    """Write the clean and corrupted pairs; ``both`` says where the model gets both sides right."""
    write_lines(
        path,
        [
            {
                "pair_id": index,
                "clean": problem_record(clean),
                "corrupted": {**problem_record(corrupted), "changed_number": change},
                "both_correct": right,
            }
            for index, ((clean, corrupted, change), right) in enumerate(zip(pairs, both, strict=True))
        ],
    )


def write_lines(path: Path, records: list[dict[str, object]]) -> None:
    """Write records as lines of JSON."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_json(path: Path, record: dict[str, object]) -> None:
    """Write a record as indented JSON."""
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
