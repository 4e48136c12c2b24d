"""What the model plugins need of transformers: configuration, tokenizer, empty networks, devices."""

from __future__ import annotations

import copy
from pathlib import Path
from reprlib import repr as repr_of
from typing import Any

import torch
from torch import nn

from codi_engine.core.errors import UserError
from codi_engine.core.libraries import quiet
from codi_engine.core.model import ModelInfo
from codi_engine.core.rollout.devices import resolve_device as resolve_device
from codi_engine.core.runs.places import similar
from codi_engine.core.tensorfiles import check_folder, regular

#: files beside the weights that decide what a model computes and how its text is read
TEXTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
#: bytes of a configuration; and sizes far above those of any model
_LARGEST_CONFIG = 16 << 20
_LARGEST = {
    "num_hidden_layers": 1_000, "hidden_size": 1 << 20, "num_attention_heads": 1 << 16, "num_key_value_heads": 1 << 16, "head_dim": 1 << 16,
    "vocab_size": 1 << 27, "intermediate_size": 1 << 24, "max_position_embeddings": 1 << 30, "num_local_experts": 1 << 12, "num_experts": 1 << 12,
}  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


def find(name: str, where: str) -> str:
    """Return a local directory as a path, or a Hub id as it is.

    Raises
    ------
    UserError: a path that does not exist
    """
    path = Path(name).expanduser()
    if path.exists():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        hint = similar(path)
        raise UserError(f"{where}: no such file or directory: '{name}'{'; ' if hint else ''}{hint}")
    return name


def read_config(name: str, where: str, trusted: bool = False, **kwargs: Any) -> Any:
    """Read a model's configuration from a directory or the Hub; ``trusted``: the repository's own code may be run."""
    from transformers import AutoConfig

    place = find(name, where)
    file = Path(place) / "config.json"
    if Path(place).is_dir():
        if not file.is_file():
            raise UserError(f"{where}: '{name}' has no config.json; give the directory of a transformers model")
        check_folder(Path(place), where)
        if regular(file, where) > _LARGEST_CONFIG:
            raise UserError(f"{where}: '{file}' is larger than any configuration ({_LARGEST_CONFIG >> 20} MB)")
    with quiet():
        try:
            config = AutoConfig.from_pretrained(place, trust_remote_code=trusted, **kwargs)  # left out, transformers would ask on the terminal
        except Exception as error:  # the classes of configurations raise many types for values that are not theirs
            raise UserError(_own_code(name, where, error) or _not_found(name, place, where, error)) from None
    _check_sizes(config, name, where)
    return config


def _check_sizes(config: Any, name: str, where: str) -> None:
    """Refuse a model of sizes that none has: even without weights its modules would be made one by one."""
    for key, most in _LARGEST.items():
        value = getattr(config, key, None)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise UserError(f"{where}: '{name}': its config.json says {key}: {repr_of(value)}; it must be a whole number from 1 to {most:,}")
    missing = next((key for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size") if getattr(config, key, None) is None), None)
    if missing:
        raise UserError(f"{where}: '{name}': its config.json has no {missing}; give the directory of a causal language model")


def _not_found(name: str, place: str, where: str, error: Exception) -> str:
    if Path(place).exists():
        return f"{where}: '{name}' cannot be read: {_short(error)}"
    return f"{where}: '{name}' is neither a directory here nor reachable on the Hub: {_short(error)}"


def _own_code(name: str, where: str, error: Exception) -> str:
    """Say that a repository brings code of its own, where that is why it was not read; empty for other errors."""
    if "trust_remote_code" not in str(error) and "custom code" not in str(error):
        return ""
    return (
        f"{where}: '{name}' brings Python code of its own, which is not run.\n"
        "If you trust it: model: {plugin: causal_lm, trust_remote_code: true}; no other model plugin runs such code."
    )


def read_tokenizer(name: str, where: str, trusted: bool = False, **kwargs: Any) -> Any:
    """Read a tokenizer from a directory or the Hub; ``trusted``: the repository's own code may be run."""
    from transformers import AutoTokenizer

    place = find(name, where)
    if Path(place).is_dir():
        check_folder(Path(place), f"{where} (tokenizer)")
    with quiet():
        try:
            return AutoTokenizer.from_pretrained(place, trust_remote_code=trusted, **kwargs)
        except Exception as error:  # tokenizers raises bare Exception for files that are not its own
            at = f"{where} (tokenizer)"
            raise UserError(_own_code(name, at, error) or _not_found(name, place, at, error)) from None


def empty_network(config: Any) -> nn.Module:
    """Build a causal LM without memory for its parameters; buffers that no checkpoint holds are computed."""
    from transformers import AutoModelForCausalLM

    try:
        with quiet(), torch.device("meta"):
            trusted = type(config).__module__.startswith("transformers_modules")  # then its code was run by the user's wish already
            network: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
        for name, module in list(network.named_modules()):
            if name.rsplit(".", 1)[-1] == "rotary_emb":
                parent = network.get_submodule(name.rpartition(".")[0])
                parent.rotary_emb = type(module)(config=config)
    except Exception as error:  # every model's constructor raises its own types where its configuration contradicts itself
        raise UserError(f"model: its config.json does not describe a model that can be made: {type(error).__name__}: {_short(error)}") from None
    return network


def describe(config: Any, latents: int, dtype: str, device: str, extra_tokens: int = 0) -> ModelInfo:
    """Return the shape of a model from its configuration."""
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    vocabulary = int(config.vocab_size) + extra_tokens
    whole = copy.deepcopy(config)
    whole.vocab_size = vocabulary
    network = empty_network(whole)
    mlp = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    parameters = sum(p.numel() for p in network.parameters())
    return ModelInfo(
        family=str(config.model_type), layers=int(config.num_hidden_layers), width=int(config.hidden_size), heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads), head_dim=head_dim, mlp_width=int(mlp),
        vocab_size=vocabulary, latents=latents, max_positions=getattr(config, "max_position_embeddings", None),
        parameters=parameters, dtype=dtype, device=device,
    )  # fmt: skip


def stop_ids(config: Any, *more: Any) -> tuple[int, ...]:
    """Return the ids that end an answer: the configuration's (one or several) and others."""
    ids: dict[int, None] = {}
    for value in (*more, getattr(config, "eos_token_id", None)):
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, int):
                ids[item] = None
    return tuple(ids)


def cached(repository: str, name: str) -> str | None:
    """Return the local copy of one file of a Hub repository; None where there is none. Nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name)
    return found if isinstance(found, str) else None


def texts_of(name: str, revision: str | None = None, prefix: str = "") -> dict[str, Path]:
    """Return the configuration and tokenizer files of a directory, or of the local copy of a Hub repository."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(name).expanduser()
    if not folder.is_dir():
        config = try_to_load_from_cache(name, "config.json", revision=revision) if name.count("/") == 1 else None
        if not isinstance(config, str):
            return {}
        folder = Path(config).parent
    return {f"{prefix}{file}": folder / file for file in TEXTS if (folder / file).is_file()}


def download(repository: str, name: str) -> str | None:
    """Fetch one file of a Hub repository; None when the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        with quiet():
            return str(hf_hub_download(repository, name))
    except LocalEntryNotFoundError as error:
        raise UserError(f"model.checkpoint: '{repository}' is neither a directory here nor reachable on the Hub") from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"model.checkpoint: '{repository}' is neither a directory here nor on the Hub: {str(error).splitlines()[0][:120]}") from None
