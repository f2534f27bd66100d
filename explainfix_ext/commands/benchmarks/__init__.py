"""Measures our convolutions beside torch's on this CPU, as layers and in networks; `commands/bench.py` calls it.

isa (instruction set) -> cases (what is measured) -> jobs (each case by direction and threads) -> conv, models (how one
is checked, and timed by _support.timing), beside peaks (what this CPU can do at best) -> report, picture. bench/gpu
measures the same kind of cases on GPUs.
"""
