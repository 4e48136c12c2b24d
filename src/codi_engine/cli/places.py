"""Arguments that name runs: directories, and URLs of runs at object stores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click

from codi_engine.store.connecting import is_url
from codi_engine.store.shown import elsewhere


class RunPlace(click.ParamType):  # type: ignore[type-arg]  # newer releases know which type is made
    """A run: other text stays as it is; a URL becomes the folder that stands for the run, brought up to date."""

    name = "run"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not is_url(value) or (ctx is not None and ctx.resilient_parsing):
            return value
        from codi_engine.store.mirror import place

        return str(place(value))


RUN = RunPlace()


@contextlib.contextmanager
def sending() -> Iterator[None]:
    """At the end of a command, send what it made of runs at object stores; most commands have to do with none."""
    failed = True
    try:
        yield
        failed = False
    finally:
        if elsewhere():
            from codi_engine.store.errors import StoreError
            from codi_engine.store.mirror import publish_all

            with contextlib.suppress(*[StoreError] if failed else []):  # the failure is what the user has to read
                publish_all()
