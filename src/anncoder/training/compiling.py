"""Compilation of the CPU kernels while the data are read and checked, once an installation."""

from __future__ import annotations

import threading

import torch

from anncoder.config import NetworkConfig, TrainingConfig
from anncoder.device import choose_device
from anncoder.kernels import fused
from anncoder.training import progress


def compile_ahead(config: NetworkConfig, training: TrainingConfig, *, shown: bool) -> None:
    """Begin to compile what the training of a model needs, in a thread that nobody waits for before it is needed.

    Nothing happens where it is compiled already, or not used: on a GPU, or with kernels switched off. Kernels that a
    model needs besides are compiled when they are called. A thread, not a process: numba's compiler is mostly Python,
    which shares the interpreter with what runs beside it, but reading, checking and the start from components leave it
    free for most of their time, and another process would take memory and seconds to import the same packages.

    Parameters
    ----------
    config
        The model's settings: its likelihood is read, if it has one.
    training
        Settings of the fit: its device is read.
    shown
        Whether to say so, if it takes more than a moment.
    """
    if choose_device(training.device).type != "cpu" or not fused(torch.empty(0, dtype=torch.float32)):
        return
    from anncoder.kernels.cpu import ahead

    said = threading.Timer(progress.PATIENCE, progress.say_compiling, kwargs={"ahead": True})
    said.daemon = True
    if shown:
        said.start()
    ahead.begin(progress.AHEAD, getattr(config, "likelihood", None), said.cancel)
