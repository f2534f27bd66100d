"""Pictures of spectra and filters: what they show, and in which words."""

from __future__ import annotations

import pytest
import torch
from support.compare import relative_error
from support.explained import Shapes, batches, make
from support.figures import words_of
from torch import nn

import explainfix_ext as efx
from explainfix_ext.filters.bank import FilterBank

plots = pytest.importorskip("explainfix_ext.explain.plots", reason='needs the extra "demo"', exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore:.*little is left to learn")


def test_pictures_of_spectra_say_what_they_show() -> None:
    before, after = efx.explainsteer(make("learned", Shapes)), efx.explainsteer(make("dct2", Shapes), batches(2))
    figure = after.plot(before, names=("dct2", "learned"))
    words = words_of(figure)
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 10  # five kernel sizes, two sides
    assert sorted(axes.images[0].get_array().shape for axes in maps[::2]) == [(1, 4), (1, 5), (1, 9), (1, 12), (1, 25)]
    assert figure.axes[0].get_title() == "dct2\n|DCT coefficient| x |gradient|, with saliency"
    assert figure.axes[1].get_title() == "learned\nmean |DCT coefficient|, without saliency"
    assert words.count("DCT-II functions of 3x4 kernels, low to high frequency") == 2
    names = [[label.get_text() for label in axes.get_yticklabels()] for axes in maps]
    assert names == [
        [name] for name in ("row", "row", "even", "even", "square", "square", "wide", "wide", "deep", "deep")
    ]
    assert "share of the layer's energy, over that of a flat spectrum" in words
    icons = maps[0].child_axes[0]
    assert [len(icons.images), icons.get_xlim()] == [5, (-0.5, 4.5)]
    bars = plots.plot_e0(before)
    assert [axes.get_xlabel() for axes in bars.axes[:3]] == [f"% of e_0, {k} kernels" for k in ("2x2", "3x3", "5x5")]
    widths = [sum(bar.get_width() for bar in axes.patches) for axes in bars.axes[:3]]
    assert widths == pytest.approx([100, 100, 100])
    assert "sum of e_0" in " ".join(words_of(bars))
    with pytest.raises(ValueError, match="must have a layer with a square kernel"):
        plots.plot_e0(efx.explainsteer(nn.Conv2d(3, 4, (1, 3))))


def test_pictures_of_networks_that_differ_and_of_layers_without_energy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    model[0].weight.data.zero_()
    small, other = efx.explainsteer(model), efx.explainsteer(nn.Conv2d(3, 4, 3))
    figure = plots.plot_spectra(small, other)
    assert {"0", "1", "(model)"} <= set(words_of(figure))
    assert [axes.get_ylim() for axes in figure.axes[:2]] == [(1.5, -0.5)] * 2
    assert bool(torch.from_numpy(figure.axes[0].images[0].get_array().mask).any(1).tolist() == [True, False])
    words_of(plots.plot_e0(small, efx.explainsteer(make("learned", Shapes))))


def test_picture_of_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = efx.FixedConv2d(6, 4, (2, 3), seed=0, init="ghaar2_ms")
    weight = conv.weight.flatten(0, 1)
    monkeypatch.setattr(FilterBank, "weight", None)
    figure = plots.plot_filters(conv, count=8)
    tiles = torch.from_numpy(figure.axes[0].images[0].get_array().data)
    columns = (tiles.shape[1] + 1) // 4
    for k, place in enumerate([0, 3, 7, 10, 13, 16, 20, 23]):
        tile = tiles[k // columns * 3 :, k % columns * 4 :][:2, :3]
        assert relative_error(tile, weight[place]) < 1e-6
    assert "8 of 24 filters, 4x6x2x3, fixed: ghaar2_ms" in words_of(figure)
    fast = efx.FixedConv2d(6, 4, 3, seed=0, init="hadamard")
    assert "8 of 24 filters, 4x6x3x3, fixed: hadamard" in words_of(plots.plot_filters(fast, count=8))
    titles = [plots.plot_filters(m).axes[0].get_title() for m in (nn.Conv2d(3, 4, (1, 5)), make("frozen", Shapes).deep)]
    assert titles == ["12 of 12 filters, 4x3x1x5, learned", "6 of 6 filters, 6x1x5x5, frozen"]
    with pytest.raises(TypeError, match="conv must be a Conv2d or a Conv1d, got Linear"):
        plots.plot_filters(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        plots.plot_filters(conv, 0)
