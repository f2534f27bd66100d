"""Networks made ready to run fast outside of training."""
