"""The arithmetic floor: FLOPs that no correct method can avoid, of matrix products and attention; a multiply-add counts two.

Counted is what the asked numbers depend on and nothing else, once:

* every prompt's tokens through every layer, but of the last layer only what goes on: keys and values of a token that others attend to,
  query, attention and MLP of a token whose logits are asked (or whose state a latent, an answer or a captured code needs);
* of a cell only what its edit can change: tokens from the edited one on, in layers after the edited one, where the first such layer
  computes new queries, keys and values of the edited token alone, the others' being those of the unedited run;
* logits once per cell and place, with nothing where they are an unedited run's (an edit of the last layer);
* attention 4·width per layer, query and key that it may see.

Norms, activations, softmax, embeddings, copying and sampling count nothing, so that 100 % cannot be reached. ``lowered`` counts the
tokens at the beginning that clean and corrupted prompt have in common once as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from .models import LATENTS, Shape


def _attention(shape: Shape, first: int, last: int) -> int:
    """FLOPs of one layer's attention for the queries at ``first`` … ``last``−1 over all tokens up to each."""
    return 4 * shape.width * sum(range(first + 1, last + 1))


def _through(shape: Shape, first: int, last: int, ends: bool) -> int:
    """FLOPs of tokens ``first`` … ``last``−1 through all layers; ``ends``: of the last layer's outputs only the last token's is used."""
    count = last - first
    whole = count * (shape.keys + shape.rest) + _attention(shape, first, last)
    top = count * shape.keys + shape.rest + _attention(shape, last - 1, last) if ends else whole
    return (shape.layers - 1) * whole + top


def patching(shape: Shape, pairs: Sequence[tuple[int, int]], cells: Sequence[tuple[int, int, int]], lowered: bool = False) -> int:
    """Floor of workload A. ``pairs``: (tokens, tokens that both sides begin with); ``cells``: (layer, position from the end, pair)."""
    total = 0
    for tokens, common in pairs:
        total += 2 * (_through(shape, 0, tokens, True) + shape.head)
        if lowered:
            total -= _through(shape, 0, common, False)
    for layer, place, pair in cells:
        total += _patched(shape, layer, pairs[pair][0], -place)
    return total


def _patched(shape: Shape, layer: int, tokens: int, after: int) -> int:
    """FLOPs of one cell: the residual stream after ``layer`` is replaced at the ``after``-th token from the end."""
    above = shape.layers - 1 - layer
    if above == 0:
        return 0  # the last token's logits are the clean run's, another token's edit reaches nothing
    query = 2 * shape.width**2
    total = 0
    for number in range(above):
        fresh = 1 if number == 0 else after  # tokens whose residual differs on the way in
        out = 1 if number == above - 1 else after
        total += fresh * shape.keys + min(fresh, out) * query + out * (shape.rest - query)
        if number == 0 and out == 1 and after > 1:
            total -= query  # the last token's query is the unedited run's
        total += _attention(shape, tokens - out, tokens)
    return total + shape.head


def latents(shape: Shape, prompts: Sequence[int], cells: Sequence[tuple[int, int, int]], new: int) -> int:
    """Floor of workload B. ``prompts``: tokens of each; ``cells``: (edited step, donor, prompt); ``new``: tokens that are decoded."""
    project, last = 4 * shape.width**2, max(step for step, _, _ in cells)
    total = 0
    for tokens in prompts:
        total += _through(shape, 0, tokens, True) + last * project
        total += sum(_through(shape, tokens + k, tokens + k + 1, False) for k in range(last))
    for step, _, prompt in cells:
        begin, end = prompts[prompt] + step, prompts[prompt] + LATENTS
        total += _steps(shape, begin, end + new) + (LATENTS - 1 - step) * project + new * shape.head
    return total


def _steps(shape: Shape, first: int, last: int) -> int:
    """Tokens fed one after the other."""
    return shape.layers * ((last - first) * (shape.keys + shape.rest) + _attention(shape, first, last))


def sampled(shape: Shape, prompt: int, edited: int, texts: Sequence[tuple[int, Sequence[int]]], captured: int) -> int:
    """Floor of workload C, edit and capture included.

    Parameters
    ----------
    edited: the layer after which a feature is edited
    texts: (condition, tokens) of every cell; a beginning that texts of one condition share is counted once
    captured: codes that are read of every token from the prompt's last on, in all layers together
    """
    conditions = {condition for condition, _ in texts}
    total = _through(shape, 0, prompt - 1, False) - (prompt - 1) * shape.rest - _attention(shape, 0, prompt - 1)
    below, above = edited + 1, shape.layers - 1 - edited
    one = shape.keys + shape.rest + _attention(shape, prompt - 1, prompt)
    codes, edit = 2 * shape.width * captured, 4 * shape.width
    total += below * one + len(conditions) * (above * one + shape.head + codes + edit)
    longest = max(len(tokens) for _, tokens in texts)
    for length in range(1, longest + 1):
        rows = len({(condition, *tokens[:length]) for condition, tokens in texts if len(tokens) >= length})
        total += rows * (_steps(shape, prompt + length - 1, prompt + length) + codes + edit)
        total += rows * shape.head if length < longest else 0
    return total


def plain(shape: Shape, prompt: int, texts: Sequence[Sequence[int]]) -> int:
    """Floor of the same generation without edit and capture: the last token is read by nothing, a shared beginning is counted once."""
    longest = max(map(len, texts))
    total = _through(shape, 0, prompt, True) + shape.head
    for length in range(1, longest):
        rows = len({tuple(tokens[:length]) for tokens in texts})
        total += rows * (_steps(shape, prompt + length - 1, prompt + length) + shape.head)
    return total


__all__ = ["latents", "patching", "plain", "sampled"]
