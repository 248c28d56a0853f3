"""Types that pass between rooms: CSR, Batch, LinearOutput, Loss, Summary, Loader, Noise.

``Batch`` and ``Loss`` are NamedTuples, not dictionaries: a wrong name fails where it is written, and
``DistributedDataParallel`` and ``torch.compile`` can traverse them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear


class CSR(NamedTuple):
    """A sparse (b, g) matrix by rows: entries ``indptr[i]:indptr[i+1]`` belong to row i.

    Column indices are sorted and unique within a row wherever the library makes one from data.
    """

    indptr: Tensor  # (b + 1,) int64
    indices: Tensor  # (nnz,) int64, column of each stored value
    values: Tensor  # (nnz,) floating
    n_vars: int  # g

    @property
    def n_rows(self) -> int:
        """Number of rows, b."""
        return self.indptr.shape[0] - 1

    def rows(self) -> Tensor:
        """Return the row of every stored value, (nnz,) int64."""
        every = torch.arange(self.n_rows, device=self.indptr.device)
        # with output_size, a GPU is not waited for
        return torch.repeat_interleave(every, self.indptr.diff(), output_size=self.indices.numel())

    def flat(self) -> Tensor:
        """Return the position of every stored value in the row-major dense matrix, (nnz,) int64."""
        return self.rows() * self.n_vars + self.indices

    def changeable(self) -> tuple[Tensor, ...]:
        """Return the tensors to save for a backward pass, so that autograd notices changes; none of inference mode."""
        return tuple(t for t in self[:3] if not t.is_inference())

    def with_values(self, values: Tensor) -> CSR:
        """Return the same sparsity pattern with other values, (nnz,)."""
        return self._replace(values=values)

    def row_sums(self) -> Tensor:
        """Return the sum of each row, (b,)."""
        out = self.values.new_zeros(self.n_rows)
        return out.index_add_(0, self.rows(), self.values)

    def to_dense(self) -> Tensor:
        """Return the dense (b, g) matrix; only where the mathematics needs one."""
        out = self.values.new_zeros(self.n_rows, self.n_vars)
        out.view(-1)[self.flat()] = self.values
        return out

    def head(self, n: int) -> CSR:
        """Return the first n rows, or all if there are fewer."""
        indptr = self.indptr[: n + 1]
        return CSR(indptr, self.indices[: int(indptr[-1])], self.values[: int(indptr[-1])], self.n_vars)

    def to(self, device: torch.device) -> CSR:
        """Return the matrix on another device."""
        return CSR(self.indptr.to(device), self.indices.to(device), self.values.to(device), self.n_vars)


class Batch(NamedTuple):
    """b cells of one minibatch."""

    counts: CSR  # (b, g) raw counts (or expression values, for models of expression)
    size_factor: Tensor  # (b,) library size / median library size of the fitted data, > 0
    rows: Tensor  # (b,) int64 position of each cell in the data
    batch_code: Tensor | None = None  # (b,) int64 experimental batch, for the models that use it
    covariates: Tensor | None = None  # (b, c) of other columns, centred: 0 is the average of the fitted cells
    label: Tensor | None = None  # (b,) int64 label of ``label_key``, -1 for unknown, in a fit

    def head(self, n: int) -> Batch:
        """Return the first n cells, or all if there are fewer."""
        code = None if self.batch_code is None else self.batch_code[:n]
        covariates = None if self.covariates is None else self.covariates[:n]
        label = None if self.label is None else self.label[:n]
        return Batch(self.counts.head(n), self.size_factor[:n], self.rows[:n], code, covariates, label)

    def to(self, device: torch.device) -> Batch:
        """Return the minibatch on another device."""
        code = None if self.batch_code is None else self.batch_code.to(device)
        covariates = None if self.covariates is None else self.covariates.to(device)
        label = None if self.label is None else self.label.to(device)
        rows, size_factor = self.rows.to(device), self.size_factor.to(device)
        return Batch(self.counts.to(device), size_factor, rows, code, covariates, label)


class LinearOutput(NamedTuple):
    """An output layer with its product not yet computed: ``hidden @ weight.T + bias``, (b, g).

    A likelihood computes it by blocks of cells and puts the gradient in the place of each: the dense (b, g) matrix is
    never in memory as a whole.
    """

    hidden: Tensor  # (b, h)
    weight: Tensor  # (g, h)
    bias: Tensor  # (g,)

    def materialize(self) -> Tensor:
        """Return the product, (b, g)."""
        return linear(self.hidden, self.weight, self.bias)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and of genes, (b, g)."""
        return self.hidden.shape[0], self.weight.shape[0]


