"""The web page that `explainfix explain` writes."""
