"""This room follows the channels of models that torch.fx cannot trace, with the Torch-Pruning library."""
