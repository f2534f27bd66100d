"""This room makes the filters of a layer: bases, initialisations, the FilterBank, and its bytes in a checkpoint."""
