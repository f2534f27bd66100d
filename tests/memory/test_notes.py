"""A note on a tensor holds until the tensor is written to."""

import torch

from explainfix_ext.memory.notes import Handover, handover_of, note, replay_of
from explainfix_ext.memory.replay import keep


def test_a_note_holds_until_the_tensor_changes() -> None:
    x, y = torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    replay, handover = keep(y), Handover()
    note(x, replay, handover=handover)
    assert replay_of(x) is replay
    assert handover_of(x) is handover
    x += y
    assert replay_of(x) is handover_of(x) is None


def test_without_a_note() -> None:
    x = torch.ones(2)
    assert replay_of(x) is handover_of(x) is None
    with torch.inference_mode():
        x = torch.ones(2)  # it has no version
    assert replay_of(x) is None


def test_what_is_handed_over_is_taken_once() -> None:
    handover, x = Handover(), torch.ones(2)
    assert handover.take() is None
    handover.put(x)
    assert handover.take() is x
    assert handover.take() is None
