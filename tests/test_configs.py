"""Every configuration that is shipped trains, from the command line's own door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anncoder import models
from anncoder.cli.options import LAST_SEED, MOST_THREADS
from anncoder.cli.train import TrainRequest, make_plan
from anncoder.config import TrainingConfig
from anncoder.errors import ConfigError

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


def test_there_is_one_for_every_model() -> None:
    names = {make_plan(TrainRequest(Path(), Path(), config=path)).model.name for path in CONFIGS}
    assert names == set(models.names())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_trains_for_an_epoch(path: Path, counts: Any) -> None:
    plan = make_plan(TrainRequest(Path(), Path(), config=path, settings=("max_epochs=1", "threads=1")))
    model = plan.model.fit(counts, progress=False, **plan.training.model_dump())
    assert len(model.history_) == 1
    assert np.isfinite(model.embed(counts)).all()


def test_the_command_line_knows_the_bounds_of_the_seed_and_the_threads() -> None:
    TrainingConfig(seed=LAST_SEED, threads=MOST_THREADS)
    for beyond in ({"seed": LAST_SEED + 1}, {"seed": 10**20}, {"threads": MOST_THREADS + 1}, {"threads": 10**11}):
        with pytest.raises(ConfigError, match="input should be less than"):
            TrainingConfig(**beyond)
