"""Whatever torch was told before: a fit, an embedding and a saved model are the same, and torch is left as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anncoder import CountAutoencoder, load
from anncoder.device import products_in
from anncoder.models import find, names
from anncoder.training.progress import bar


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": float64_by_default,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "autoimpute": {},
    "netsne": {"n_hidden": (8,), "n_latent": 2},
    "scvis": {"n_latent": 2},
    "saucie": {},
}


def results(name: str, counts: Any, folder: Path) -> list[np.ndarray[Any, Any]]:
    model = find(name)(**SETTINGS.get(name, {"n_latent": 2}))
    model.fit(counts, max_epochs=2, batch_size=64, device="cpu", progress=False)
    model.save(folder)
    again = load(folder)
    decoded = [] if name in ("netsne", "scvis") else [model.denoise(counts), again.denoise(counts)]
    return [model.embed(counts), again.embed(counts), *decoded]


@pytest.mark.parametrize("name", names())
def test_every_model_is_fitted_as_ever(name: str, counts: Any, tmp_path: Path) -> None:
    wanted = results(name, counts, tmp_path / "usual")
    for called, surrounding in SURROUNDINGS.items():
        with surrounding():
            before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
            got = results(name, counts, tmp_path / called)
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()) == before
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == np.float32
            np.testing.assert_array_equal(a, b, err_msg=called)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the default device is a GPU")
def test_a_fit_on_the_cpu_where_a_gpu_is_the_default(counts: Any, tmp_path: Path) -> None:
    wanted = results("count", counts, tmp_path / "usual")
    with torch.device("cuda"):
        got = results("count", counts, tmp_path / "gpu")
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_kernels_take_memory_of_the_cpu(counts: Any) -> None:
    """With any default device: what they compute in is made on the CPU."""
    from anncoder.likelihoods import nb_nll, poisson_nll, zinb_nll
    from anncoder.types import CSR

    x = CSR(torch.tensor([0, 1, 2]), torch.tensor([0, 2]), torch.tensor([1.0, 3.0]), 3)
    mean, theta = torch.zeros(2, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    forms = (lambda: nb_nll(x, mean, theta), lambda: zinb_nll(x, mean, theta, mean), lambda: poisson_nll(x, mean))
    for form in forms:
        wanted = torch.autograd.grad(form().sum(), mean)
        with torch.device("meta"):
            loss = form()
        torch.testing.assert_close(torch.autograd.grad(loss.sum(), mean), wanted)


def test_fits_that_overlap_leave_the_precision_of_products_as_it_was() -> None:
    before, gpu = torch.get_float32_matmul_precision(), torch.device("cuda")
    one, other = products_in("tf32", gpu), products_in("tf32", gpu)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "high"
    other.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == before


def test_gradients_go_on_being_recorded_after_a_fit(counts: Any) -> None:
    CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, progress=False).embed(counts)
    assert torch.ones(1, requires_grad=True).sum().requires_grad


def test_no_bar_is_made_where_none_is_shown_and_a_notebook_need_not_have_ipywidgets(
    counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr("anncoder.training.progress.find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    bar(3, "cell").close()
