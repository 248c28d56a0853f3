"""``anncoder simulate``: counts with a known truth, straight to a file."""

from __future__ import annotations

from pathlib import Path

from tqdm.auto import tqdm

from anncoder.errors import ConfigError
from anncoder.files import locked
from anncoder.outputs import refuse_output
from anncoder.progress import announce
from anncoder.settings import parse_assignments, set_in
from anncoder.simulate import simulate_to_file
from anncoder.splatter import SplatParameters


def run_simulate(output: Path, assignments: tuple[str, ...], *, seed: int | None, keep_means: bool) -> None:
    """Simulate and write a file; the parameters are those of :class:`SplatParameters`."""
    refuse_output(output)
    parameters = parameters_of(assignments, seed=seed)
    bar = tqdm(total=parameters.n_obs, unit="cell", unit_scale=True, disable=None, leave=False)
    with locked(output), bar:  # of two at once the one that ends last would win
        simulate_to_file(output, parameters, keep_means=keep_means, progress=bar.update)
    announce(f"wrote {output}: {parameters.n_obs:,} cells x {parameters.n_vars:,} genes")


def parameters_of(assignments: tuple[str, ...], *, seed: int | None = None) -> SplatParameters:
    """Return the parameters that ``key=value`` words give; an error says where they are listed.

    A seed that is given beats them, as in ``train``.
    """
    values = parse_assignments(assignments) | ({} if seed is None else {"seed": seed})
    try:
        with set_in({"--set": values}):
            return SplatParameters(**values)
    except ConfigError as error:
        error.where = error.where.replace("SplatParameters", "--set")
        error.remedy = error.remedy.replace("anncoder config", "anncoder config --simulate")
        raise
