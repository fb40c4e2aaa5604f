"""Fixtures of the training tests."""

from __future__ import annotations

import pytest

from tests.training.tiny import Stub
from tw_seg.models.factory import MODELS


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model named "stub"."""
    monkeypatch.setitem(MODELS, "stub", Stub)
