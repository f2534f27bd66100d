"""Gives tests the networks that memory and pruning are measured on, from bench/networks; as bench_gpu.py does."""

import sys

from .paths import BENCH

if str(BENCH) not in sys.path:
    sys.path.append(str(BENCH))

from networks.memory import MEMORY_MODELS
from networks.prune import PRUNE_MODELS, randomise_norms

__all__ = ["MEMORY_MODELS", "PRUNE_MODELS", "randomise_norms"]
