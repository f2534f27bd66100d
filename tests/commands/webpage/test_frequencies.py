"""Where a network looks, by image and frequency: which images, the floors, and sentences that are what numbers say."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')
pytest.importorskip("safetensors", reason='needs the extra "demo"')

from support.page import check_structure, explained_by_name
from torch import Tensor
from torch.utils.data import TensorDataset

import explainfix_ext as efx
from explainfix_ext.commands.webpage.findings import findings
from explainfix_ext.commands.webpage.frequencies import BATCH, Frequencies, _chosen, _shuffled, find_frequencies
from explainfix_ext.commands.webpage.page import report_page
from explainfix_ext.training.data import Dataset

pytestmark = pytest.mark.filterwarnings("error:constrained_layout")
BANDS = ("constant", "low", "high")


def dataset(task: str, targets: Tensor, classes: int, labels: tuple[str, ...] = ()) -> Dataset:
    images = torch.arange(len(targets)).float()[:, None, None, None].expand(-1, 1, 4, 4)
    part = TensorDataset(images, targets)
    return Dataset("hand-made", task, classes, 1, part, part, part, (0.0,), (1.0,), labels)  # type: ignore[arg-type]


def sentences(found: object) -> list[str]:
    return [line for line in findings(found) if "evidence about" in line or "Between the classes" in line]  # type: ignore


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"(?<![\w.])(\d+\.\d)(?=%| points|:)", text)]


def test_the_numbers_are_those_of_frequency_relevance(binary) -> None:
    found, data = binary.frequencies, binary.subject.images
    images, targets = data.test.tensors  # 30, of two classes in turn; each class has fewer than 32
    signs = 2 * targets - 1
    network = binary.subject.network
    bits = efx.frequency_relevance(network, images[:BATCH], signs[:BATCH]).bits
    assert found.bits == pytest.approx(bits)
    assert found.layer == max(bits, key=bits.__getitem__)
    whole = efx.frequency_relevance(network, images, signs, found.layer)
    for band in BANDS:
        assert torch.allclose(found.shares[band], whole.share[band], atol=1e-4)
        assert torch.allclose(found.maps[band], whole.map[band], atol=1e-4)
    assert found.classes.tolist() == targets.flatten().tolist()
    assert found.names == ("class 0", "class 1")
    shuffled = efx.frequency_relevance(network, _shuffled(images), signs, found.layer)
    assert torch.allclose(found.shuffled["low"], shuffled.share["low"], atol=1e-4)


def test_both_sentences_say_what_the_numbers_are(binary) -> None:
    found = binary.frequencies
    evidence, between = sentences(binary)
    now, floor = ([100 * float(side[band].mean()) for band in BANDS] for side in (found.shares, found.shuffled))
    change = {band: a - b for band, a, b in zip(BANDS, now, floor, strict=True)}
    said = numbers(evidence)
    assert said[:6] == pytest.approx([*now, *floor], abs=0.051)
    assert evidence.startswith(f"In {found.layer} the constant has ")
    assert "(30 test images); on the same images with shuffled pixels" in evidence
    error = {b: float((found.shares[b] - found.shuffled[b]).std()) / 30**0.5 * 100 for b in BANDS}
    sure = {band: d for band, d in change.items() if abs(d) > 2 * error[band]}
    if sure:
        most = max(sure, key=lambda band: abs(sure[band]))
        assert said[6] == pytest.approx(abs(sure[most]), abs=0.051)
        verb = f"{'adds' if sure[most] > 0 else 'takes'} {said[6]} points {'to' if sure[most] > 0 else 'from'} "
        assert evidence.endswith(f"{verb}{'the constant' if most == 'constant' else f'{most} frequencies'}.")
    else:
        assert evidence.endswith("changes none of them by two standard errors.")
    means = [[float(found.shares[b][found.classes == k].mean()) for k in (0, 1)] for b in BANDS]
    largest = 100 * max(abs(a - b) for a, b in means)
    assert numbers(between)[0] == pytest.approx(largest, abs=0.051)
    assert numbers(between)[1] == pytest.approx(100 * found.floor, abs=0.051)
    assert ("do not differ" in between) == (found.difference <= found.floor)


def made(low: Tensor, shuffled: Tensor, classes: Tensor) -> Frequencies:
    """Shares that are known: the rest is of high frequency."""
    zeros = torch.zeros(len(low), 4, 4)
    shares = {"constant": 0 * low, "low": low, "high": 1 - low}
    others = {"constant": 0 * low, "low": shuffled, "high": 1 - shuffled}
    names = tuple(f"class {k}" for k in range(int(classes.max()) + 1))
    return Frequencies("conv", {"conv": 0.5}, classes, names, zeros, dict.fromkeys(shares, zeros), shares, others)


def test_what_is_no_more_than_chance_is_called_so(binary) -> None:
    classes = torch.arange(40) % 2
    noise = 0.05 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    noise = noise - noise.mean()
    with_classes = 0.5 + 0.2 * classes + noise
    found = made(with_classes, with_classes - 0.1 + noise.flip(0), classes)
    assert found.gain("low") == (pytest.approx(0.1, abs=1e-6), True)
    assert found.floor < 0.09 < found.difference
    evidence, between = sentences(dataclasses.replace(binary, frequencies=found))
    assert "adds 10.0 points to low frequencies" in evidence or "takes 10.0 points from high frequencies" in evidence
    assert between.endswith("the classes differ in frequency there.")
    found = made(0.5 + noise, 0.5 + noise.flip(0), classes)
    evidence, between = sentences(dataclasses.replace(binary, frequencies=found))
    assert evidence.endswith("the structure of images changes none of them by two standard errors.")
    assert between.endswith("the classes do not differ in frequency there.") == (found.difference <= found.floor)
    one = made(0.5 + noise, 0.5 + noise.flip(0), 0 * classes)
    assert len(sentences(dataclasses.replace(binary, frequencies=one))) == 1


def test_the_floor_of_permuted_classes_is_rarely_exceeded_by_chance() -> None:
    g = torch.Generator().manual_seed(1)
    classes, hits = torch.arange(30) % 3, 0
    for _ in range(40):
        found = made(torch.rand(30, generator=g), torch.rand(30, generator=g), classes)
        hits += found.difference > found.floor
    assert hits <= 6  # 5 % of 40 is 2; more than 6 has a chance below 1 %


def test_images_of_each_class_are_chosen_in_turn() -> None:
    x, target, classes, names = _chosen(dataset("multiclass", torch.tensor([2, 2, 0, 0, 2, 2]), 4))
    assert x[:, 0, 0, 0].tolist() == [2, 0, 3, 1, 4, 5]
    assert target.tolist() == [0, 2, 0, 2, 2, 2]
    assert (classes.tolist(), names) == ([0, 1, 0, 1, 1, 1], ("class 0", "class 2"))
    x, target, classes, names = _chosen(dataset("binary", torch.tensor([[1.0], [0.0], [1.0]]), 2))
    assert target.tolist() == [[-1.0], [1.0], [1.0]], "one logit: its negative speaks for class 0"
    many = torch.tensor([[0.0, 1.0, float("nan")], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    x, target, classes, names = _chosen(dataset("multilabel", many, 3, ("a", "b", "c")))
    assert names == ("b", "c")
    assert x[:, 0, 0, 0].tolist() == [0, 1, 1]
    assert target.tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]
    masks = torch.zeros(3, 1, 4, 4)
    masks[1, 0, 2, 2] = 1
    x, target, classes, names = _chosen(dataset("segmentation", masks, 1))
    assert (x[:, 0, 0, 0].tolist(), names) == ([1], ("foreground",))
    assert torch.equal(target, masks[1:2])
    with pytest.raises(ValueError, match="no test image has a class"):
        _chosen(dataset("segmentation", 0 * masks, 1))
    x, *_, names = _chosen(dataset("multiclass", torch.arange(300) % 12, 12))
    assert (len(x), len(names)) == (60, 10)


def test_shuffled_images_have_the_same_pixels_of_all_channels() -> None:
    x = torch.randn(3, 2, 5, 7)
    y = _shuffled(x)
    assert not torch.equal(x, y)
    pairs = [sorted(map(tuple, image.flatten(1).T.tolist())) for image in (x[0], y[0])]
    assert pairs[0] == pairs[1]
    assert torch.equal(y, _shuffled(x))


def test_images_in_which_a_layer_adds_nothing_are_left_out(binary) -> None:
    class Dark(torch.nn.Module):
        """Sees nothing in every second image: those whose first pixel is negative."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3))) * (x.amax((1, 2, 3)) > 1.5)[:, None]

    torch.manual_seed(0)
    images = torch.rand(8, 1, 6, 6)
    images[::2] += 1
    part = TensorDataset(images, torch.tensor([0.0, 1.0] * 2 + [1.0, 0.0] * 2)[:, None])
    data = dataclasses.replace(dataset("binary", part.tensors[1], 2), test=part)
    steps: list[int] = []
    found = find_frequencies(Dark(), data, torch.device("cpu"), lambda: steps.append(1))
    assert (len(found.classes), found.without, len(steps)) == (4, 4, 3)
    assert found.names == ("class 0", "class 1")
    assert (
        sentences(dataclasses.replace(binary, frequencies=found))[0].count("(4 test images; in 4 others it adds") == 1
    )
    dark = dataclasses.replace(data, test=TensorDataset(images[1::2], part.tensors[1][1::2]))
    with pytest.raises(
        ValueError, match="layer 'conv', whose bands differ most, adds nothing to the true class of any"
    ):
        find_frequencies(Dark(), dark, torch.device("cpu"), lambda: None)


def test_the_section_shows_the_numbers_and_says_why_it_is_empty(binary) -> None:
    found, page = binary.frequencies, check_structure(report_page(binary))
    assert "frequency-maps" in [a["id"] for a in page.all("figure")]
    rows = {row[0]: row[1:] for row in page.tables["frequency-shares"]}
    assert rows["30 test images"] == [f"{float(found.shares[band].mean()):.1%}" for band in BANDS]
    assert rows["the same, pixels shuffled"] == [f"{float(found.shuffled[band].mean()):.1%}" for band in BANDS]
    of_class = found.classes == 1
    assert rows["class 1"] == [f"{float(found.shares[band][of_class].mean()):.1%}" for band in BANDS]
    assert f"the place tells {found.bits[found.layer]:.3f} bits of the band" in page.text["frequencies"]
    as_dict = binary.as_dict()["frequencies"]
    assert as_dict["shares"]["low"] == pytest.approx(float(found.shares["low"].mean()))
    assert as_dict["classes"]["class 1"]["high"] == pytest.approx(float(found.shares["high"][of_class].mean()))
    without = explained_by_name(init="dct2")
    assert without.frequencies is None
    assert "No maps: no data was given (--data)." in check_structure(report_page(without)).text["frequencies"]
