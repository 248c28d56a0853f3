"""SAUCIE: two-dimensional latent, batch correction (MMD), clusters from a binary code.

Amodio et al. 2019, doi 10.1038/s41592-019-0576-7, written from the published objective. A reconstruction error, and
three penalties on activations: the maximum mean discrepancy between experimental batches in the latent
(``lambda_b``), the entropy of the use of the units of the last hidden layer (``lambda_c``; the pattern of active units
of a cell is its cluster), and the distance of cells within a cluster (``lambda_d``).
"""

from __future__ import annotations

import logging
from collections import Counter
from itertools import pairwise
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from anncoder.config import HiddenWidths, LatentUnits, NetworkConfig, TransformName, Weight, arguments, unknown_key
from anncoder.data.sources import Data
from anncoder.errors import ConfigError, InputError
from anncoder.likelihoods import squared_error
from anncoder.models.base import Autoencoder
from anncoder.nn.discrepancy import batch_discrepancy, usage_entropy, within_clusters
from anncoder.nn.inputs import LogNormalize, Standardize
from anncoder.nn.layers import linear
from anncoder.nn.sparse import SparseLinear
from anncoder.types import CSR, Batch, Loader, Loss, Noise, Shape, Summary

logger = logging.getLogger("anncoder")

SLOPE = 0.2  # of the leaky ReLU below zero
OTHER_BATCHES = 0.01  # weight of the reconstruction of the batches that are not the reference
ACTIVE = 1e-6  # share of the largest activation above which a unit counts as active
MOST_CLUSTERS = 1000
LARGEST_INPUT = 10.0  # the author's rule for the scale of the data


class SAUCIEConfig(NetworkConfig):
    """Hyper-parameters of :class:`anncoder.SAUCIE`."""

    loss_unit: ClassVar[str] = ""  # a mean error, and penalties in other units

    n_latent: LatentUnits = 2
    n_hidden: Annotated[HiddenWidths, Field(min_length=1)] = (512, 256, 128)
    lambda_b: Annotated[Weight, Field(description="weight of the discrepancy between batches in the latent")] = 0.0
    lambda_c: Annotated[Weight, Field(description="weight of the entropy of the cluster layer; 0 for no clusters")] = (
        0.0
    )
    lambda_d: Annotated[Weight, Field(description="weight of the distances within clusters; needs lambda_c")] = 0.0
    reference: Annotated[
        str | None,
        Field(
            coerce_numbers_to_str=True, description="batch that the others are corrected to; null for the first by name"
        ),
    ] = None
    min_cells: Annotated[int, Field(ge=1, description="cells a cluster has more than; the rest is -1")] = 100
    rescale: Annotated[
        Weight, Field(description="scale the input so that its largest absolute value is this; 0 for as it is")
    ] = 0.0
    faithful: Annotated[bool, Field(description="the published networks and training, with their quirks")] = False

    @property
    def batches(self) -> Any:
        """Needed for ``lambda_b``, which corrects for batches, and else unused."""
        return "needed" if self.lambda_b else "unused"

    @property
    def instead_of_batches(self) -> str:
        """Zero is the default of ``lambda_b``."""
        return "set lambda_b=0.1 (--set lambda_b=0.1), which corrects for them, or leave batch_key out"

    @property
    def defaults(self) -> dict[str, Any]:
        """The published step and batch; clusters settle slowly, and ``faithful=True`` trains for a fixed time."""
        published: dict[str, Any] = {"batch_size": 256, "learning_rate": 1e-3}
        if self.lambda_c:
            published |= {"patience": 30, "reduce_lr_patience": 0}
        if self.faithful:
            published |= {"max_epochs": 100, "valid_fraction": 0.0, "early_stopping": False, "keep_best": False}
            published |= {"reduce_lr_patience": 0, "clip_norm": 0.0}
        return {**super().defaults, **published}

    def model_post_init(self, context: Any, /) -> None:
        """Refuse penalties that have nothing to act on."""
        if self.lambda_d and not self.lambda_c:
            what = f"lambda_d = {self.lambda_d:g} draws cells together within clusters, and lambda_c = 0 makes none"
            remedy = "set lambda_c too (the author's rule: lambda_d about 2 * lambda_c), or lambda_d=0"
            raise ConfigError("bad-value", what, "SAUCIEConfig.lambda_d", remedy)
        if self.reference is not None and not self.lambda_b:
            what = f"reference = {self.reference!r}, but lambda_b = 0 corrects no batches"
            remedy = "set lambda_b (such as 0.1) and batch_key, or leave reference out"
            raise ConfigError("bad-value", what, "SAUCIEConfig.reference", remedy)
        if self.faithful and self.lambda_b and self.lambda_c:
            what = "the published network cannot have lambda_b and lambda_c at once: its cluster layer is negative then"
            raise ConfigError("bad-value", what, "SAUCIEConfig.faithful", "set faithful=False, or one of them to 0")


