"""Settings for every test: nothing talks to the network, one thread, one seed."""

from __future__ import annotations

import gc
import os

gc.disable()  # until the tests are collected: imports leave nothing to collect
# Before any import of the libraries that read them.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from pathlib import Path

import pytest
import torch
from hypothesis import settings

pytest.register_assert_rewrite("tests.models.contract")

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("TW_SEG_SHARED_DATA", ROOT.parent / "shared" / "data"))

# The same examples on every machine, and no time limit on a machine that others share.
settings.register_profile("tw_seg", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("tw_seg")

torch.set_num_threads(1)  # the tensors of the tests are too small to share


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what all tests share: it spent a third of the suite's time there."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def shared_data() -> Path:
    """Folder with real data and weights, not part of the project; tests that use it skip without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA} (set TW_SEG_SHARED_DATA)")
    return SHARED_DATA
