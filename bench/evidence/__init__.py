"""The parts of claims.py: jobs (what is trained and pruned), spectra and timing (what else is measured), tables and
pictures (what is made of it), page (all of it beside the paper's statements)."""
