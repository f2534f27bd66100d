"""This module offers what a program needs to add an initialisation of its own: `register`, and the Layer it is for."""

from .filters.registry import Initializer, Layer, find_initializer, initializers, register

__all__ = ["Initializer", "Layer", "find_initializer", "initializers", "register"]
