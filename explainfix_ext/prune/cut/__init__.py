"""This room decides which channels can go, writes that down as a plan, and cuts the weights."""
