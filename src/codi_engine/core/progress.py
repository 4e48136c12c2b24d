"""What a running experiment tells its surroundings; the silent default."""

from __future__ import annotations


class Progress:
    """Told of stages, of finished units of work, and of things worth a note. This one says nothing."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Begin a stage of ``total`` units (``cells``, ``prompts``)."""

    def advance(self, count: int) -> None:
        """Report that ``count`` more are committed."""

    def note(self, text: str) -> None:
        """Say something in passing."""

    def finish(self) -> None:
        """End the stage."""
