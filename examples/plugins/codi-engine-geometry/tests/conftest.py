"""The package as it is after `pip install`."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator

import pytest

PACKAGE = "codi-engine-geometry"


@pytest.fixture(scope="module", autouse=True)
def discovered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leave an entry point on sys.path as an installer does, where the package is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CODI_ENGINE_PLUGINS", raising=False)
        if not any(e.dist is not None and e.dist.name == PACKAGE for e in importlib.metadata.entry_points(group="codi_engine")):
            info = tmp_path_factory.mktemp("site") / "codi_engine_geometry-0.1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1.0\n", encoding="utf-8")
            (info / "entry_points.txt").write_text("[codi_engine]\ngeometry = codi_engine_geometry\n", encoding="utf-8")
            patch.setattr(sys, "path", [*sys.path, str(info.parent)])
        yield
