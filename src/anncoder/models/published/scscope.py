"""scScope: recurrent autoencoder with imputed zeros and a batch layer.

Deng, Bao, Dai, Wu, Altschuler 2019, doi 10.1038/s41592-019-0353-7. A reimplementation of the published objective: only
the observed (non-zero) entries count.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anncoder.config import HiddenWidths, LatentUnits, Layers, NetworkConfig, TransformName, Width, arguments
from anncoder.errors import InputError
from anncoder.models.base import Array, Autoencoder
from anncoder.nn.corruption import select
from anncoder.nn.inputs import LogNormalize
from anncoder.nn.layers import Decoder, Encoder, linear, rows_of
from anncoder.types import CSR, Batch, Loader, Loss, Noise, Shape, Summary


class ScScopeConfig(NetworkConfig):
    """Hyper-parameters of :class:`anncoder.ScScope`."""

    encodes_batches: ClassVar[bool] = True
    loss_unit: ClassVar[str] = "root mean square, sum of rounds"

    n_latent: LatentUnits = 50
    transform: Annotated[TransformName, Field(description="normalize: library-size normalised counts, no log")] = (
        "normalize"
    )
    n_hidden: HiddenWidths = ()
    n_rounds: Annotated[int, Field(ge=1, le=32, description="times the network is run, T")] = 2
    n_imputer: Annotated[Width, Field(description="hidden units of the layers that guess the zeros")] = 64
    latent_activation: Annotated[Literal["relu", "linear"], Field(description="activation of the latent")] = "relu"
    readout: Annotated[
        Literal["concat", "last", "mean"],
        Field(description="latent of a cell: those of all rounds side by side, the last round's, or their mean"),
    ] = "concat"
    keep_observed: Annotated[bool, Field(description="denoise fills in the zeros and keeps what was observed")] = False
    faithful: Annotated[bool, Field(description="start, mask and train as published")] = False

    @property
    def batches(self) -> Literal["optional"]:
        """The batch layer is there if there are batches."""
        return "optional"

    @property
    def width(self) -> int:
        """Number of columns that the latent of a cell has."""
        return self.n_latent * (self.n_rounds if self.readout == "concat" else 1)

    @property
    def defaults(self) -> dict[str, Any]:
        """As published, but for Adam's memory, and an end when the held-out cells no longer gain."""
        published = {"max_epochs": 100, "batch_size": 64, "learning_rate": 1e-4}
        quirks = {"beta1": 0.05, "clip_norm": 0.0, "early_stopping": False, "keep_best": False, "reduce_lr_patience": 0}
        return {**super().defaults, **published, **(quirks if self.faithful else {})}


