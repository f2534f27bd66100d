"""What the tests of operators share: the instruction sets of this CPU, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from explainfix_ext.ops.binaries import ISAS, set_cpu_isa


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    if ISAS.index(request.param) > ISAS.index(set_cpu_isa(None)):
        pytest.skip(f"this CPU has no {request.param}")
    set_cpu_isa(request.param)
    yield
    set_cpu_isa(None)
