"""Runs trained networks: `optimize_for_inference`."""
