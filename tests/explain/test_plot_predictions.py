"""Pictures of predictions: bars are the probabilities, colours of masks say where both agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason='needs the extra "demo"')

from explainfix_ext.explain.plot_predictions import agreement, plot_masks, plot_predictions


def test_bars_are_probabilities_and_true_classes_are_dark() -> None:
    images, shares = torch.rand(5, 1, 6, 4), torch.rand(5, 3)
    targets = torch.tensor([[1.0, 0.0, math.nan]] * 5)
    figure = plot_predictions(images, shares, targets, ("cat", "dog", "cow"), per_row=2)
    panels = [axes for axes in figure.axes if axes.patches]
    assert len(panels) == 5
    for axes, share, image in zip(panels, shares, images, strict=True):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(share.tolist())
        assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "cow"]
        assert [bar.get_hatch() or "" for bar in axes.patches] == ["", "", "///"]
        assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor() == axes.patches[2].get_facecolor()
        drawn = figure.axes[figure.axes.index(axes) - 1].images[0].get_array()
        np.testing.assert_allclose(drawn, image[0])


def test_of_many_classes_the_likeliest_are_drawn() -> None:
    shares = torch.linspace(0, 1, 40)[None].flip(1)
    figure = plot_predictions(torch.rand(1, 3, 4, 4), shares, torch.zeros(1, 40), [str(k) for k in range(40)])
    axes = next(axes for axes in figure.axes if axes.patches)
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(k) for k in range(10)]


def test_signals_are_lines() -> None:
    signals = torch.randn(3, 2, 50)
    figure = plot_predictions(signals, torch.rand(3, 2), torch.zeros(3, 2), ("a", "b"))
    drawn = [axes for axes in figure.axes if axes.lines]
    assert len(drawn) == 3
    np.testing.assert_allclose([line.get_ydata() for line in drawn[1].lines], signals[1])


def test_masks_agree_where_both_are_foreground() -> None:
    share, mask = torch.tensor([[0.9, 0.9], [0.1, 0.1]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    colours = agreement(share, mask)
    flat = {tuple(colour) for colour in colours.reshape(-1, 3).tolist()}
    assert len(flat) == 4
    assert colours[1, 1].tolist() == [1, 1, 1]
    figure = plot_masks(torch.rand(3, 1, 2, 2), share.expand(3, 2, 2), mask.expand(3, 2, 2))
    assert sum(bool(axes.images) for axes in figure.axes) == 9
    np.testing.assert_allclose(figure.axes[2].images[0].get_array(), colours)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["both", "only true", "only predicted"]
