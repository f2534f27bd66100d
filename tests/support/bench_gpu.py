"""Gives tests the folder bench/gpu. bench/ is not installed: it goes on the path here, last, as it has common names."""

import sys

from .paths import BENCH

if str(BENCH) not in sys.path:
    sys.path.append(str(BENCH))

from gpu import conv, device
from gpu.cases import CUDA_CASES
from gpu.ceilings import Ceilings, floors, measure_ceilings
from gpu.report import LAYER_HEAD, layer_cells, layer_report, rich_table, slug  # needs rich

__all__ = ["CUDA_CASES", "LAYER_HEAD", "Ceilings", "conv", "device", "floors", "layer_cells", "layer_report"]
__all__ += ["measure_ceilings", "rich_table", "slug"]
