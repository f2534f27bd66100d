"""Figures show themselves in a notebook, whether or not matplotlib was set up for it."""

from __future__ import annotations

import pytest
import torch
from support.figures import words_of
from torch import nn

import explainfix_ext as efx

pytest.importorskip("matplotlib", reason='needs the extra "demo"')


def test_a_notebook_shows_what_reports_draw() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.randn(1, 3, 8, 8)
    memory = efx.memory_report(model, x).plot()
    pruned = efx.channelprune(model, x, amount=0.5, criterion="l1").plot()
    assert "MiB alive" in words_of(memory)
    assert "% of the spatial filters pruned by l1" in pruned.get_suptitle()
    for figure in (memory, pruned, efx.explainsteer(model).plot()):
        assert figure._repr_png_().startswith(b"\x89PNG")  # IPython asks for this method
