"""Holds networks with every kind of block: `memory.py` for measuring and for tests, `prune.py` for tests only."""
