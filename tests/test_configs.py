"""Every configuration that is shipped trains, from the command line's own door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anncoder.commands.train import TrainRequest, make_plan
from anncoder.models import MODELS

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


def test_there_is_one_for_every_model() -> None:
    names = {make_plan(TrainRequest(Path(), Path(), config=path)).model.name for path in CONFIGS}
    assert names == set(MODELS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_trains_for_an_epoch(path: Path, counts: Any) -> None:
    plan = make_plan(TrainRequest(Path(), Path(), config=path, settings=("max_epochs=1", "threads=1")))
    model = plan.model.fit(counts, progress=False, **plan.training.model_dump())
    assert len(model.history_) == 1
    assert np.isfinite(model.embed(counts)).all()