class SAUCIENetwork(nn.Module):
    """Encoder, decoder, the four terms and the clusters; see :mod:`anncoder.models` for the interface.

    The reconstruction error is a mean over cells and genes, on the scale of the network input; the other terms are of
    a minibatch as a whole.
    """

    factor: Tensor
    codebook: Tensor | None
    n_clusters: Tensor
    largest_activation: Tensor
    n_whole: Tensor

    def __init__(self, config: SAUCIEConfig, shape: Shape, noise: Noise) -> None:
        super().__init__()
        self.config, widths = config, config.n_hidden
        names, self.n_batches = list(shape.batch_names), shape.n_batches
        if config.reference is not None and config.reference not in names:
            raise unknown_key(config.reference, names, where="reference (a batch)")
        self.reference = 0 if config.reference is None else names.index(config.reference)
        self.inputs = LogNormalize(config.transform)
        self.standardize = Standardize(shape.n_vars, scaled=False)
        self.register_buffer("factor", torch.ones(()))
        first = nn.Sigmoid() if config.faithful and not (config.lambda_b or config.lambda_c) else nn.LeakyReLU(SLOPE)
        self.first = SparseLinear(shape.n_vars, widths[0], noise)
        self.encoder = nn.Sequential(first, *_hidden(widths, noise), linear(widths[-1], config.n_latent, noise))
        mirrored = (config.n_latent, *reversed(widths))
        last = nn.ReLU() if config.lambda_c else nn.LeakyReLU(SLOPE)
        self.decoder = nn.Sequential(*_hidden(mirrored, noise)[:-1], last)  # to the cluster layer
        self.output = linear(widths[0], shape.n_vars, noise)
        n_bytes = -(-widths[0] // 8)
        codes = torch.zeros(MOST_CLUSTERS, n_bytes, dtype=torch.uint8) if config.lambda_c else None
        self.register_buffer("codebook", codes)
        self.register_buffer("n_clusters", torch.zeros((), dtype=torch.int64))
        self.register_buffer("largest_activation", torch.ones(()))
        self._cells: Loader | None = None  # the fitted cells, from start_from to finish, to find clusters in
        # cells in a whole minibatch: the last one of an epoch may have fewer
        self.register_buffer("n_whole", torch.zeros((), dtype=torch.int64))

    def start_from(self, summary: Summary, cells: Loader) -> None:
        """Set the scale of the input, centre it, and start the output at the mean expression of each gene."""
        values = (self.inputs(batch).values for batch in cells.epoch(0))
        largest = max((float(v.abs().max()) for v in values if len(v)), default=0.0)
        if self.config.rescale and largest:
            self.factor.fill_(self.config.rescale / largest)
        elif largest > LARGEST_INPUT:
            logger.warning(
                "the input reaches %.3g; SAUCIE's penalties are meant for values within -%g and %g: rescale=%g",
                *(largest, LARGEST_INPUT, LARGEST_INPUT, LARGEST_INPUT),
            )
        if not self.config.faithful:
            self.standardize.mean.copy_(summary.x_mean * self.factor)
            with torch.no_grad():
                self.output.bias.copy_(summary.x_mean * self.factor)
        self._cells = cells if self.config.lambda_c else None  # a reference keeps the data in memory

    @torch.no_grad()
    def finish(self, batch: Batch) -> None:
        """Look for the clusters: patterns of active units that more than ``min_cells`` of the fitted cells share."""
        if self.codebook is None or self._cells is None:
            return
        self.largest_activation.fill_(max(float(self._activations(part).max()) for part in self._each_batch()))
        found: Counter[bytes] = Counter()
        for part in self._each_batch():
            found.update(self._codes(part))
        # the largest first; among equal ones an order that does not depend on that of the cells
        ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        clusters = [code for code, n_cells in ranked if n_cells > self.config.min_cells][:MOST_CLUSTERS]
        for i, code in enumerate(clusters):
            self.codebook[i] = torch.tensor(list(code), dtype=torch.uint8)
        self.n_clusters.fill_(len(clusters))
        self._cells = None

    def forward(self, batch: Batch) -> Loss:
        """Return the reconstruction error and the penalties that are switched on."""
        config, x = self.config, self._input(batch)
        latent = self._encode(x)
        activations = self.decoder(latent)
        reconstruction = self.output(activations)
        if config.lambda_b:
            codes = self._batch_codes(batch)
            terms = {
                "reconstruction": reference_error(x.to_dense(), reconstruction, codes, self.reference),
                "batch": config.lambda_b * batch_discrepancy(latent, codes),
            }
        else:
            terms = {"reconstruction": squared_error(x, reconstruction).mean() / x.n_vars}
        if config.lambda_c:
            terms["entropy"] = config.lambda_c * usage_entropy(activations)
        if config.lambda_d:
            terms["within_clusters"] = config.lambda_d * within_clusters(x.to_dense(), activations)
        return Loss.of(terms)

    def encode(self, batch: Batch) -> Tensor:
        """Return the latent, (b, k)."""
        return self._encode(self._input(batch))

    def denoise(self, batch: Batch) -> Tensor:
        """Return the reconstruction at the median library size, (b, g); with ``lambda_b`` as in the reference batch."""
        decoded = self.output(self.decoder(self.encode(batch)))
        return self.inputs.inverse(decoded / self.factor)

    def clusters(self, batch: Batch) -> Tensor:
        """Return the cluster of each cell, (b,) int64; -1 for a cell outside of all clusters."""
        assert self.codebook is not None
        known = {bytes(code.tolist()): i for i, code in enumerate(self.codebook[: int(self.n_clusters)].cpu())}
        return torch.tensor([known.get(code, -1) for code in self._codes(batch)])

    def _input(self, batch: Batch) -> CSR:
        x: CSR = self.inputs(batch)
        return x.with_values(x.values * self.factor)

    def _encode(self, x: CSR) -> Tensor:
        latent: Tensor = self.encoder(self.first(x, self.standardize.mean))
        return latent

    def _activations(self, batch: Batch) -> Tensor:
        activations: Tensor = self.decoder(self.encode(batch))
        return activations

    def _codes(self, batch: Batch) -> list[bytes]:
        active = self._activations(batch) > ACTIVE * self.largest_activation
        return [code.tobytes() for code in np.packbits(active.cpu().numpy(), axis=1)]

    def _each_batch(self) -> Any:
        assert self._cells is not None
        device = self.output.bias.device
        return (batch.to(device) for batch in self._cells.epoch(0))

    def _batch_codes(self, batch: Batch) -> Tensor:
        assert batch.batch_code is not None
        if self.training:
            # in evaluation, and in the smaller last minibatch of an epoch, the batches present are compared
            self.n_whole.clamp_(min=len(batch.rows))
            if len(batch.rows) == int(self.n_whole):
                _refuse_empty(batch.batch_code, self.n_batches)
        return batch.batch_code


def reference_error(x: Tensor, reconstruction: Tensor, codes: Tensor, reference: int) -> Tensor:
    """Return the squared error of the reference batch, and 0.01 of that of the others, each gene standardised, ().

    The others may thus move and scale in the output, but keep what differs between their cells. Several others are
    averaged. Input and reconstruction are (b, g), the codes of the cells' batches (b,) int64.
    """
    error, others = x.sum() * 0, []
    for code in torch.bincount(codes).nonzero().ravel().tolist():
        mine = codes == code
        if code == reference:
            error = (reconstruction[mine] - x[mine]).square().mean()
        else:
            others.append((_standardized(reconstruction[mine]) - _standardized(x[mine])).square().mean())
    return error + OTHER_BATCHES * torch.stack(others).mean() if others else error


def _standardized(values: Tensor) -> Tensor:
    # genes that do not vary (much) stay near zero
    centred = values - values.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + 1e-4).sqrt()


