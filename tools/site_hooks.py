"""What the site needs beyond docs/: the changelog and the examples as pages, and links that lead out of docs/.

The pages link to ``../examples/…`` and ``../CHANGELOG.md`` as they lie in the repository, so that they work there too. On the site
the files are copied beside the pages, and the links are shortened to match.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = "examples"
_LINK = re.compile(r"\]\(((?:\.\./)+)([\w./-]*)(#[\w-]+)?\)")
_BUILT = {"CHANGELOG.md": "changelog.md", "README.md": "index.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the changelog, every example file as it is, and one page that shows them."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "changelog.md", content=(ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    found = sorted(p for p in (ROOT / EXAMPLES).rglob("*") if p.suffix in (".yaml", ".toml", ".py") and "tests" not in p.parts)
    for path in found:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), content=path.read_bytes()))
    files.append(File.generated(config, f"{EXAMPLES}/index.md", content=_examples(sorted((ROOT / EXAMPLES).glob("*.yaml")))))
    for path in sorted((ROOT / EXAMPLES).glob("plugins/*/README.md")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), content=path.read_text(encoding="utf-8")))
    return files


def _examples(paths: list[Path]) -> str:
    shown = "\n\n".join(f"## {p.stem}\n\n```yaml\n{p.read_text(encoding='utf-8').rstrip()}\n```" for p in paths)
    return f"# Examples\n\nExperiment files that run on the demo model as they are (`recorded` after `extract-latents`, whose states it puts in); [the studies](../studies/README.md) show what they find.\n\n{shown}\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite links that leave docs/: what is on the site too is linked there, the rest is shown as a path of the repository."""
    here = posixpath.dirname(page.file.src_uri)
    if here.startswith(f"{EXAMPLES}/"):
        return re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)", r"\1", markdown)  # a package's own page: its files are not on the site
    return _LINK.sub(lambda m: _target(m, here, files), markdown)


def _target(found: re.Match[str], here: str, files: Any) -> str:
    up, path, anchor = found[1], found[2], found[3] or ""
    depth = 0 if not here else here.count("/") + 1
    if up.count("../") <= depth or here == EXAMPLES:
        return found[0]
    path = _BUILT.get(path, path)
    if path.rstrip("/") == EXAMPLES:
        path = f"{EXAMPLES}/index.md"
    if path.endswith("/"):
        path += "README.md"
    if files.get_file_from_path(path) is None:
        raise ValueError(f"{here or 'docs'}: the link to {found[1]}{found[2]} leads to nothing that the site has")
    return f"]({posixpath.relpath(path, here or '.')}{anchor})"
