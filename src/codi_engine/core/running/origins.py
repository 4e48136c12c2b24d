"""What computes a run: versions of the libraries, and the commit of the directory it was started in."""

from __future__ import annotations

import platform


def versions() -> dict[str, str]:
    """Return library → version."""
    import numpy
    import torch
    import transformers
    import zarr

    from codi_engine import __version__

    known = {"codi-engine": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return {**known, "transformers": transformers.__version__, "numpy": numpy.__version__, "zarr": zarr.__version__}


def git_commit() -> str | None:
    """Return the commit of the directory the run was started in, if it is one."""
    import subprocess

    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", errors="replace", timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
