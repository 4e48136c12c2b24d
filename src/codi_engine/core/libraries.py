"""Other libraries kept silent while they work for us: their logging, their warnings, and their bars where nobody wants to see them."""

from __future__ import annotations

import logging as python_logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module

from codi_engine.core.progress import bars_welcome

with warnings.catch_warnings():  # in a notebook without ipywidgets its import warns, whoever is the first to import it
    warnings.simplefilter("ignore")
    import_module("tqdm.auto")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' own logging and warnings while it loads, and its bars where nobody wants to see them."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    hub = python_logging.getLogger("huggingface_hub")
    hub_before = hub.level
    hub.setLevel(python_logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with nullcontext() if bars_welcome() else _without_bars():
                yield
    finally:
        logging.set_verbosity(before)
        hub.setLevel(hub_before)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Show no bars of transformers and the Hub meanwhile; what the user has set of them is put back."""
    from transformers.utils import logging

    shown, groups = logging.is_progress_bar_enabled(), import_module("huggingface_hub.utils.tqdm").progress_bar_states
    before = dict(groups)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
        groups.clear()
        groups.update(before)
