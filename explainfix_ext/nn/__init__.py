"""FixedConv2d, the layer; which layers it can replace; what it stores and computes."""
