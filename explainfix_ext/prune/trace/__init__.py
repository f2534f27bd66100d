"""A network as a graph of channels: which layers write a channel, which read it."""
