"""Pictures of which filters pruning keeps."""

from __future__ import annotations

import pytest
import torch
from support.figures import words_of
from torch import nn

import explainfix_ext as efx
from explainfix_ext.prune import plots

pytest.importorskip("matplotlib", reason='needs the extra "demo"')


def test_picture_of_kept_filters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ConvTranspose2d(6, 4, 2)
    ).eval()
    model[0].weight.data[[2, 5]] *= 1e-3
    model[2].weight.data[0, :6] *= 1e-3
    x = torch.randn(1, 3, 12, 12)
    report = efx.channelprune(model, x, amount=12 / 72, criterion="l1")
    states = torch.zeros(8, 3), torch.zeros(6, 8)
    states[0][[2, 5]] = 2
    states[1][0, [0, 1, 3, 4]] = 1
    states[1][:, [2, 5]] = 2
    palette = torch.tensor(list(plots._STATES.values()))
    for figure in (plots.plot_kept(report), plots.plot_kept(report.plan, model)):
        words = words_of(figure)
        assert {"kept", "set to zero", "removed with its channel", "8 outputs", "3 inputs"} <= set(words)
        maps = [torch.from_numpy(axes.images[0].get_array().data) for axes in figure.axes]
        assert [axes.get_title() for axes in figure.axes] == [
            f"{name}\n{(s == 0).double().mean():.1%} kept" for name, s in zip("02", states, strict=True)
        ]
        assert all(torch.equal(m, palette[s.long()]) for m, s in zip(maps, states, strict=True))
    with pytest.raises(ValueError, match="model must be given with a plan"):
        plots.plot_kept(report.plan)
    with pytest.raises(ValueError, match="plan is of another model"):
        plots.plot_kept(report.plan, nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_picture_of_pruned_groups_counts_as_the_pruned_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1)).eval()
    report = efx.channelprune(model, torch.randn(1, 3, 12, 12), amount=0.5, criterion="l1", granularity="channel")
    figure = plots.plot_kept(report)
    for axes, name in zip(figure.axes, "02", strict=True):
        kept = (torch.from_numpy(axes.images[0].get_array().data) == torch.tensor(plots._STATES["kept"])).all(-1).sum()
        assert int(kept) == report.after[name].nonzero
