"""Public door: what a program needs to add an initialisation of its own."""

from .filters.registry import Initializer, Layer, find_initializer, initializers, register

__all__ = ["Initializer", "Layer", "find_initializer", "initializers", "register"]
