"""Runs trained networks faster: `optimize_for_inference`."""

from .optimize import Optimized as Optimized
from .optimize import optimize_for_inference as optimize_for_inference
