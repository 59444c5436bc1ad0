from __future__ import annotations

import numba
import pytest

from labelwise.compiled import compiled


def test_where_nothing_can_be_written_it_compiles_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "/dev/null/nowhere")
    assert compiled(_twice)(2) == 4


def _twice(x: int) -> int:
    return 2 * x
