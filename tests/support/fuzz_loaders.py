"""Every loader of files that come from elsewhere: small valid files, how they are made hostile, and how they are read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np

from tests.support import mutations

Tree = Mapping[str, bytes]
Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]
#: files that are read and may be refused, with these errors and no others
_BY_ENDING: dict[str, Mutation] = {
    ".safetensors": mutations.safetensors, ".npy": mutations.npy, ".npz": mutations.archive, ".pt": mutations.archive, ".pth": mutations.archive,
    ".bin": mutations.archive, ".json": mutations.json_text, ".jsonl": mutations.json_lines, ".csv": mutations.table_text,
}  # fmt: skip


@dataclass(frozen=True)
class Loader:
    """``seeds`` makes the valid trees (file → content), ``load`` reads a folder that holds one; ``inputs``: how many in the slow form.

    ``unread``: of the valid trees so many are refused by design."""

    name: str
    seeds: Callable[[Path], list[Tree]]
    load: Callable[[Path], None]
    inputs: int
    unread: int = 0
    change: Callable[[Random, Tree, Sequence[Tree]], Tree] | None = None

    def hostile(self, seed: int, trees: Sequence[Tree]) -> tuple[Tree, Tree]:
        """Return (the valid tree, the files of it that are changed) of a seed."""
        rng = Random(f"{self.name}:{seed}")
        tree = rng.choice(trees)
        return tree, (self.change or one_file)(rng, tree, trees)


def one_file(rng: Random, tree: Tree, trees: Sequence[Tree]) -> Tree:
    """Change one file of a tree."""
    name = rng.choice(sorted(tree))
    others = [content for other in trees for content in other.values() if len(content) < 1 << 20]
    return {name: _BY_ENDING.get(Path(name).suffix, mutations.raw)(rng, tree[name], others)}


def tree_of(folder: Path) -> Tree:
    """Return the files below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --------------------------------------------------------------------------------------------------------- model files


def _weights(home: Path) -> list[Tree]:
    import torch
    from safetensors.torch import save_file

    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros(2, dtype=torch.int64)}
    save_file(tensors, home / "w.safetensors", {"format": "pt"})
    return [{"model.safetensors": (home / "w.safetensors").read_bytes()}]


def _pickled(home: Path) -> list[Tree]:
    import torch

    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}
    linear = {"encoder.weight": torch.ones(6, 4), "encoder.bias": torch.ones(6), "decoder.weight": torch.ones(4, 6), "decoder.bias": torch.ones(4)}
    whole = {"model_state_dict": linear, "config": {"input_dim": 4, "latent_dim": 6, "k": 2, "layer": 3}, "metrics": [np.float64(0.5)]}
    trees: list[Tree] = []
    for value, new in ((tensors, True), (linear, True), (whole, True), (tensors, False)):
        out = io.BytesIO()
        torch.save(value, out, _use_new_zipfile_serialization=new)
        trees.append({"model.pt": out.getvalue()})
    return trees


def _load_weights(folder: Path) -> None:
    from codi_engine.plugins.models.weights import read_weights

    for tensor in read_weights(next(folder.glob("model.*")), "model.checkpoint").values():
        tensor.float().sum().item()


