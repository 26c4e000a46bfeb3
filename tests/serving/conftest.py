"""A folder of small real models, and how to load them quickly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import edgert
from edgert.data import path as data

pytest.importorskip("ai_edge_litert", reason="the models are run by LiteRT")


def load(path: Path) -> edgert.Model:
    """Planned among one library's ways, which the cache of the tests remembers."""
    if path.suffix == ".edgert":
        return edgert.load(path)
    return edgert.load(path, targets=["litert@cpu:0"], budget_s=0.2)


def put(model: str, folder: Path, name: str) -> Path:
    """A model of edgert's own data in the folder, appearing whole."""
    part = folder / ".part"
    shutil.copyfile(data(model), part)
    return part.rename(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for models."""
    made = tmp_path / "models"
    made.mkdir()
    return made
