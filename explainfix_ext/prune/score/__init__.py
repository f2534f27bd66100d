"""Scores of filters, and which of them go."""
