"""save_memory: everything about the modules stays, and what is not understood is left alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.training_step import Block, check_same, check_saving, image, prepared, step
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.memory import modules, save_memory
from explainfix_ext.memory.count import saved_bytes
from explainfix_ext.memory.regions import Region
from explainfix_ext.memory.saver import Saving


def test_everything_about_the_modules_stays() -> None:
    model = prepared(Block())
    keys, parameters, kinds = list(model.state_dict()), list(model.parameters()), [type(m) for m in model.modules()]
    hook = model.stem[1].register_forward_hook(lambda *args: None)
    model.stem[1].eval()
    changes = save_memory(model, "recompute")
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(isinstance(m, kind) for m, kind in zip(model.modules(), kinds, strict=True))
    assert not model.stem[1].training
    assert len(model.stem[1]._forward_hooks) == 1
    assert "memory mode recompute" in str(changes)
    for same in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(copy.deepcopy(model).apply(lambda m: m._forward_hooks.clear()))),
    ):
        assert type(same.stem[1]) is type(model.stem[1])
    save_memory(model, "off")
    assert [type(m) for m in model.modules()] == kinds
    assert not any({"_saving", "__module__"} & vars(m).keys() for m in model.modules())
    hook.remove()


def test_reverted_layers_are_plain() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    with pytest.warns(UserWarning, match="little is left to learn"):
        efx.convert(model, "dct2", seed=0, memory="recompute")
    efx.revert(model)
    assert vars(model[0]).keys() == vars(nn.Conv2d(3, 8, 3)).keys()


def test_what_is_not_understood_is_left_and_listed() -> None:
    class Odd(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Odd(8), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).double()
    model[4].forward = model[4].forward
    changes = save_memory(model, "recompute")
    assert [(name, kind) for name, kind, _ in changes.left] == [("1", "Odd"), ("2", "InstanceNorm2d"), ("4", "Conv2d")]
    assert "its forward was replaced on the instance" in str(changes)
    del model[4].forward
    check_saving(nn.Sequential(*(copy.deepcopy(m) for m in model)), image(), "recompute")
    before = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match="memory mode must be one of off, exact, recompute, int8, got 'all'"):
        save_memory(model, "all")
    assert [type(m) for m in model.modules()] == before


def test_convert_takes_a_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match="memory mode"):
        efx.convert(model, memory="most")
    assert type(model[0]) is nn.Conv2d
    with pytest.warns(UserWarning, match="little is left to learn"):
        efx.convert(model, memory="exact")
    assert type(model[1]).__name__ == "MemoryBatchNorm2d"


def test_pickles_of_older_versions_find_what_they_name() -> None:
    """A pickled model holds Saving(mode, region), and a region its attributes and, in hooks, its methods by name."""
    assert modules.Saving is Saving
    assert Saving._fields == ("mode", "region")
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    save_memory(model, "recompute")
    region = Region.__new__(Region)
    region.__dict__.update(_root=model, _traced=[model], _depth=0)
    region._hooks = [
        model.register_forward_pre_hook(region._enter),
        model.register_forward_hook(region._leave, always_call=True),
    ]
    model[0].__dict__["_saving"] = Saving("recompute", region)
    del model[0].__dict__["__module__"]
    loaded = pickle.loads(pickle.dumps(model))
    check_same(step(copy.deepcopy(model), image(dtype=torch.float32)), step(loaded, image(dtype=torch.float32)))
    save_memory(loaded, "off")
    assert not loaded._forward_pre_hooks
    assert not loaded._forward_hooks


def test_a_pickled_model_saves_as_before() -> None:
    model = prepared(Block())
    plain = copy.deepcopy(model)
    save_memory(model, "recompute")
    loaded = pickle.loads(pickle.dumps(model))
    check_same(step(plain, image()), step(loaded, image()))
    assert type(loaded.wide[0]) is type(model.wide[0])


def test_nothing_runs_the_model() -> None:
    """Its forward may count calls, draw random numbers, or change buffers."""

    class Counting(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(x)

    calls: list[int] = []
    changes = save_memory(Counting(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), "recompute")
    assert [name for name, _ in changes.changed] == ["0", "1"]
    assert not calls


@pytest.mark.parametrize("layer", [nn.Identity(), nn.Flatten(), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1)])
def test_what_is_not_listed_keeps_nothing(layer: nn.Module) -> None:
    x = image(4, size=32).requires_grad_()
    assert not save_memory(nn.Sequential(layer)).left
    assert saved_bytes(layer, lambda net: net(x).sum()) == 0


def test_a_large_adaptive_pool_is_listed() -> None:
    """torch keeps the input of one whose output is not 1x1."""
    x, pool = image(4, size=32).requires_grad_(), nn.AdaptiveAvgPool2d(7)
    assert saved_bytes(pool, lambda net: net(x).sum()) == x.nbytes
    assert save_memory(nn.Sequential(pool)).left == [("0", "AdaptiveAvgPool2d", "keeps what torch keeps")]
