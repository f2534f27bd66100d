"""This module offers the pictures of spectra, filters and pruning; it needs matplotlib. Each is a matplotlib Figure."""

from .explain.plots import plot_e0, plot_filters, plot_spectra
from .prune.plots import plot_kept

__all__ = ["plot_e0", "plot_filters", "plot_kept", "plot_spectra"]
