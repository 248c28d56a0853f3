"""net-SNE: parametric t-SNE, a network that maps new cells into the picture.

A reimplementation of the published objective: Cho, Berger, Peng 2018, doi 10.1016/j.cels.2018.05.017, whose target is
that of van der Maaten & Hinton 2008, JMLR 9:2579. It is no autoencoder: nothing is reconstructed.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from anncoder.config import HiddenWidths, LatentUnits, NetworkConfig, Steps, TransformName, Weight, arguments
from anncoder.errors import InputError
from anncoder.models.base import Autoencoder
from anncoder.nn.inputs import LogNormalize, Projection
from anncoder.nn.layers import ACTIVATIONS, rows_of
from anncoder.nn.tsne import affinities, joint_affinities, squared_distances, without_self
from anncoder.types import Batch, Loader, Loss, Noise, Shape, Summary

FLAT = 1e-4  # standard deviation below which an input is not divided by it
COLUMNS = 1024  # cells that a part of the data is held against, to estimate the sum over all pairs


class NetsneConfig(NetworkConfig):
    """Hyper-parameters of :class:`anncoder.NetSNE`."""

    decodes: ClassVar[bool] = False
    loss_unit: ClassVar[str] = ""  # a divergence of neighbours, or a squared distance

    n_latent: LatentUnits = 2
    n_hidden: HiddenWidths = (50, 50)
    activation: Annotated[Literal["relu", "sigmoid"], Field(description="activation of the hidden layers")] = "relu"
    n_pcs: Annotated[
        int | None,
        Field(ge=0, le=4096, description="principal components read; 0 for the genes; null: 50 of counts, else 0"),
    ] = None
    perplexity: Annotated[float, Field(gt=1, le=1e4, description="neighbours of a cell, in effect")] = 30.0
    exaggeration: Annotated[float, Field(ge=1, le=1e3, description="factor of the affinities at first")] = 12.0
    exaggeration_steps: Annotated[Steps, Field(description="training steps that this lasts")] = 250
    n_local: Annotated[
        int, Field(ge=1, le=1024, description="neighbours drawn of each cell, where minibatches are parts of the data")
    ] = 20
    l2: Annotated[Weight, Field(description="L2 penalty on the weights")] = 0.0
    target: Annotated[
        str | None, Field(description="slot of obsm with coordinates to learn, instead of the t-SNE objective")
    ] = None

    @property
    def n_components(self) -> int:
        """Number of principal components, 0 for none."""
        if self.n_pcs is None:
            return 50 if self.reads_counts else 0
        return self.n_pcs

    @property
    def fewest_cells(self) -> int:
        """A cell must have more neighbours than the perplexity; coordinates are learned cell by cell."""
        return 2 if self.target is not None else math.floor(self.perplexity) + 2

    @property
    def fits_slot(self) -> str | None:
        """The slot of obsm whose coordinates are learned."""
        return self.target

    @property
    def defaults(self) -> dict[str, Any]:
        """1,000 steps to the end, of all cells up to 5,000; Adam's published step of 0.02 is 0.0063 of torch's."""
        return {
            **super().defaults,
            "max_epochs": 1000,
            "max_steps": 1000,
            "batch_size": 5000,
            "learning_rate": 6.3e-3,
            "clip_norm": 0.0,
            "valid_fraction": 0.0,
            "early_stopping": False,
            "keep_best": False,
            "reduce_lr_patience": 0,
        }


class FittedCells(NamedTuple):
    """The fitted cells before training: N of them, with E pairs of neighbours (in both directions)."""

    position: Tensor  # (n,) place of each cell of the data among them, -1 for none
    inputs: Tensor  # (N, d) input of the encoder
    starts: Tensor  # (N + 1,) of each cell's pairs
    neighbours: Tensor  # (E,)
    p: Tensor  # (E,) joint probability, 1 in sum
    negentropy: Tensor  # () sum of p log p

    def among(self, rows: Tensor) -> Tensor:
        """Return the positions of cells of the data among the fitted ones, (b,); -1 for others."""
        known = rows < len(self.position)
        return torch.where(known, self.position[rows.clamp(max=len(self.position) - 1)], -1)


class NetsneNetwork(nn.Module):
    """Encoder and t-SNE objective; see :mod:`anncoder.models` for the interface.

    The fitted cells are not part of its state: they are neither saved nor kept after the fit.
    """

    mean: Tensor
    scale: Tensor
    steps: Tensor

    def __init__(self, config: NetsneConfig, shape: Shape, noise: Noise) -> None:
        super().__init__()
        self.config, self.noise = config, noise
        self.inputs = LogNormalize(config.transform)
        self.projection = Projection(shape.n_vars, config.n_components)
        widths = [self.projection.n_out, *config.n_hidden]
        parts = [(normal_linear(a, b, noise), ACTIVATIONS[config.activation]()) for a, b in pairwise(widths)]
        output = normal_linear(widths[-1], config.n_latent, noise, bias=False)
        self.encoder = nn.Sequential(*(layer for pair in parts for layer in pair), output)
        self.register_buffer("mean", torch.zeros(widths[0]))
        self.register_buffer("scale", torch.ones(widths[0]))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.fitted: FittedCells | None = None
        self.target: Tensor | None = None

    @torch.no_grad()
    def start_from(self, summary: Summary, cells: Loader) -> None:
        """Find components, moments and, unless coordinates are given, the neighbours of the fitted cells."""
        device = self.mean.device
        self.projection.start_from(cells, self.inputs)
        rows, scores = [], []
        for batch in cells.epoch(0):
            rows.append(batch.rows)
            scores.append(self.projection(self.inputs(batch.to(device))))
        x = torch.cat(scores)
        std = x.double().std(dim=0, correction=0) if x.device.type != "mps" else x.std(dim=0, correction=0)
        self.mean.copy_(x.mean(dim=0))
        self.scale.copy_(torch.where(std > FLAT, std, 1))
        if summary.target is not None:
            if summary.target.shape[1] != self.config.n_latent:
                where, n_axes = f"obsm[{self.config.target!r}]", summary.target.shape[1]
                what = f"{where} has {n_axes} axes, and n_latent = {self.config.n_latent}"
                raise InputError("bad-coordinates", what, where, f"set n_latent={n_axes}")
            self.target = summary.target.to(device)
            return
        p = joint_affinities(x.cpu().numpy(), self.config.perplexity)
        place = torch.cat(rows)
        position = torch.full((int(place.max()) + 1,), -1)
        position[place] = torch.arange(len(place))
        starts, neighbours, values = (torch.from_numpy(array) for array in (p.indptr, p.indices, p.data))
        pairs = (starts.long(), neighbours.long(), values.float(), torch.xlogy(values, values).sum().float())
        self.fitted = FittedCells(*(array.to(device) for array in (position, self.standardized(x), *pairs)))

    def finish(self, batch: Batch) -> None:
        """Drop the fitted cells."""
        self.fitted = self.target = None

    def forward(self, batch: Batch) -> Loss:
        """Return the divergence of the picture's neighbours from the data's, or the distance from given coordinates.

        For cells that are not all among the fitted, it is the divergence among the cells of the minibatch.
        """
        if self.target is not None:
            distance = (self.encode(batch) - self.target[batch.rows]).square().sum(dim=1)
            terms = {"regression": distance.mean()}
        else:
            terms = self._divergence(batch)
        if self.config.l2:
            weights = [w.square().sum() for w in self.parameters() if w.dim() == 2]
            terms["l2"] = self.config.l2 * torch.stack(weights).sum()
        return Loss.of(terms)

    def encode(self, batch: Batch) -> Tensor:
        """Return the place of each cell in the picture, (b, k)."""
        place: Tensor = self.encoder(self.standardized(self.scores(batch)))
        return place

    def scores(self, batch: Batch) -> Tensor:
        """Return the principal components, or the expression, of each cell, (b, d)."""
        scores: Tensor = self.projection(self.inputs(batch))
        return scores

    def standardized(self, scores: Tensor) -> Tensor:
        """Return the input of the encoder, (b, d)."""
        return (scores - self.mean) / self.scale

    def _divergence(self, batch: Batch) -> dict[str, Tensor]:
        fitted = self.fitted
        places = None if fitted is None else fitted.among(batch.rows)
        if fitted is None or places is None or bool((places < 0).any()):
            negentropy, attraction, repulsion = self._among_themselves(batch)
        elif len(places) == len(fitted.inputs):
            negentropy, attraction, repulsion = self._of_all(fitted)
        else:
            negentropy, attraction, repulsion = self._of_some(fitted, places, int(batch.rows[0]))
        terms = {"kl": negentropy + attraction + repulsion}
        if self.training:
            self.steps += 1
            factor = torch.where(self.steps <= self.config.exaggeration_steps, self.config.exaggeration - 1, 0.0)
            terms["exaggeration"] = factor * attraction
        return terms

    def _of_all(self, fitted: FittedCells) -> tuple[Tensor, Tensor, Tensor]:
        places = self.encoder(fitted.inputs)
        rows = torch.repeat_interleave(fitted.starts.diff())
        apart = rows_of(places, rows) - rows_of(places, fitted.neighbours)
        attraction = (fitted.p * stretched(apart)).sum()
        return fitted.negentropy, attraction, log_similarities(places, places)

    def _of_some(self, fitted: FittedCells, chosen: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        # attraction to a few neighbours of each cell, repulsion among the cells of the minibatch: unbiased, but for the
        # logarithm of a mean over millions of pairs
        n_fitted, n_chosen, n_local = len(fitted.inputs), len(chosen), self.config.n_local
        generator = (self.noise if self.training else Noise(self.noise.seed + first)).on(chosen.device)
        degree = fitted.starts.diff()[chosen].unsqueeze(1)
        draws = torch.empty(n_chosen, n_local, device=chosen.device).uniform_(generator=generator)
        pairs = fitted.starts[chosen].unsqueeze(1) + (draws * degree).long().clamp(max=degree - 1)
        places = self.encoder(fitted.inputs[chosen])
        others = self.encoder(fitted.inputs[fitted.neighbours[pairs]])
        pulls = fitted.p[pairs] * degree * stretched(places.unsqueeze(1) - others)
        attraction = pulls.sum() * (n_fitted / (n_chosen * n_local))
        columns = places[:COLUMNS]
        n_pairs = (n_chosen - 1) * len(columns)
        repulsion = log_similarities(places, columns) + math.log(n_fitted * (n_fitted - 1) / max(n_pairs, 1))
        return fitted.negentropy, attraction, repulsion

    def _among_themselves(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.scores(batch)
        n, perplexity = len(scores), self.config.perplexity
        if n < 2:
            nothing = scores.sum() * 0
            return nothing, nothing, nothing
        p = affinities(without_self(squared_distances(scores)), min(perplexity, max((n - 1) / 3, 1.0)))
        p = (p + p.T) / (2 * n)
        places = self.encoder(self.standardized(scores))
        attraction = (p * squared_distances(places).log1p()).sum()
        return torch.xlogy(p, p).sum(), attraction, log_similarities(places, places)


def normal_linear(n_in: int, n_out: int, noise: Noise, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer with normal weights of variance 2 / n_in, and biases 0 if it has any."""
    device = torch.get_default_device()
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=bias, device=device)  # type: ignore[no-untyped-call]
    if not layer.weight.is_meta:
        with torch.no_grad():
            layer.weight.normal_(0, math.sqrt(2 / n_in), generator=noise.on(layer.weight.device))
            if bias:
                layer.bias.zero_()
    return layer


