"""Other libraries work on `plain(model)`, and fail on the converted model as docs/other_tools.md says.

zennit's silent failure is in tests/explain/test_relevance.py.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from support.compare import relative_error
from torch import Tensor, nn

import explainfix_ext as efx

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    net = nn.Sequential(nn.Sequential(*layers), nn.Flatten(), nn.Linear(8, 4)).eval()
    efx.convert(net, "dct2", seed=0)
    return net


def needed(name: str) -> Any:
    pytest.importorskip(name.partition(".")[0], reason='needs the extra "test"')
    return importlib.import_module(name)


def test_captum() -> None:
    attr = needed("captum.attr")
    net = network()
    with pytest.raises(TypeError, match="FixedConv2d.* has no rule defined"):
        attr.LRP(net[0]).attribute(X, target=(1, 0, 0))
    heat = attr.LRP(efx.plain(net)[0]).attribute(X, target=(1, 0, 0))
    assert heat.shape == X.shape
    for method in (attr.IntegratedGradients, attr.DeepLift):
        assert relative_error(method(net).attribute(X, target=1), method(efx.plain(net)).attribute(X, target=1)) < 1e-3


def test_torchinfo_and_fvcore_count() -> None:
    torchinfo, fvcore = needed("torchinfo"), needed("fvcore.nn")
    net = network()
    plain = efx.plain(net)
    filters = 8 * 3 * 9 + 8 * 8 * 9
    found = [torchinfo.summary(m, input_data=X, verbose=0) for m in (net, plain)]
    assert found[1].total_params - found[0].total_params == filters
    assert found[1].trainable_params == found[0].trainable_params
    work = [fvcore.FlopCountAnalysis(m, X[:1]).unsupported_ops_warnings(False).total() for m in (net, plain)]
    assert work[1] - work[0] == 14 * 14 * 8 * 27 + 12 * 12 * 8 * 72


def test_weightwatcher_reads_the_same_of_both() -> None:
    weightwatcher = needed("weightwatcher")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    efx.convert(model, "dct2", seed=0)
    ours, plain = (weightwatcher.WeightWatcher(model=m).analyze(min_evals=8) for m in (model, efx.plain(model)))
    assert len(plain) == 2
    assert plain["alpha"].tolist() == pytest.approx(ours["alpha"].tolist())


def test_torch_quantises_the_copy() -> None:
    fx, config = needed("torch.ao.quantization.quantize_fx"), needed("torch.ao.quantization")
    kinds = []
    for model in (network(), efx.plain(network())):
        prepared = fx.prepare_fx(model, config.get_default_qconfig_mapping("x86"), (X,))
        prepared(X)
        done = fx.convert_fx(prepared)
        kinds.append([type(m).__name__ for m in done.modules()])
        assert relative_error(done(X), model(X)) < 0.2
    assert "ConvReLU2d" not in kinds[0]
    assert kinds[1].count("ConvReLU2d") == 2


def test_what_is_compared_differs_if_a_filter_does() -> None:
    net = network()
    plain = efx.plain(net)
    with torch.no_grad():
        plain[0][0].weight[0, 0, 0, 0] += 1
    out: Tensor = plain(X)
    assert relative_error(out, net(X)) > 1e-3
