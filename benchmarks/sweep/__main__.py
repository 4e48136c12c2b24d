"""The command: ``python -m benchmarks.sweep``."""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched: models are made from configurations

from .command import main

if __name__ == "__main__":
    main()
