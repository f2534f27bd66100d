"""Holds the networks that memory (`memory.py`) and pruning (`prune.py`) are measured and tested on."""