def _saes(home: Path) -> list[Tree]:
    from tests.support import saes
    from tests.support.saes import BASIC, HOOK, LINEAR, PLAIN, directory, drawn

    lens = {"architecture": "standard", "d_in": saes.D, "d_sae": saes.F, "apply_b_dec_to_input": True, "normalize_activations": "none", "hook_name": HOOK}
    topk = {**lens, "architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": True}
    directory(home / "lens", lens, drawn(**BASIC))
    directory(home / "topk", topk, drawn(**BASIC))
    directory(home / "jump", {**lens, "architecture": "jumprelu"}, drawn(**BASIC, threshold=(saes.F,)))
    directory(home / "sparsify", {"k": 5, "d_in": saes.D, "num_latents": saes.F}, drawn(encoder__weight=(saes.F, saes.D), encoder__bias=(saes.F,),
              W_dec=(saes.F, saes.D), b_dec=(saes.D,)), ("cfg.json", "sae.safetensors"))  # fmt: skip
    directory(home / "scope", PLAIN, drawn(**LINEAR), ("hyperparams.json", "checkpoints/final.safetensors"))
    directory(home / "r1", PLAIN, drawn(**LINEAR, log_jumprelu_threshold=(saes.F,)), ("config.json", "sae_weights.safetensors"))
    new = drawn(W_E=(saes.D, saes.F), b_E=(saes.F,), W_D=(saes.F, saes.D), b_D=(saes.D,), activation_function__log_jumprelu_threshold=(saes.F,))
    directory(home / "new", PLAIN, new, ("config.json", "sae_weights.safetensors"))
    trees = [tree_of(p) for p in sorted(home.iterdir())]
    for save in (np.savez, np.savez_compressed):
        out = io.BytesIO()
        save(out, **drawn(**BASIC, threshold=(saes.F,)))
        trees.append({"params.npz": out.getvalue()})
    return trees + [{"sae.pt": t["model.pt"]} for t in _pickled(home)[1:3]]


def _load_sae(folder: Path) -> None:
    import torch

    from tests.support.saes import store

    path = folder / "sae.pt" if (folder / "sae.pt").is_file() else folder
    here = store()
    sae = here.get(str(path))
    here.digest(str(path))
    sae.summary()
    sae.decode(sae.encode(torch.zeros(2, sae.width)), torch.zeros(2, sae.width))


def _vectors(home: Path) -> list[Tree]:
    import torch
    from safetensors.numpy import save_file

    vector = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(home / "v.npy", vector)
    np.savez(home / "v.npz", v=vector)
    np.savez_compressed(home / "w.npz", v=vector.astype(np.float16))
    save_file({"v": vector}, home / "v.safetensors")
    torch.save({"v": torch.from_numpy(vector)}, home / "v.pt")
    return [{p.name: p.read_bytes()} for p in sorted(home.iterdir()) if p.is_file()]


def _load_vector(folder: Path) -> None:
    from codi_engine.plugins.interventions.steer import read_vector

    read_vector(str(next(folder.iterdir()))).sum()


def _configs(home: Path) -> list[Tree]:
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 50, "n_positions": 32,
        "eos_token_id": 1,
    }  # fmt: skip
    llama = {
        "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 50,
        "max_position_embeddings": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "num_key_value_heads": 1, "eos_token_id": [1, 2],
    }  # fmt: skip
    return [{"config.json": json.dumps(c).encode()} for c in (config, llama)]


def _load_config(folder: Path) -> None:
    from codi_engine.plugins.models.causal_lm import CausalLM, CausalLMOptions

    CausalLM(CausalLMOptions(path=str(folder), device="cpu")).describe()


def _models(home: Path) -> list[Tree]:
    """A causal LM on disk, whole and in two pieces with an index."""
    from codi_engine.testing import tiny

    whole = tiny.tiny_causal_lm(home / "whole", "gpt2")
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(home / "cut", max_shard_size="40KB")
    pieces = {n: c for n, c in tree_of(whole).items() if not n.endswith(".safetensors")} | dict(tree_of(home / "cut"))
    return [tree_of(whole), pieces]


def _load_model(folder: Path) -> None:
    from codi_engine.plugins.models.causal_lm import CausalLM, CausalLMOptions

    CausalLM(CausalLMOptions(path=str(folder), device="cpu")).load()


# ------------------------------------------------------------------------------------------------------ arrays, records


