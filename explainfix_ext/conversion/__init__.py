"""convert: whole models with fixed spatial filters."""
