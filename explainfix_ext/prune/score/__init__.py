"""This room scores filters and channels, and chooses those with the lowest scores."""
