"""What MkDocs does besides: the site has files from outside of docs/, and loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "csrc/README.md", "bench/RESULTS.md", "bench/results/**/*.*")
LOADS = re.compile(r"""<(?:script|img|iframe)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//""")
IMPORTS = re.compile(r"""(?:@import\s*|url\()\s*["']?(?:https?:)?//""")


def on_files(files: Files, config: Any) -> Files:
    """Adds files of the repository under their own paths, so that links between them hold."""
    for path in (path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links out of docs/, written as they hold in the repository, into links of the site."""
    if page.file.generated_by:
        return markdown
    out = "../" * (page.file.src_uri.count("/") + 1)
    return markdown.replace(f"]({out}", "](" + out[3:])


def on_post_build(config: Any) -> None:
    """Fails if a page or style sheet loads anything from another site."""
    site = Path(config.site_dir)
    found = [str(f.relative_to(site)) for f in site.rglob("*.html") if LOADS.search(f.read_text())]
    found += [str(f.relative_to(site)) for f in site.rglob("*.css") if IMPORTS.search(f.read_text())]
    if found:
        raise PluginError(f"these load something from another site: {', '.join(found)}")
