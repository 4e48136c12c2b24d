"""The directed graph that significant pathways form: chains, GraphML, JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import networkx as nx


#: edges that a graph file holds; weaker pathways are in the table
MOST = 50_000


def graph(table: pd.DataFrame, direction: str = "downstream") -> nx.DiGraph:
    """Return features as nodes (``layer``) and the strongest pathways as edges, one for each pair of features.

    Edges point from what was changed to what changed; upstream ones are turned round, so that they point with the layers.
    """
    import networkx as nx

    out = nx.DiGraph()
    order = table["hedges_g"].abs().fillna(0.0).sort_values(ascending=False, kind="stable").index[:MOST]
    columns = ["target", "target_layer", "feature", "feature_layer", "effect", "hedges_g", "q", "condition"]
    for a, layer_a, b, layer_b, effect, g, q, condition in table.loc[order, columns].itertuples(index=False):
        if direction == "upstream":
            a, layer_a, b, layer_b = b, layer_b, a, layer_a
        if a == b or out.has_edge(a, b):
            continue
        for name, layer in ((a, layer_a), (b, layer_b)):
            out.add_node(name, **({} if pd.isna(layer) else {"layer": int(layer)}))
        facts = {"effect": float(effect), "hedges_g": float(g), "q": float(q), "condition": str(condition)}
        out.add_edge(a, b, **{k: v for k, v in facts.items() if v == v})
    return out


def chains(graph: nx.DiGraph, count: int) -> pd.DataFrame:
    """Return the longest chains through rising layers: for each last feature the one whose weakest |g| is greatest.

    Columns: chain, length (pathways in it), weakest_g. Chains that are part of a listed one are left out.
    """
    columns = ["chain", "length", "weakest_g"]
    layer = {n: d.get("layer") for n, d in graph.nodes(data=True)}
    order = sorted((n for n in graph if layer[n] is not None), key=lambda n: (layer[n], n))
    best: dict[str, dict[int, tuple[float, tuple[str, ...]]]] = {n: {0: (float("inf"), (n,))} for n in order}
    for node in order:
        for before in sorted(graph.predecessors(node)):
            if layer[before] is None or layer[before] >= layer[node]:
                continue
            g = abs(graph.edges[before, node].get("hedges_g", 0.0))
            for length, (weakest, path) in best[before].items():
                found = (min(weakest, g), (*path, node))
                if found[0] > best[node].get(length + 1, (-1.0, ()))[0]:
                    best[node][length + 1] = found
    ranked = sorted(((length, w, path) for n in order for length, (w, path) in best[n].items() if length >= 2), key=lambda c: (-c[0], -c[1], c[2]))
    kept: list[tuple[int, float, tuple[str, ...]]] = []
    for found_chain in ranked:
        if len(kept) == count:
            break
        if not any(_within(found_chain[2], k[2]) for k in kept):
            kept.append(found_chain)
    return pd.DataFrame([(" → ".join(p), length, w) for length, w, p in kept], columns=columns)


def _within(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    """True when one path is a stretch of the other."""
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def files(graph: nx.DiGraph) -> dict[str, str]:
    """Return the graph as GraphML and as node-link JSON, by file name."""
    import networkx as nx

    data: dict[str, Any] = nx.node_link_data(graph, edges="edges")
    return {"graph.graphml": "\n".join(nx.generate_graphml(_clean(graph))) + "\n", "graph.json": json.dumps(data, indent=1, allow_nan=False) + "\n"}


def _clean(graph: nx.DiGraph) -> nx.DiGraph:
    """Return the graph with names that XML can hold."""
    import networkx as nx

    names = {n: "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in n) for n in graph}
    return nx.relabel_nodes(graph, names) if any(k != v for k, v in names.items()) else graph
