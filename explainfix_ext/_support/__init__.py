"""Helpers of every room: text, files, timing, machine facts, walks over models. This room imports no other."""
