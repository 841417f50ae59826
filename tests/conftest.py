"""What every test may ask for. Each worker of pytest-xdist computes on one thread: two share two cores fairly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images that VITRAIL_DATA names."""
    folder = os.environ.get("VITRAIL_DATA", "")
    if not Path(folder, "hostile", "manifest.json").is_file():
        pytest.skip("VITRAIL_DATA names no folder of shared test images")
    return Path(folder)
