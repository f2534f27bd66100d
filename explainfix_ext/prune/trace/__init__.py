"""This room turns a network into a graph of channels: which layers write each channel, and which read it."""
