"""Reads image data sets as their publishers lay them out; `training.data` calls `readers`, one function per kind."""
