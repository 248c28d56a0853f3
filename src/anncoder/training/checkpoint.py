"""Checkpoints: the state of an unfinished fit in a file, and resume to the same bits.

The file is safetensors: weights, best weights, the optimizer's moments, sums of losses, random streams; numbers and
history are JSON in its header, with a sha256 of everything. No pickle. One process stores its state after any
minibatch, several after an epoch. The order of the cells is a function of the seed and the epoch, so the position is
the number of minibatches done; for readers with an order of their own, which differs between passes, the state is
stored after an epoch only. A state is resumed by the same run alone: same model, settings and data (:func:`run_of`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from anncoder.config import NetworkConfig, TrainingConfig
from anncoder.data.sources import Source
from anncoder.data.split import Split
from anncoder.errors import ConfigError, FileError, listed
from anncoder.io.atomic import atomic_path, writable_folder
from anncoder.training.distributed import gathered, sent, summed
from anncoder.training.loop import RunningMean, State
from anncoder.training.prepare import TrainingData
from anncoder.types import Noise, Rank

logger = logging.getLogger("anncoder")

NAME = "checkpoint.safetensors"
SCHEMA = 2
HASHED = (
    "gene names",
    "library sizes",
    "gene means",
    "batch codes",
    "covariates",
    "labels",
    "coordinates to fit to",
    "cells held out",
)
ELSEWHERE = ("device", "threads", "cuda_graph")  # settings of where and how to compute, not of the result
EARLY_STOPPING = ("best", "best_epoch", "mark", "waited", "waited_at_rate")  # numbers of EarlyStopping
EVERY = 10.0  # seconds between checkpoints, at least,
COST = 0.02  # and share of the time spent on writing them, at most


class Checkpoint(NamedTuple):
    """Where and how to store the state of a fit; ``fit(checkpoint="folder")`` is ``Checkpoint(Path("folder"))``."""

    folder: Path
    resume: bool | None = True  # refuse the state of another run; None: start anew then; False: always start anew
    remove: bool = True  # when the fit is over
    stops: Callable[[], bool] | None = None  # asked after every minibatch: store the state now, and stop


class Stored(NamedTuple):
    """Content of a checkpoint."""

    numbers: dict[str, Any]
    tensors: dict[str, Tensor]


def checkpointer_of(
    checkpoint: str | Path | Checkpoint | None,
    run: dict[str, Any],
    noise: Noise,
    process: Rank,
    device: torch.device,
    *,
    in_order: bool = True,
) -> FitCheckpointer | None:
    """Return the :class:`FitCheckpointer` of a fit, or None if no checkpoint is asked for."""
    if isinstance(checkpoint, str | Path):
        checkpoint = Checkpoint(Path(checkpoint).expanduser())
    return None if checkpoint is None else FitCheckpointer(checkpoint, run, noise, process, device, in_order=in_order)


class FitCheckpointer:
    """Stores and restores the state of a fit; see :class:`anncoder.training.loop.Checkpointer`.

    Parameters
    ----------
    checkpoint
        Folder and policy; of several processes the first one's counts.
    run
        Identity of the run, :func:`run_of`.
    noise
        The network's random streams.
    process, device
        Rank of this process, and where the network is.
    in_order
        Whether the order of the cells is a function of the seed and the epoch.

    Raises
    ------
    ConfigError
        The folder has the checkpoint of another run.
    FileError
        The checkpoint is damaged.
    ResourceError
        The folder cannot be written.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        run: dict[str, Any],
        noise: Noise,
        process: Rank,
        device: torch.device,
        *,
        in_order: bool = True,
    ) -> None:
        self.in_order = in_order
        self.run, self.noise, self.process, self.device = run, noise, process, device
        self.path, self.remove, self.stops = checkpoint.folder / NAME, checkpoint.remove, checkpoint.stops
        self.where = {
            "device": device.type,
            "threads": torch.get_num_threads(),
            "processes": process.size,
            "anncoder": version("anncoder"),
            "torch": torch.__version__,
        }
        found = b""
        if process.rank == 0:
            writable_folder(checkpoint.folder if checkpoint.folder.exists() else checkpoint.folder.parent)
            if checkpoint.resume is not False and self.path.exists():
                found = self._read(refuses=bool(checkpoint.resume))
        found = sent(found, process, device)
        self.stored = decoded(found, self.path) if found else None
        # a folder that the user made stays after the fit, even if empty
        self._made = self.stored is not None and bool(self.stored.numbers.get("made"))
        self._last, self._took = time.perf_counter(), 0.0

    def restore(self, state: State) -> None:
        """Replace the initial state by the stored one, if there is one."""
        if self.stored is None:
            return
        numbers, tensors = self.stored
        self.stored = None  # as large as four networks
        device = next(state.network.parameters()).device
        try:
            _put_back(numbers, tensors, state, device)
            # a new process has no stored streams, and starts its own
            streams = _group(tensors, f"noise.{self.process.rank}")
            self.noise.restore({name: value.cpu() for name, value in streams.items()}, device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise damaged(self.path, str(error).splitlines()[0]) from error
        where = numbers["where"]
        changed = [name for name, value in self.where.items() if value != where.get(name)]
        if changed:
            changes = "; ".join(f"{name} {self.where[name]}, until then {where.get(name)}" for name in changed)
            logger.warning("the result may differ from that of an undisturbed run: %s", changes)

    def after_step(self, state: State) -> None:
        """Store the state if that is due (``EVERY``, ``COST``), for the first time after an epoch at the latest.

        Raises
        ------
        KeyboardInterrupt
            ``Checkpoint.stops`` asked for it; within a step the state would be inconsistent.
        """
        over = not state.mean.n_steps
        if not over and (self.process.size > 1 or not self.in_order):
            return  # within an epoch each process has running statistics of its own
        waited = time.perf_counter() - self._last
        # one of several processes cannot stop here: the others would wait for it
        stops = self.process.size == 1 and self.in_order and self.stops is not None and self.stops()
        due = stops or waited >= max(EVERY, self._took / COST) or (over and not self._took)
        if self.process.size > 1:  # the clock of the first process counts
            due = bool(summed(torch.tensor(float(due and not self.process.rank), device=self.device), self.process))
        if due and bool(state.healthy):
            began = time.perf_counter()
            self._store(state)
            self._last = time.perf_counter()
            self._took = self._last - began
        if stops:
            raise KeyboardInterrupt

    def forget(self) -> None:
        """Remove the checkpoint of a finished fit, unless the caller does (``Checkpoint.remove``)."""
        if self.remove and self.process.rank == 0:
            forget(self.path.parent)
            if self._made and self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()

    def _store(self, state: State) -> None:
        tensors = _tensors_of(state)
        for kind, stream in sorted(self.noise.state().items()):
            streams = gathered(stream, self.process, self.device)
            tensors |= {f"noise.{rank}.{kind}": value for rank, value in enumerate(streams)}
        if self.process.rank == 0:
            self._made = self._made or not self.path.parent.exists()
            numbers = _numbers_of(state) | {"schema": SCHEMA, "run": self.run, "where": self.where, "made": self._made}
            self.path.parent.mkdir(exist_ok=True)
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(encoded(numbers, tensors))

    def _read(self, *, refuses: bool) -> bytes:
        try:
            content = self.path.read_bytes()
            numbers = decoded(content, self.path).numbers
        except (OSError, FileError) as error:
            if refuses:
                raise error if isinstance(error, FileError) else damaged(self.path, str(error)) from error
            logger.warning("%s; starting anew", error.what if isinstance(error, FileError) else error)
            return b""
        other = self._differences(numbers)
        if other and refuses:
            what = f"the unfinished run in {str(self.path.parent)!r} is another one: {listed(other)}"
            remedy = "go on with its settings and data, or choose another folder (--no-resume starts anew)"
            raise ConfigError("other-run", what, str(self.path), remedy)
        if other:
            logger.warning("the unfinished run that is there is another one (%s); starting anew", listed(other))
        return b"" if other else content

    def _differences(self, numbers: dict[str, Any]) -> list[str]:
        found = differences(numbers["run"], self.run)
        if numbers["mean"]["n_steps"] and self.process.size > 1:
            found.append(f"one process was within an epoch, these are {self.process.size}")
        if numbers["mean"]["n_steps"] and not self.in_order:
            found.append("it was within an epoch of cells in another order")
        return found


def resume_note(checkpointer: FitCheckpointer | None) -> str:
    """Return the position of a resumed training, as the end of a sentence; empty at a start."""
    if checkpointer is None or checkpointer.stored is None:
        return ""
    return f"; going on after {_position(checkpointer.stored.numbers)}"


def kept_until(folder: Path) -> str:
    """Return the position of the checkpoint in a folder, ``"epoch 5 and 3 minibatches"``; empty without one."""
    try:
        return _position(decoded((folder / NAME).read_bytes(), folder / NAME).numbers)
    except (OSError, FileError):
        return ""


def _position(numbers: dict[str, Any]) -> str:
    steps = numbers["mean"]["n_steps"]
    return f"epoch {len(numbers['records'])}" + (f" and {steps:,} minibatches" if steps else "")


def forget(folder: Path) -> None:
    """Remove the checkpoint in a folder, if there is one."""
    (folder / NAME).unlink(missing_ok=True)


def encoded(numbers: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """Return the content of a checkpoint file."""
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(numbers)
    content: bytes = safetensors.torch.save(on_cpu, metadata={"state": text, "sha256": _digest(text, on_cpu)})
    return content


def decoded(content: bytes, path: Path) -> Stored:
    """Invert :func:`encoded`; a FileError if the content was cut or changed, or is of a newer schema."""
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])["__metadata__"]
        tensors = safetensors.torch.load(content)
        text, numbers = header["state"], json.loads(header["state"])
        if header["sha256"] != _digest(text, tensors):
            raise ValueError("it was changed since it was written")
        if numbers["schema"] > SCHEMA:
            raise ValueError("a newer version wrote it")
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    return Stored(numbers, tensors)


