"""Settings for worker processes over the tiny pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import Settings
from tests.service.tiny_pair import make_tokenizer


@pytest.fixture
def tiny_settings(tmp_path: Path) -> Settings:
    """A folder that holds the tokenizer, which is all that the tiny pair reads."""
    make_tokenizer(tmp_path / "tiny")
    return Settings(teacher=tmp_path / "tiny", student=tmp_path / "tiny", workers=1, threads=1)
