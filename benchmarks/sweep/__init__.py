"""Sweeps of edits by codi-engine and by other ways of computing them: the same weights and cells, equal numbers first, then time.

A: 8 pairs of 60 tokens × layers × the last 5 positions, the clean prompt's residual stream put into the corrupted one; last logits.
B: 8 problems × 6 latent steps × 10 donors on a CODI model with random weights, 12 decoded tokens.
C: 30 trials × 6 conditions × 30 sampled tokens, one SAE feature set at every token and 4 × 500 codes captured.

    python -m benchmarks.sweep                       # GPT-2-small size: the tables of docs/benchmarks.md; about 20 minutes
    python -m benchmarks.sweep --size small          # a minute
    python -m benchmarks.sweep --memory              # peak memory
    python -m benchmarks.sweep --levers              # what each of the engine's own means gives
    python -m benchmarks.sweep --model llama --mixed # grouped heads and RoPE; prompts of 20 to 100 tokens

``pip install 'codi-engine[peers]'`` installs TransformerLens, nnsight and pyvene; those that are absent take no part in A.
Contenders run in turn in one process on one thread; medians of CPU seconds decide, because other processes do not change them much.
Slow ones run every n-th cell, their unedited runs whole, and are scaled: the table says so.
"""
