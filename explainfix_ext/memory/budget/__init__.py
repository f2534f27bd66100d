"""`memory_plan`: which way to train with less memory, and which batch, fit a card. It runs nothing.

fake        counts the bytes of a step on FakeTensors, which have shapes and no numbers.
arithmetic  budgets, and the largest batch within one.
plan        what users call.
"""

from .plan import MemoryPlan, memory_plan

__all__ = ["MemoryPlan", "memory_plan"]
