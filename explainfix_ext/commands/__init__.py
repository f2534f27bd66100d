"""The commands of `explainfix`, one file each, and what their options and tables share."""
