"""Parameters of Splatter's model of single-cell counts (Zappia et al. 2017, doi 10.1186/s13059-017-1305-0)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from anncoder.config import Settings
from anncoder.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
# beyond these bounds a factor is no biology any more, and products of factors leave float32
LogMean = Annotated[float, Field(ge=-10, le=10)]
LogDeviation = Annotated[float, Field(ge=0, le=2, description="its standard deviation")]


class SplatParameters(Settings):
    """Parameters of Splatter's model; the defaults are the paper's, and leave out dropout.

    A factor is ``exp(|z|)``, or ``exp(-|z|)`` for a gene that goes down, with z normal of mean ``*_loc`` and
    standard deviation ``*_scale``. Gene j at mean mu has the coefficient of biological variation
    ``bcv = (bcv_common + 1/sqrt(mu)) * sqrt(bcv_df / chi2_j)``: its counts have variance ``mu + (bcv mu)^2``.

    In mode ``"groups"`` each group has factors of its own; a single group has none. In mode ``"paths"`` cells
    lie on ``n_groups`` paths: a path begins with the factors at the end of the path it comes from and goes to
    those times its own, in a straight line or, for a share of its genes, along a Brownian bridge.

    Raises
    ------
    ConfigError
        An unknown parameter, a value out of range, or proportions that do not fit their number.

    References
    ----------
    Zappia, Phipson, Oshlack 2017, Genome Biology 18:174, doi 10.1186/s13059-017-1305-0.
    """

    n_obs: Annotated[int, Field(ge=1, description="cells")] = 1000
    n_vars: Annotated[int, Field(ge=1, description="genes")] = 2000
    mode: Annotated[Literal["groups", "paths"], Field(description="what cells belong to")] = "groups"
    n_groups: Annotated[int, Field(ge=1, le=1000, description="groups, or paths")] = 1
    group_probabilities: Annotated[tuple[Share, ...] | None, Field(description="null for equal ones")] = None
    n_batches: Annotated[int, Field(ge=1, le=1000, description="experimental batches")] = 1
    batch_proportions: Annotated[tuple[Share, ...] | None, Field(description="null for equal ones")] = None
    batch_fac_loc: Annotated[LogMean, Field(description="mean log batch factor of a gene")] = 0.1
    batch_fac_scale: LogDeviation = 0.1
    mean_shape: Annotated[float, Field(ge=0.05, le=100, description="shape of the gamma of gene means")] = 0.6
    mean_rate: Annotated[float, Field(ge=1e-6, le=1e6, description="its rate")] = 0.3
    # above exp(16) molecules a count would no longer be exact in float32
    lib_loc: Annotated[float, Field(ge=-10, le=15, description="mean log library size, in molecules")] = 11.0
    lib_scale: LogDeviation = 0.2
    out_prob: Annotated[Share, Field(description="share of outlier genes")] = 0.05
    out_fac_loc: Annotated[LogMean, Field(description="mean log ratio of an outlier to the median")] = 4.0
    out_fac_scale: LogDeviation = 0.5
    de_prob: Annotated[Share, Field(description="share of genes that a group or path changes")] = 0.1
    de_fac_loc: Annotated[LogMean, Field(description="mean log factor of a changed gene")] = 0.1
    de_fac_scale: LogDeviation = 0.4
    de_down_prob: Annotated[Share, Field(description="share of the changed genes that go down")] = 0.5
    bcv_common: Annotated[float, Field(ge=0, le=10, description="variation of abundant genes")] = 0.1
    bcv_df: Annotated[float, Field(ge=1, le=1e9, description="evenness of the variation over genes")] = 60.0
    path_from: Annotated[tuple[int, ...] | None, Field(description="0: origin, k: end of path k")] = None
    path_n_steps: Annotated[int, Field(ge=2, le=10_000, description="steps of a path")] = 100
    path_skew: Annotated[Share, Field(description="1: cells gather at the start, 0: at the end")] = 0.5
    path_nonlinear_prob: Annotated[Share, Field(description="share of genes that follow a bridge")] = 0.1
    path_sigma_fac: Annotated[float, Field(ge=0, le=10, description="standard deviation of its walk")] = 0.8
    dropout_mid: Annotated[float | None, Field(description="log mean where half is lost")] = None
    dropout_shape: Annotated[float, Field(ge=-100, le=100, description="its slope; rare go if < 0")] = -1.0
    seed: Annotated[int, Field(ge=0, description="start of every random stream")] = 0

    def model_post_init(self, context: Any, /) -> None:
        """Refuse proportions and origins that do not fit their number."""
        _check_shares("group_probabilities", self.group_probabilities, self.n_groups)
        _check_shares("batch_proportions", self.batch_proportions, self.n_batches)
        _check_length("path_from", self.path_from, self.n_groups)
        for path, origin in enumerate(self.path_from or (), start=1):
            if not 0 <= origin < path:
                raise _bad_value(
                    f"path {path} cannot begin at the end of path {origin}",
                    "path_from",
                    "name an earlier path, counted from 1, or 0 for the origin",
                )

    @property
    def group_names(self) -> list[str]:
        """Names of the groups or paths: ``"Group1"`` or ``"Path1"`` and so on."""
        return numbered("Group" if self.mode == "groups" else "Path", self.n_groups)

    @property
    def batch_names(self) -> list[str]:
        """Names of the batches: ``"Batch1"`` and so on."""
        return numbered("Batch", self.n_batches)


def numbered(prefix: str, n: int, start: int = 0) -> list[str]:
    """Return ``n`` names counted from 1: ``"Cell1"``, ``"Cell2"``; ``start`` of them are passed over."""
    return [f"{prefix}{number}" for number in range(start + 1, start + n + 1)]


def _check_shares(name: str, shares: Sequence[float] | None, n: int) -> None:
    _check_length(name, shares, n)
    if shares is not None and abs(sum(shares) - 1) > 1e-8:
        raise _bad_value(f"{name} sum to {sum(shares):g}, not to 1", name, "divide each by their sum")


def _check_length(name: str, values: Sequence[float] | None, n: int) -> None:
    if values is not None and len(values) != n:
        raise _bad_value(f"{len(values)} {name} for {n}", name, f"give {n} values, or leave it out")


def _bad_value(what: str, name: str, remedy: str) -> ConfigError:
    return ConfigError(what, code="bad-value", where=f"SplatParameters.{name}", remedy=remedy)
