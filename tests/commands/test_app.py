"""The command line: one line and exit code 2 for bad input, clean JSON, help whose examples run."""

from __future__ import annotations

import json
import re
import shlex
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')

from explainfix_ext import cli, initializers
from explainfix_ext.commands.tables import memory_lines
from explainfix_ext.training import runs
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.sources.readers import FORMS

COMMANDS = ("train", "demo", "prune", "explain", "memory", "export", "bench", "status", "inits")


@pytest.fixture
def images(tmp_path):
    """The path of a small binary data set: bright or dark."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, n in (("train", 40), ("val", 10), ("test", 12)):
        label = np.arange(n) % 2
        pixels = rng.integers(0, 128, (n, 28, 28)) + 100 * label[:, None, None]
        arrays |= {f"{name}_images": pixels.astype(np.uint8), f"{name}_labels": label[:, None]}
    np.savez(tmp_path / "images.npz", **arrays)
    return tmp_path / "images.npz"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train", "Missing option '--out' (see explainfix train --help)"),
        ("train --out o --foo", "No such option: --foo"),
        ("train --out o --epoch 3", "No such option: --epoch (Possible options: --epoch-size, --epochs)"),
        ("train --out o --epochs many", "Invalid value for '--epochs'"),
        ("train --out o --epochs 0", "epochs must be at least 1, got 0"),
        ("train --out o --init dct3", "unknown init 'dct3'; nearest: dct2"),
        ("train --out o --init leaned", "unknown init 'leaned'; nearest: learned, .* `explainfix inits` lists all"),
        ("train --out o --init learned,", "unknown init ''; expected learned, auto, "),
        ("train --out o --init learned,dct2@7", "must be in (0, 1], got 7"),
        ("train --out o --init dct2,dct2", "each init must be given once, got dct2 twice"),
        ("train --out o --model botleneck", "model must be bottleneck, .* got 'botleneck'; did you mean bottleneck?"),
        ("explain resnet18", "did you mean torchvision:resnet18 or timm:resnet18?"),
        ("explain timm:resnet1", "unknown timm model 'resnet1'; nearest: resnet"),
        ("explain smp:unet", "model must be smp:ARCH/ENCODER, such as smp:unet/resnet18, got 'smp:unet'"),
        ("train --out o --data no.npz", "no.npz not found: expected an .npz file with train_images"),
        ("train --out o --data bbbc038:no", "no not found: expected the folder stage1_train"),
        ("train --out o --data medmnist:pathmnits", "unknown data set of MedMNIST 'pathmnits'; nearest: pathmnist"),
        ("train --out o --device gpu", "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("train --out o --device cuda:99", "CUDA devices; take cpu or auto, or see `explainfix status`"),
        ("train --out o --workers -1", "workers must be 0 or more, got -1"),
        ("train --out o --amp half", "amp must be one of off, bf16, fp16, got 'half'"),
        ("prune", "Missing argument 'CHECKPOINT' (see explainfix prune --help)"),
        (
            "prune no.pt --out o",
            "no.pt not found: expected a checkpoint, OUT/NETWORK/checkpoint.pt of explainfix train",
        ),
        ("prune no.pt --out o --amount 90", "amount must be in [0, 1), got 90.0; 0.9 is 90 %"),
        ("explain runs/no", "runs/no not found: expected a checkpoint"),
        ("explain botleneck", "did you mean bottleneck?"),
        (
            "memory bottleneck --budget lots",
            "budget must be bytes, or a size such as 24GiB, 80GB or 512MiB, got 'lots'",
        ),
        ("memory bottleneck --batch 0", "batch must be an integer of 1 or more, got 0"),
        ("memory resnet18", "did you mean torchvision:resnet18 or timm:resnet18?"),
        ("bench --cases nope", "unknown case 'nope'; expected index-.* `explainfix bench --list` lists all"),
        ("demo --seed -1", "seed must be from 0"),
        ("trian", "No such command 'trian'. Did you mean 'train'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, line, message):
    code, out, error = run(line)
    assert code == 2
    assert out == ""
    (told,) = error.splitlines()
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), told), told
    assert told.startswith("explainfix: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ("bad", ""),
        ("mnist6k", "; did you mean mnist5k?"),
        ("medmnist:", "; did you mean medmnist:NAME?"),
        ("foldr:photos", "; did you mean folder:photos?"),
        (".", "; did you mean folder:.?"),
        ("no/photos", ": there is no no/photos"),
    ],
)
def test_unknown_data_lists_all_forms_with_an_example_each(run, tmp_path, data, hint):
    code, out, error = run(f"train --out o --data {data}")
    told, *forms = error.splitlines()
    assert (code, out) == (2, "")
    assert told.startswith("explainfix: data must be mnist5k, folder:PATH, ")
    assert told.endswith(f"got {data!r}{hint}")
    assert [form.split()[0] for form in forms[:-1]] == [*FORMS]
    assert max(map(len, forms)) < 80
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_nearby_is_named(run, tmp_path):
    (tmp_path / "o" / "dct2").mkdir(parents=True)
    torch.save({}, tmp_path / "o" / "dct2" / "checkpoint.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "o" / "dct2" / "model.pt")
    for given in ("o", "o/dct2", "o/dct2/model.pt"):
        code, _, error = run(f"prune {given} --out p")
        assert code == 2
        assert error.endswith("; did you mean o/dct2/checkpoint.pt?\n")
    assert run("explain o/dct2")[2].endswith("; did you mean o/dct2/checkpoint.pt?\n")


def test_nothing_to_resume_is_told(run, images):
    with pytest.warns(UserWarning, match=r"resume found no o/learned/checkpoint.pt: training begins anew"):
        code, _, error = run(f"train --data {images} --out o --epochs 1 --init learned --device cpu --resume")
    assert code == 0, error


def test_an_output_folder_that_cannot_be_is_bad_input(run, images):
    code, _, error = run(f"train --out {images} --data {images} --epochs 1 --init learned --device cpu")
    assert code == 2
    assert "images.npz" in error.splitlines()[-1]


def test_missing_packages_are_named(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "explainfix_ext.commands.app")
    monkeypatch.setitem(sys.modules, "typer", None)
    code, _, error = run("status")
    assert (code, error) == (2, 'explainfix: explainfix needs typer and rich: pip install "explainfix_ext[demo]"\n')


def test_a_missing_package_is_told_before_the_work(run, monkeypatch, images, tmp_path):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    code, out, error = run(f"train --out o --data {images} --device cpu")
    assert (code, out) == (2, "")
    assert error == 'explainfix: this needs torchmetrics: pip install "explainfix_ext[demo]"\n'
    assert not (tmp_path / "o").exists()


def test_trained_networks_are_shown_and_drawn(run, images, tmp_path):
    options = f"train --data {images} --epochs 2 --batch-size 8 --device cpu --out runs --init"
    code, out, error = run(f"{options} learned --init dct2,dct2@0.5")
    assert code == 0, error
    for column in ("network", "AUROC", "time per step", "learned parameters", "checkpoint", "kept for backward"):
        assert column in out
    for network in ("learned", "dct2", "dct2@0.5"):
        assert network in out
        assert f"{network}  epoch 2/2" in error
        assert len((tmp_path / "runs" / network / "log.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "runs" / "curves.png").read_bytes().startswith(b"\x89PNG")
    code, _, error = run(f"{options} learned")
    assert code == 2
    assert "runs/learned/checkpoint.pt is there: add --resume" in error
    code, out, error = run(f"{options} learned,dct2 --resume --json")
    assert code == 0, error
    results = json.loads(out)
    assert [r["network"] for r in results["runs"]] == ["learned", "dct2"]
    assert results == json.loads((tmp_path / "runs" / "results.json").read_text())
    assert {"cpu", "cores", "threads", "gpu"} <= results["hardware"].keys()
    assert {"python", "torch", "explainfix_ext"} <= results["versions"].keys()


def test_interruption_tells_how_to_go_on(run, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train_networks", interrupted)
    code, out, error = run("train --out o")
    assert (code, out, error) == (130, "", "interrupted; to go on: explainfix train --out o --resume\n")
    code, _, error = run("train --out 'a b' --resume")
    assert error == "interrupted; to go on: explainfix train --out 'a b' --resume\n"


def test_options_of_train_are_those_of_its_configuration(run, monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "train_networks", lambda configs, out, **options: seen.extend(configs) or 1 / 0)
    line = (
        "train --out o --model unet --data d --init psine --pointwise --learn-coeff --epochs 2 --batch-size 3 --lr 0.5 "
        "--weight-decay 0.25 --seed 6 --amp bf16 --accumulate 7 --limit 8"
    )
    with pytest.raises(ZeroDivisionError):
        cli.main(shlex.split(line))
    assert seen == [
        TrainConfig(
            model="unet",
            data="d",
            init="psine",
            pointwise=True,
            learn_coeff=True,
            epochs=2,
            batch_size=3,
            lr=0.5,
            weight_decay=0.25,
            seed=6,
            amp="bf16",
            accumulate=7,
            limit=8,
            world_size=1,
        )
    ]
    assert seen[0].label == "psine+pointwise+coeff"


def test_status_and_inits(run):
    code, out, _ = run("status")
    assert code == 0
    assert "torch" in out
    assert "torch" in json.loads(run("status --json")[1])
    code, out, _ = run("inits")
    assert code == 0
    assert all(name in out for name in ("auto", *initializers()))
    assert json.loads(run("inits --json")[1]).items() >= initializers().items()


def example(run, command: str) -> str:
    code, out, _ = run(f"{command} --help")
    assert code == 0
    found = re.search(r"Example: explainfix (.*)", " ".join(out.split()))
    assert found, out
    return found.group(1)


@pytest.mark.parametrize("command", ["status", "inits"])
def test_short_examples_run(run, command):
    assert run(example(run, command))[0] == 0


def test_help_has_an_example_for_each_command(run):
    listing = run("")[1]
    for command in COMMANDS:
        assert command in listing
        assert example(run, command).startswith(command)


@pytest.mark.slow
def test_example_of_train_runs(run):
    pytest.importorskip("mlxtend")
    code, out, error = run(example(run, "train"))
    assert code == 0, error
    assert "dct2" in out


@pytest.mark.parametrize(("memory", "kept", "said"), [("off", 3, 1), ("off", 2, 0), ("exact", 3, 0)])
def test_memory_is_hinted_at_where_a_fixed_network_keeps_more_than_learned(memory, kept, said):
    learned = {"network": "learned", "config": {"init": "learned", "memory": memory}, "kept_bytes": 2}
    fixed = {"network": "auto", "config": {"init": "auto", "memory": memory}, "kept_bytes": kept}
    lines = [*memory_lines({"runs": [learned, fixed]})]
    assert lines == ["more is kept for backward than by learned: auto. --memory recompute keeps less"] * said
    assert not [*memory_lines({"runs": [fixed]})]
