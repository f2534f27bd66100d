"""The modules of the package whose docstrings have examples; the tests run them all."""

from .paths import ROOT

PACKAGE = ROOT / "explainfix_ext"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
)