class ScScopeNetwork(nn.Module):
    """Batch layer, autoencoder, imputer and the masked error; see :mod:`anncoder.models` for the interface."""

    scale: Tensor
    center: Tensor
    gene_scale: Tensor

    def __init__(self, config: ScScopeConfig, shape: Shape, noise: Noise) -> None:
        super().__init__()
        self.config, n_vars, k = config, shape.n_vars, config.n_latent
        hidden = Layers(config.n_hidden, "relu", "none")
        self.inputs = LogNormalize(config.transform)
        self.encoder = Encoder(hidden, n_vars, k, noise)
        self.decoder = Decoder(hidden._replace(widths=tuple(reversed(config.n_hidden))), k, noise)
        self.output = linear(self.decoder.n_out, n_vars, noise)
        self.imputer: nn.Sequential | None = None
        if config.n_rounds > 1:
            middle = linear(n_vars, config.n_imputer, noise)
            self.imputer = nn.Sequential(middle, nn.ReLU(), linear(config.n_imputer, n_vars, noise))
        if config.faithful:
            for parameter in self.parameters():
                _start_as_published(parameter, noise)
        self.of_batch = nn.Parameter(torch.zeros(shape.n_batches, n_vars)) if shape.n_batches else None
        # the published form has 0 and 1 for these
        self.register_buffer("scale", torch.ones(()))  # of the whole input
        self.register_buffer("center", torch.zeros(n_vars))  # subtracted by the encoder
        self.register_buffer("gene_scale", torch.ones(n_vars))  # unit of the output

    @torch.no_grad()
    def start_from(self, summary: Summary, cells: Loader) -> None:
        """Bring the input to a mean of 1, and start every gene at its mean.

        Raises
        ------
        InputError
            There are negative values: only zeros stand for values that were not observed.
        """
        if summary.smallest < 0:
            what = f"the smallest value is {summary.smallest:g}, and zeros are taken as not observed: none may be below"
            remedy = "fit raw counts with transform='normalize', or expression values that are not centred or scaled"
            raise InputError("negative", what, "ScScope", remedy)
        if not self.config.faithful:
            self.scale.copy_(summary.x_mean.mean().clamp(min=1e-12))
            self.center.copy_(summary.x_mean / self.scale)
            self._start_at_observed_means(cells)

    def _start_at_observed_means(self, cells: Loader) -> None:
        # every gene near the mean of its observed entries, and its batch effects at the differences of the means of the
        # batches: from zero they would never get there at a step that suits the rest
        n_batches = 1 if self.of_batch is None else len(self.of_batch)
        sums = torch.zeros(2, n_batches, len(self.center), dtype=torch.float64, device=self.center.device)
        for host_batch in cells.epoch(0):
            batch = host_batch.to(self.center.device)
            x = self._input(batch)
            code = torch.zeros_like(batch.rows) if self.of_batch is None else batch.batch_code
            assert code is not None
            at = code[x.rows()] * x.n_vars + x.indices
            for total, values in zip(sums, (x.values, x.values != 0), strict=True):
                total.view(-1).index_add_(0, at, values.double())  # in one order for any number of threads
        means = torch.where(sums[1] > 0, sums[0] / sums[1].clamp(min=1), torch.nan)
        mean = means.nanmean(dim=0).nan_to_num(0)  # a gene without any count stays at 0
        self.gene_scale.copy_(mean)
        if self.of_batch is not None:
            self.of_batch.copy_((means / mean - 1).nan_to_num(0))
        self.output.weight.mul_(0.01)
        self.output.bias.fill_(1)

    def finish(self, batch: Batch) -> None:
        """Leave the latent as it is."""

    def forward(self, batch: Batch) -> Loss:
        """Return the errors of the rounds: each the root of the summed squares of a minibatch over its size.

        ``sum_t || m * (y_t - x) ||_F / sqrt(b g)`` with the mask m of observed entries. The norm is not squared.
        """
        x = self._input(batch)
        target = self._target(x, batch.batch_code)
        size = (x.n_rows * x.n_vars) ** 0.5
        rounds = enumerate(self._rounds(x, batch.batch_code), start=1)
        return Loss.of({f"round_{t}": observed_error(target, decoded) / size for t, (_, decoded) in rounds})

    def encode(self, batch: Batch) -> Tensor:
        """Return the latent by ``readout``, (b, k) or (b, T k)."""
        latents = [latent for latent, _ in self._rounds(self._input(batch), batch.batch_code)]
        if self.config.readout == "concat":
            return torch.cat(latents, dim=1)
        return latents[-1] if self.config.readout == "last" else torch.stack(latents).mean(dim=0)

    def denoise(self, batch: Batch) -> Tensor:
        """Return the reconstruction of the last round, without batch effects, (b, g)."""
        x = self._input(batch)
        decoded = self._rounds(x, batch.batch_code)[-1][1]
        if self.config.keep_observed:
            observed = self._target(x, batch.batch_code)
            decoded.view(-1)[observed.flat()] = observed.values
        return self.inputs.inverse(decoded * self.scale)

    def batch_effects(self) -> Tensor:
        """Return the effects subtracted from the cells of each batch, (n_batches, g), in units of the network input."""
        assert self.of_batch is not None
        return self._shifts() * self.scale

    def _rounds(self, x: CSR, batch_code: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        # latent and reconstruction of every round
        shift: Tensor | int = 0
        if self.of_batch is not None:
            assert batch_code is not None
            shift = rows_of(self._shifts(), batch_code)
        dense = None if self.imputer is None and self.of_batch is None else x.to_dense()
        current: CSR | Tensor = x if self.of_batch is None or dense is None else (dense - shift).relu()
        rounds: list[tuple[Tensor, Tensor]] = []
        for _ in range(self.config.n_rounds):
            if rounds:
                assert self.imputer is not None
                assert dense is not None
                guessed = self.imputer(rounds[-1][1]).masked_fill(dense != 0, 0)
                current = (dense + guessed - shift).relu()
            latent = self.encoder(current, self.center)
            if self.config.latent_activation == "relu":
                latent = latent.relu()
            rounds.append((latent, (self.output(self.decoder(latent)) * self.gene_scale).relu()))
        return rounds

    def _input(self, batch: Batch) -> CSR:
        x: CSR = self.inputs(batch)
        return x.with_values(x.values / self.scale)

    def _target(self, x: CSR, batch_code: Tensor | None) -> CSR:
        # the observed entries, less the effect of the batch; not observed are stored zeros, and in the published form
        # entries that the subtraction makes zero
        if self.of_batch is None:
            return select(x, x.values != 0)
        assert batch_code is not None
        at = batch_code[x.rows()] * x.n_vars + x.indices
        corrected = (x.values - rows_of(self._shifts().reshape(-1), at)).relu()
        counted = corrected != 0 if self.config.faithful else x.values != 0
        return select(x.with_values(corrected), counted)

    def _shifts(self) -> Tensor:
        # in units of each gene, and about their mean: shifts that all grow would shrink the target, and the error
        assert self.of_batch is not None
        if self.config.faithful:
            return self.of_batch
        return (self.of_batch - self.of_batch.mean(dim=0)) * self.gene_scale


def observed_error(target: CSR, decoded: Tensor) -> Tensor:
    """Return the Frobenius norm of ``decoded - target``, (b, g) both, over the stored entries of the target, ()."""
    error: Tensor = torch.linalg.vector_norm(decoded.reshape(-1)[target.flat()] - target.values)
    return error


@torch.no_grad()
def _start_as_published(parameter: Tensor, noise: Noise) -> None:
    # weights normal with standard deviation 0.1, cut at two of them; biases and batch effects at zero
    if parameter.is_meta:
        return
    parameter.zero_()
    if parameter.dim() == 2:
        nn.init.trunc_normal_(parameter, std=0.1, a=-0.2, b=0.2, generator=noise.on(parameter.device))


class ScScope(Autoencoder):
    """An autoencoder run several times with the same weights, each time on its own guesses of the zeros.

    Reimplementation of the objective of Deng et al. 2019, doi 10.1038/s41592-019-0353-7. Zeros count as not
    observed: only the other entries are reconstructed, and from the second round on the zeros are filled in. With
    ``batch_key`` a layer learns and subtracts the effect of each experimental batch on each gene. The data must not be
    negative.

    Parameters
    ----------
    n_latent
        Number of latent units of one round.
    n_hidden
        Widths of the encoder's hidden layers; the decoder mirrors them; ``()`` for none.
    n_rounds
        How many times the network is run, T; 1 for a plain autoencoder.
    n_imputer
        Hidden units of the layers that guess the zeros from the last round's reconstruction.
    latent_activation
        ``"relu"`` or ``"linear"``.
    readout
        ``"concat"``: the latent of a cell is that of all rounds side by side, n_rounds * n_latent columns; ``"last"``;
        ``"mean"``.
    keep_observed
        Whether ``denoise`` keeps the observed values and fills in the zeros, or reconstructs every entry.
    transform
        ``"normalize"`` (library-size normalised counts without the logarithm, as published), ``"log1p"``, or
        ``"none"`` for expression values.
    faithful
        Start, mask and train as published: weights of standard deviation 0.1 at any scale of the data, entries
        that the batch layer brings to zero no longer count, 100 epochs at a step of 1e-4 without early stopping.
    """

    name = "scscope"
    config_class, network_class = ScScopeConfig, ScScopeNetwork
    gene_results = ("batch_effects",)
    config: ScScopeConfig

    def __init__(
        self,
        *,
        n_latent: int = 50,
        transform: TransformName = "normalize",
        n_hidden: tuple[int, ...] = (),
        n_rounds: int = 2,
        n_imputer: int = 64,
        latent_activation: Literal["relu", "linear"] = "relu",
        readout: Literal["concat", "last", "mean"] = "concat",
        keep_observed: bool = False,
        faithful: bool = False,
    ) -> None:
        super().__init__(ScScopeConfig(**arguments(locals())))

    def of_genes(self) -> dict[str, Array]:
        """Return ``batch_effects``, (n_vars, n_batches), where there are batches.

        They are subtracted from the cells of each batch, on the scale of the network input, in the order of
        ``batches_``.
        """
        network = self._network()
        if network.of_batch is None:
            return {}
        effects: Array = network.batch_effects().detach().T.cpu().numpy()
        return {"batch_effects": effects}


MODEL = ScScope