def stretched(difference: Tensor) -> Tensor:
    """Return ``log(1 + d^2)`` of (..., k) differences of places, (...)."""
    return difference.square().sum(dim=-1).log1p()


def log_similarities(places: Tensor, columns: Tensor) -> Tensor:
    """Return the logarithm of the sum of ``1 / (1 + d^2)`` over pairs of different cells, ().

    The pairs are of (n, k) places of cells in the picture with the first m of them, (m, k).
    """
    centre = places.detach().mean(dim=0)
    a, b = places - centre, columns - centre
    distances = torch.addmm(a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1), a, b.T, alpha=-2)
    similarities = 1 / (1 + distances.clamp(min=0))
    return (similarities.sum() - similarities.diagonal().sum()).log()


class NetSNE(Autoencoder):
    """A parametric t-SNE: a network that learns the picture, and places new cells in it at once.

    A reimplementation of the published objective of net-SNE (Cho, Berger, Peng 2018,
    doi 10.1016/j.cels.2018.05.017). It has no decoder: :meth:`embed` is all it does, :meth:`denoise` is refused.

    Parameters
    ----------
    n_latent
        Number of axes of the picture.
    n_hidden
        Widths of the hidden layers.
    activation
        ``"relu"`` or ``"sigmoid"``, of the hidden layers.
    n_pcs
        Number of principal components of the network input that are read, found before training and saved with the
        model; 0 for the genes themselves. None: 50 for counts, 0 for ``transform="none"``.
    perplexity
        Number of neighbours of a cell, in effect.
    exaggeration, exaggeration_steps
        Factor of the affinities in the first training steps, and how many.
    n_local
        Neighbours drawn of each cell in a step, where minibatches are parts of the data. With ``batch_size`` at least
        the number of cells (5,000 unless it is given) the objective is exact, and nothing is drawn.
    target
        Slot of obsm, such as ``"X_tsne"`` or ``"X_umap"``, with coordinates to learn: the network is then fitted to
        these by regression, and places new cells in a picture that exists already.
    l2
        Penalty on the squared weights.
    transform
        ``"log1p"``: the data are raw counts and are log-normalised here; ``"normalize"``: the same without the
        logarithm. ``"none"``: they are read as they are, such as PCA scores.
    """

    name = "netsne"
    config_class, network_class = NetsneConfig, NetsneNetwork

    def __init__(
        self,
        *,
        n_latent: int = 2,
        transform: TransformName = "log1p",
        n_hidden: tuple[int, ...] = (50, 50),
        activation: Literal["relu", "sigmoid"] = "relu",
        n_pcs: int | None = None,
        perplexity: float = 30.0,
        exaggeration: float = 12.0,
        exaggeration_steps: int = 250,
        n_local: int = 20,
        l2: float = 0.0,
        target: str | None = None,
    ) -> None:
        super().__init__(NetsneConfig(**arguments(locals())))


MODEL = NetSNE
