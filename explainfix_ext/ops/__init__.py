"""The operators: schemas, derivatives, the pure-torch reference, and the binaries that override it."""
