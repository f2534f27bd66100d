"""The modules of the package whose docstrings have examples; the tests run them."""

from .paths import ROOT

PACKAGE = ROOT / "explainfix_ext"
# These examples read the files of a training run, so they are for the reader only.
NEED_A_RUN = {"commands.webpage.run", "training.checkpoint", "training.prune_checkpoint"}
MODULES = sorted(
    {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if ">>> " in path.read_text()
    }
    - NEED_A_RUN
)