def _hidden(widths: tuple[int, ...], noise: Noise) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [linear(n_in, n_out, noise), nn.LeakyReLU(SLOPE)]
    return layers


def _refuse_empty(codes: Tensor, n_batches: int) -> None:
    if int(torch.bincount(codes, minlength=n_batches).min()) == 0:
        what = f"a minibatch of {len(codes)} cells has none of some experimental batch: there is nothing to compare"
        remedy = "raise batch_size, so that every minibatch has cells of each, or leave out the small batches"
        raise InputError("empty-batch-group", what, "batch_key", remedy)


class Clusters(NamedTuple):
    """The clusters of some cells."""

    labels: np.ndarray[Any, np.dtype[np.int64]]  # (n_obs,) from 0, the largest of the fitted cells first; -1 for none
    n_clusters: int  # clusters of the model, -1 not counted
    pct_assigned: float  # cells in a cluster, in percent


class SAUCIE(Autoencoder):
    """A two-dimensional picture, batch correction, clusters and denoised expression from one network.

    Amodio et al. 2019, doi 10.1038/s41592-019-0576-7, written from the published objective; see docs/models/saucie.md.

    Parameters
    ----------
    n_latent
        Number of latent units: two, to be looked at.
    n_hidden
        Widths of the encoder's hidden layers, at least one; the decoder mirrors them, and its last layer, as wide as
        the first of these, makes the clusters.
    lambda_b
        Weight of the maximum mean discrepancy between experimental batches in the latent, a mean over the pairs of
        them; such as 0.1, with ``fit(..., batch_key=COLUMN)``. ``denoise`` then gives expression as in the reference.
    lambda_c
        Weight of the entropy of the use of the cluster layer's units, such as 0.1; more makes fewer clusters, 0 none.
    lambda_d
        Weight of the distances within clusters, about twice ``lambda_c``, which it needs.
    reference
        Name of the batch that the others are corrected to; None for the first in alphabetical order.
    min_cells
        A pattern of active units that more than so many of the fitted cells have is a cluster (the publication's
        ``binmin``).
    rescale
        Multiply the input so that its largest absolute value is this; the author's rule for the penalties is 10 at
        most. 0 for as it is. Results are on the scale of the data.
    transform
        ``"log1p"``: the data are raw counts and are log-normalised here. ``"none"``: they are expression values or
        principal components.
    faithful
        The publication's three networks (a sigmoid after the first layer of the one without penalties), input that is
        not centred, and training on all cells for a fixed time; not for ``lambda_b`` and ``lambda_c`` at once.
    """

    name = "saucie"
    config_class, network_class = SAUCIEConfig, SAUCIENetwork
    cell_results = ("cluster",)
    config: SAUCIEConfig

    def __init__(
        self,
        *,
        n_latent: int = 2,
        n_hidden: tuple[int, ...] = (512, 256, 128),
        lambda_b: float = 0.0,
        lambda_c: float = 0.0,
        lambda_d: float = 0.0,
        reference: str | None = None,
        min_cells: int = 100,
        rescale: float = 0.0,
        transform: TransformName = "log1p",
        faithful: bool = False,
    ) -> None:
        super().__init__(SAUCIEConfig(**arguments(locals())))

    def clusters(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> Clusters:
        """Return the cluster of each cell, among the clusters of the fitted cells.

        Parameters
        ----------
        data
            AnnData or path; genes are matched by name.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.

        Raises
        ------
        ConfigError
            The model was made without ``lambda_c``.
        """
        network = self._network()
        if not self.config.lambda_c:
            remedy = "fit SAUCIE(lambda_c=0.1, lambda_d=0.2), or cluster the latent: sc.tl.leiden(adata)"
            raise ConfigError("no-clusters", "the model makes no clusters: lambda_c = 0", "lambda_c", remedy)
        labels = self._apply(data, network.clusters, layer, allow_missing)
        if (labels < 0).all():
            logger.warning(
                "no cell is in a cluster (all are -1): no code is shared by more than min_cells = %d cells. Lower "
                "min_cells (--set min_cells=%d), change lambda_c and lambda_d, or cluster the latent: sc.tl.leiden",
                self.config.min_cells,
                max(self.config.min_cells // 10, 1),
            )
        return Clusters(labels.astype(np.int64), int(network.n_clusters), 100 * float((labels >= 0).mean()))

    def of_cells(
        self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Return ``cluster``, (n_obs,) text with "-1" for none, if the model makes clusters.

        Parameters
        ----------
        data
            AnnData or path; genes are matched by name.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.
        """
        if not self.config.lambda_c:
            return {}
        labels = self.clusters(data, layer=layer, allow_missing=allow_missing).labels
        return {"cluster": labels.astype(str).astype(object)}


MODEL = SAUCIE
