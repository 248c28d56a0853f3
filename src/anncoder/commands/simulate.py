"""``anncoder simulate``: counts with a known truth, straight to a file."""

from __future__ import annotations

from pathlib import Path

from anncoder.commands.output import refuse_output
from anncoder.config import parse_assignments
from anncoder.progress import announce
from anncoder.simulate import simulate_to_file
from anncoder.splatter import SplatParameters


def run_simulate(output: Path, assignments: tuple[str, ...], *, seed: int, keep_means: bool) -> None:
    """Simulate and write a file; the parameters are those of :class:`SplatParameters`."""
    refuse_output(output, output, in_place=True)
    parameters = SplatParameters(**{"seed": seed, **parse_assignments(assignments)})
    simulate_to_file(output, parameters, keep_means=keep_means)
    announce(f"wrote {output}: {parameters.n_obs:,} cells x {parameters.n_vars:,} genes")
