"""How results are compared: the relative norm of an error, and how much each dtype may have."""

import torch
from torch import nn

# Relative norm of the error that a correct convolution of each dtype may have against float64.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """|got - expected| / |expected|, in float64; absolute where expected is zero."""
    expected = expected.double()
    norm = expected.norm().item() or 1.0
    return (got.double() - expected).norm().item() / norm


def check_equals(conv: nn.Module, twin: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Checks a layer's output and input gradient against its plain twin's, in both modes; returns the twin's output."""
    for training in (True, False):
        conv.train(training)
        y, expected = conv(x), twin(x)
        assert relative_error(y, expected) <= TOLERANCE[x.dtype]
        grad = torch.randn_like(y)
        dx, want = (torch.autograd.grad(t, x, grad)[0] for t in (y, expected))
        assert relative_error(dx, want) <= TOLERANCE[x.dtype]
    with torch.no_grad():
        assert relative_error(conv(x), expected) <= TOLERANCE[x.dtype]
    return expected


# Where the derivative of an activation has a step, and what is not finite or leads to it.
SPECIAL = (torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3.0, -3.0, 2.99, -2.99, 6.0, 6.01, 1e30, -1e30, 100, -100)