def _arrays(home: Path) -> list[Tree]:
    import h5py
    import torch

    trees = _vectors(home)
    np.savez_compressed(home / "many.npz", states=np.zeros((3, 2, 4), np.float32), ids=np.array(["a", "bb", "c"]), kl=np.arange(3.0))
    np.save(home / "f.npy", np.asfortranarray(np.arange(24.0).reshape(3, 2, 4)))
    torch.save({"s": torch.ones(3, 4, dtype=torch.bfloat16), "labels": ["a", "b", "c"], "deep": {"x": [torch.ones(3), 1]}}, home / "deep.pt")
    for name, options in (("plain", {}), ("packed", {"chunks": (2, 4), "compression": "gzip", "shuffle": True, "fletcher32": True})):
        with h5py.File(home / f"{name}.h5", "w") as file:
            file.create_dataset("states", data=np.arange(12.0).reshape(3, 4), **options)
            file.create_dataset("g/kl", data=np.arange(3, dtype=np.int16))  # no texts: a damaged heap of texts can occupy the HDF5 library for ever
            file["link"] = h5py.SoftLink("/states")
            file["out"] = h5py.ExternalLink("/etc/passwd", "/")
    return trees + [{p.name: p.read_bytes()} for p in (home / n for n in ("many.npz", "f.npy", "deep.pt", "plain.h5", "packed.h5", "packed.h5"))]


def _load_arrays(folder: Path) -> None:
    from codi_engine.core.imports.foreign import headers, open_array

    path = next(folder.iterdir())
    for name, header in headers(path).items():
        if not header.problem and header.shape:
            array = open_array(path, name, header)
            try:
                array.take((np.arange(min(header.shape[0], 3))[::-1].copy(),))
                if array.header.shape[0] < 1000:
                    array.whole()
            finally:
                array.close()


_RECORDS = [{"example": i, "c": "ab"[i % 2], "x": i / 3, "v": [i, 2.5], "f": {"f1": 1.0, "f2": 2}, "t": f"tekst {i} é"} for i in range(4)]


def _records(home: Path) -> list[Tree]:
    csv = "example,c,x,t\n" + "".join(f'{i},{"ab"[i % 2]},{i / 3},"te, ""x"" {i}"\n' for i in range(4))
    lines = "".join(json.dumps(r) + "\n" for r in _RECORDS)
    whole = {"runs": _RECORDS, "name": "x"}
    return [{"r.jsonl": lines.encode()}, {"r.json": json.dumps(_RECORDS).encode()}, {"r.json": json.dumps(whole).encode()}, {"r.csv": csv.encode()}]


def _load_records(folder: Path) -> None:
    from codi_engine.core.imports.foreign_records import RecordFile, RecordPath, paths_in, typed

    file = RecordFile(next(folder.iterdir()))
    paths = [RecordPath(p) for p in ("x", "f.{key}", "{a}_{b}", "v", "runs.{n}.f.{key}")]
    found = list(file.scan())
    with file.path.open("rb") as stream:
        for record in found:
            paths_in(record.value)
            for path in paths:
                for _, value in path.find(record.value):
                    typed(value)
            if not file.single:
                file.read(stream, record.offset, record.length)


def _imports(home: Path) -> list[Tree]:
    arrays = {k: v for t in _arrays(home) for k, v in t.items() if k in ("many.npz", "plain.h5", "packed.h5", "v.safetensors")}
    return [{name: content} for name, content in arrays.items()] + [t for t in _records(home) if "r.csv" in t or "r.jsonl" in t]


_MAPS = {
    ".npz": ["activations/s=states[example ; step, width]", "metrics/kl=kl[example]", "example=ids"],
    ".h5": ["activations/s=states[example ; width]", "metrics/kl=g/kl[example]"],
    ".safetensors": ["activations/s=v[example ; width]"],
    ".jsonl": ["metrics/x=x", "activations/v=v", "text=t", "fields/f=f.f1", "condition=c", "example=example", "activations/f=f.{feature}"],
    ".csv": ["metrics/x=x", "text=t", "example=example"],
}


