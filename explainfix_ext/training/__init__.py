"""The main job: train a network with fixed filters beside the same network learned. `explainfix train` runs it.

config (what a run is) -> data, models -> train (one network) -> runs (several, and a table of what each costs).
"""
