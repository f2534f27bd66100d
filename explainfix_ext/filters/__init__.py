"""The filters of a layer: bases, initialisations, the FilterBank that holds them, and its bytes in a checkpoint."""
