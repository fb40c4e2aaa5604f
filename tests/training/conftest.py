"""Fixtures of the training tests, and the warnings of Lightning that they meet."""

from __future__ import annotations

import pytest

from tests.training.tiny import Stub
from tw_seg.models.factory import MODELS

UPSTREAM = [
    # Lightning 2.6 asks torch's pytree in the old way.
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    # Lightning recommends worker processes whatever the data.
    "ignore:The '.*_dataloader' does not have many workers",
    # Lightning wants checkpoint directories empty; a resumed run's is not.
    "ignore:Checkpoint directory .* exists and is not empty",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/training" in item.path.as_posix():
            for line in UPSTREAM:
                item.add_marker(pytest.mark.filterwarnings(line))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model named "stub"."""
    monkeypatch.setitem(MODELS, "stub", Stub)