def damaged(path: Path, why: str) -> FileError:
    """Return the error for a checkpoint that must not be used."""
    remedy = "remove it, and the run starts anew (--no-resume does the same)"
    return FileError("bad-checkpoint", f"the checkpoint {path.name!r} cannot be used: {why}", str(path), remedy)


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    seen = hashlib.sha256(text.encode("utf-8"))
    for name, value in sorted(tensors.items()):
        seen.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        seen.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return seen.hexdigest()


def _numbers_of(state: State) -> dict[str, Any]:
    early_stopping, mean = state.early_stopping, state.mean
    return {
        "records": state.records,
        "learning_rate": state.rate,
        "n_steps": state.n_steps,
        "watch": {name: getattr(early_stopping, name) for name in EARLY_STOPPING},
        "mean": {"names": list(mean.sums), "n_cells": mean.n_cells, "n_steps": mean.n_steps},
    }


def _tensors_of(state: State) -> dict[str, Tensor]:
    moments = {
        f"{number}.{name}": value
        for number, values in state.optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None  # the momentum of SGD without
    }
    averaged = [] if state.averaged is None else state.averaged.values
    groups: dict[str, dict[str, Tensor]] = {
        "network": state.network.state_dict(),
        "best": state.early_stopping.weights,
        "optimizer": moments,
        "averaged": {str(number): value for number, value in enumerate(averaged)},
        "mean": {name: torch.as_tensor(value, dtype=torch.float64) for name, value in state.mean.sums.items()},
    }
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}