def materialize(parameter: Tensor | LinearOutput) -> Tensor:
    """Return a parameter as a tensor, with its product computed if it is an output layer."""
    return parameter.materialize() if isinstance(parameter, LinearOutput) else parameter


class Loss(NamedTuple):
    """Result of a network's ``forward``; ``total`` is the sum of ``terms``, each a mean over the cells."""

    total: Tensor  # (), differentiable
    terms: dict[str, Tensor]  # () each, detached, by name

    @classmethod
    def of(cls, terms: dict[str, Tensor]) -> Loss:
        """Return the loss with these terms, () each."""
        total, *others = terms.values()
        for term in others:
            total = total + term
        return cls(total, {name: term.detach() for name, term in terms.items()})


class Shape(NamedTuple):
    """Numbers of genes, experimental batches, covariates and labels, which decide the shapes of a network."""

    n_vars: int  # genes, g
    n_batches: int = 0  # experimental batches; 0 where none are given
    batch_names: tuple[str, ...] = ()  # their names, in the order of their codes
    n_covariates: int = 0  # columns of ``Batch.covariates``
    n_labels: int = 0  # labels of ``label_key``; 0 where none are given


class Summary(NamedTuple):
    """Moments of the fitted cells, from one pass before training; g genes, float32 tensors."""

    n_obs: int  # number of fitted cells
    smallest: float  # smallest value of the data
    library_size: float  # median library size: the scale of "normalized" expression
    gene_mean: Tensor  # (g,) mean of counts / size_factor
    gene_var: Tensor  # (g,) variance of counts / size_factor
    x_mean: Tensor  # (g,) mean of the network input
    x_std: Tensor  # (g,) standard deviation of the network input, 1 where it is 0
    n_steps: int = 0  # minibatches in an epoch, for a warm-up over epochs
    target: Tensor | None = None  # (n, d) coordinates to fit to, of each cell of the data by ``Batch.rows``
    sample: Batch | None = None  # some of the fitted cells, at random, on the CPU
    inverse_size: float = 1.0  # mean of 1 / size_factor: how much wider counts / size_factor are than counts


class Loader(Protocol):
    """Minibatches of one set of rows, epoch by epoch."""

    n_obs: int

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield every row once, in the order that belongs to this epoch."""
        ...

    def __len__(self) -> int:
        """Return the number of minibatches in an epoch."""
        ...


class Rank(NamedTuple):
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1


SINGLE = Rank()


class Noise:
    """A network's own random stream, on the device of its tensors.

    All layers that draw random numbers share it; no global random state is read or changed.

    Parameters
    ----------
    seed
        Start of the stream.
    """

    def __init__(self, seed: int) -> None:
        self.seed = self._start = seed
        self._streams: dict[torch.device, torch.Generator] = {}

    def on(self, device: torch.device) -> torch.Generator:
        """Return the generator of a device, made at first use."""
        if device.type == "meta":  # draws nothing, and its operations accept a generator of the CPU
            return torch.Generator("cpu").manual_seed(self.seed)
        if device not in self._streams:
            self._streams[device] = torch.Generator(device).manual_seed(self._start)
        return self._streams[device]

    def seed_for_rank(self, rank: int) -> None:
        """Give the streams of every process but the first, rank 0, seeds of their own."""
        if rank:  # hashed into the 32 bits that torch's generator on the CPU uses
            self._start = int(np.random.SeedSequence([self.seed, rank]).generate_state(1)[0])
            for generator in self._streams.values():
                generator.manual_seed(self._start)

    def state(self) -> dict[str, Tensor]:
        """Return the state of the stream on each kind of device, (k,) uint8, for :meth:`restore`."""
        return {device.type: generator.get_state() for device, generator in self._streams.items()}

    def restore(self, states: dict[str, Tensor], device: torch.device) -> None:
        """Set the streams of the CPU and of ``device`` to the states of :meth:`state`."""
        for here in {torch.device("cpu"), device}:
            if here.type in states:
                self.on(here).set_state(states[here.type])
