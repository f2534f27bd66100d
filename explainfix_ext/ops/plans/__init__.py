"""Plans: which kernel runs a bank, and the bank laid out as that kernel reads it."""