def _put_back(numbers: dict[str, Any], tensors: dict[str, Tensor], state: State, device: torch.device) -> None:
    # cloned into memory of torch: the last bit of a product may depend on the alignment of its factors
    def group(name: str) -> dict[str, Tensor]:
        return {key: value.to(device, copy=True) for key, value in _group(tensors, name).items()}

    state.network.load_state_dict(group("network"))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _group(tensors, "optimizer").items():  # the optimizer moves them to its devices
        number, _, what = name.partition(".")
        moments.setdefault(int(number), {})[what] = value.clone()
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": moments})
    state.rate, state.n_steps = numbers["learning_rate"], numbers["n_steps"]
    if state.averaged is not None:
        averaged = group("averaged")
        state.averaged.values = [averaged[str(number)] for number in range(len(averaged))]
    state.records[:] = numbers["records"]
    state.early_stopping.weights = group("best")
    for name, value in numbers["watch"].items():
        setattr(state.early_stopping, name, value)
    state.mean, sums = RunningMean(), group("mean")
    on_cpu = device.type == "cpu"  # where sums are numbers
    state.mean.sums = {name: sums[name].item() if on_cpu else sums[name] for name in numbers["mean"]["names"]}
    state.mean.n_cells, state.mean.n_steps = numbers["mean"]["n_cells"], numbers["mean"]["n_steps"]


def _group(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def run_of(
    model: str, config: NetworkConfig, training: TrainingConfig, source: Source, split: Split, data: TrainingData
) -> dict[str, Any]:
    """Return the identity of a run, by name: model, settings, and hashes of the data as far as they were read."""
    settings = config.model_dump(mode="json") | training.model_dump(mode="json")
    return {
        "model": model,
        **{name: value for name, value in settings.items() if name not in ELSEWHERE},
        "number of cells": source.n_obs,
        "number of genes": len(source.var_names),
        "gene names": _hashed(_bytes(source.var_names)),
        "library sizes": _hashed(np.asarray(source.sizes, dtype="<f4")),
        "gene means": _hashed(_gene_means(source, data)),
        "batch codes": _hashed(_bytes(data.batches), np.asarray([] if data.codes is None else data.codes, dtype="<i8")),
        "covariates": _hashed(b"" if data.values is None else data.values),
        "labels": _hashed(_bytes(data.labels), np.asarray(() if data.label_codes is None else data.label_codes, "<i8")),
        "coordinates to fit to": _hashed(b"" if data.summary.target is None else data.summary.target.numpy()),
        "cells held out": _hashed(np.asarray(split.valid, dtype="<i8")),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the differences of two runs in words; an empty list if they are the same."""
    other = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    plain = [f"{name} was {before.get(name)}, is {now.get(name)}" for name in other if name not in HASHED]
    return plain or [f"other {name}" for name in other]  # with another seed, other cells are held out


def _hashed(*parts: Any) -> str:
    seen = hashlib.sha256()
    for part in parts:
        seen.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return seen.hexdigest()


def _bytes(names: Any) -> bytes:
    return "\n".join(names).encode("utf-8", "surrogatepass")


def _gene_means(source: Source, data: TrainingData) -> np.ndarray[Any, Any]:
    # a hash of the values, also where they have no library sizes. Sums over cells in another order differ in their last
    # digits: 12 bits are left out
    means = data.summary.gene_mean.numpy().astype("<f4")
    return means if source.in_order else means.view("<u4") >> 12