def _load_import(folder: Path) -> None:
    from codi_engine import open_run
    from codi_engine.core.imports.importing import import_files

    path = next(p for p in folder.iterdir() if p.is_file())
    done = import_files([path], _MAPS[path.suffix], output=folder / "run")
    _ = open_run(done.path).cells


def _pairs(home: Path) -> list[Tree]:
    sides = [{"question": f"Ann has {i} apples and buys 3. How many?", "answer": i + 3, "solution": f"{i}+3=<<{i}+3={i + 3}>>{i + 3}"} for i in range(2, 8)]
    pairs = [{"pair_id": f"p{i}", "clean": a, "corrupted": b, "review_status": "approved"} for i, (a, b) in enumerate(pairwise(sides))]
    flat = [{"pair_id": p["pair_id"], "variant": s, **p[s]} for p in pairs for s in ("clean", "corrupted")]  # type: ignore[dict-item]
    lines = ["".join(json.dumps(r) + "\n" for r in some).encode() for some in (pairs, flat, sides)]
    texts = [{"r.jsonl": text} for text in lines]
    return [*texts, {"r.json": json.dumps(pairs).encode()}, {"r.json": json.dumps({"pairs": flat}).encode()}]


def _load_pairs(folder: Path) -> None:
    from codi_engine.core.pairs.pair_checks import check_pairs

    check_pairs(str(next(folder.iterdir())))


def _data(home: Path) -> list[Tree]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"pair_id": f"p{i}", "question": f"Ann has {i} apples. How many?", "answer": float(i), "level": "ab"[i % 2]} for i in range(6)]
    trees = _pairs(home)
    for codec in ("none", "snappy", "zstd"):
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), out, compression=codec)
        trees.append({"r.parquet": out.getvalue()})
    return trees


def _load_data(folder: Path) -> None:
    from codi_engine.core.errors import UserError
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.returned import loaded

    path = next(folder.iterdir())
    refusals = []
    for name in ("pairs", "problems"):
        cls = next(r.cls for r in plugin_manager(load=False).registered if r.kind == "dataset" and r.name == name)
        try:
            loaded(cls(cls.Options(path=str(path))))  # type: ignore[call-arg, arg-type]
        except UserError as error:
            refusals.append(error)
    if len(refusals) == 2:
        raise refusals[0]


def _decisions(home: Path) -> list[Tree]:
    table = "pair_id,answer,decision,notes\n" + "".join(f"p{i},{i + 6},approve,x\n" for i in range(2, 5))
    return [{"d.csv": table.encode(), "pairs.jsonl": _pairs(home)[0]["r.jsonl"]}]


def _load_decisions(folder: Path) -> None:
    from codi_engine.core.pairs.pair_review import import_csv, open_for_review

    import_csv(open_for_review(folder / "pairs.jsonl"), folder / "d.csv")


def loaders() -> Iterator[Loader]:
    """Yield all loaders."""
    from tests.support.fuzz_runs import run_loaders

    yield Loader("weights", _weights, _load_weights, 12_000)
    yield Loader("weights-pt", lambda home: [t for i, t in enumerate(_pickled(home)) if i != 2], _load_weights, 6_000, 1)
    yield Loader("sae", _saes, _load_sae, 14_000)
    yield Loader("vector", _vectors, _load_vector, 14_000)
    yield Loader("import-arrays", _arrays, _load_arrays, 18_000)
    yield Loader("import-records", _records, _load_records, 8_000)
    yield Loader("import", _imports, _load_import, 1_500)
    yield Loader("pairs", _pairs, _load_pairs, 6_000)
    yield Loader("data", _data, _load_data, 6_000)
    yield Loader("decisions", _decisions, _load_decisions, 2_000)
    yield Loader("config", _configs, _load_config, 800)
    yield Loader("model", _models, _load_model, 300)
    yield from run_loaders()
