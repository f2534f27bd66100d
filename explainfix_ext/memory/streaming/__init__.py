"""Training on images whose activations do not fit: `stream` runs a network's local layers tile by tile of the image.

A layer is local if its output at a place depends on the image around that place only: convolutions, pools with a
window, activations, and BatchNorm by its running statistics. The files, each of which builds on those before it:

    field       what a network reads of an image along an axis, and the tiles that follow from it.
    probe       runs strips of images through a traced network: which values are local, and their field.
    split       traces a network, and cuts it in two.
    search      finds the longest part that is local.
    tiles       runs that part by tiles, forward and backward.
    stream      what users call.
"""

from .stream import StreamReport, stream, unstream

__all__ = ["StreamReport", "stream", "unstream"]
