"""This room defines the operators: schemas, derivatives, the pure-torch reference, and binaries that override it."""
