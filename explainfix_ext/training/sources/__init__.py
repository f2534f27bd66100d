"""Readers of image data: one function a kind of source."""
