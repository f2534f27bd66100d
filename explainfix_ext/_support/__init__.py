"""Helpers that every room may use: text, files, timing, machine facts, walks over models. They import no other room."""
