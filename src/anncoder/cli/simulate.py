"""``anncoder simulate``: simulated counts with a known truth, straight to a file."""

from __future__ import annotations

from pathlib import Path

from anncoder.cli.inspect import print_settings
from anncoder.cli.settings import parse_assignments, set_in
from anncoder.datasets import SplatParameters, simulate_to_file
from anncoder.errors import ConfigError
from anncoder.io.atomic import locked
from anncoder.io.output_paths import refuse_output
from anncoder.training.progress import announce, bar


def run_simulate(output: Path, assignments: tuple[str, ...], *, seed: int | None, keep_means: bool) -> None:
    """Simulate and write a file; the parameters are those of :class:`SplatParameters`."""
    refuse_output(output)
    parameters = parameters_of(assignments, seed=seed)
    shown = bar(parameters.n_obs, "cell", unit_scale=True)
    with locked(output), shown:  # of two at once the one that ends last would win
        simulate_to_file(output, keep_means=keep_means, progress=shown.update, **dict(parameters))
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
        error.remedy = f"{error.remedy}; see: anncoder config --simulate"
        raise


def run_config_of_simulate(assignments: tuple[str, ...]) -> None:
    """Print every parameter of ``anncoder simulate``, with what it means."""
    print_settings("anncoder simulate --set", parameters_of(assignments))
