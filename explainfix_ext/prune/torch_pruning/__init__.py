"""This room follows the channels of models that can be neither traced nor recorded, with the Torch-Pruning library."""
