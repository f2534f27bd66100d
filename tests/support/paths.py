"""Where the project's folders are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC, BENCH = ROOT / "csrc", ROOT / "bench"
SHARED = ROOT.parent / "shared" / "data"  # real images, where a workplace has them
