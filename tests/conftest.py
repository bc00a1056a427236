"""Where the shared material is, for tests that run on real speech."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder shared/ beside the checkout (or $ARLAT_SHARED)."""
    path = Path(os.environ.get("ARLAT_SHARED", ROOT.parent / "shared"))
    if not (path / "data" / "speech").is_dir():
        pytest.skip(f"{path} is missing: it holds the real speech that this test runs on")
    return path
