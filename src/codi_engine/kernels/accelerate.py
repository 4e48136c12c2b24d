"""How kernels are compiled: the one place that knows numba's options.

Kernels release the GIL and are serial; threads run beside each other over blocks. Division by zero gives infinity or NaN as
in numpy, contractions are allowed, reassociation is not (but where ``summing`` says so): a kernel's bits do not depend on the
machine's vector width.
``CODI_ENGINE_JIT=0`` runs them as plain Python, slowly, for debugging and coverage.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

ENABLED = os.environ.get("CODI_ENGINE_JIT", "1") != "0"


def jit(function: F) -> F:
    """Compile a kernel. A cached kernel must not call a jitted function of another file: numba would not notice its changes."""
    return _compile(function, {})


def summing(function: F) -> F:
    """Compile a helper whose sums may be made in any order, in many lanes: for arithmetic whose last bits are the machine's own anyway."""
    return _compile(function, {"fastmath": {"contract", "nsz", "reassoc"}})


def inline(function: F) -> F:
    """Compile a helper into the kernels of its own file."""
    return _compile(function, {"inline": "always"})


def _compile(function: F, options: dict[str, Any]) -> F:
    if not ENABLED:
        return _plain(function)
    import numba

    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}, **options}
    try:
        compiled: F = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no directory that can be written: compile afresh in every process
        compiled = numba.njit(**options)(function)
    return compiled


def _plain(function: F) -> F:
    """Return the function as it is, dividing by zero without a warning as the compiled one does."""
    import functools

    import numpy as np

    @functools.wraps(function)
    def quiet(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*arguments)

    return quiet  # type: ignore[return-value]
