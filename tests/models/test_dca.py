"""DCA against its published formulae, written out in float64; its function, its slots and its command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks.data import splat
from benchmarks.published.dca import cells, correlation, held_out, logged
from scipy.sparse import csr_matrix
from scipy.special import expit, gammaln

import anncoder as ac
from anncoder import DCA, load, tl
from anncoder.cli.dca import read_table
from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.data.summary import library_sizes, summarize
from anncoder.errors import AnncoderError, ConfigError, InputError
from anncoder.io.atomic import locked
from anncoder.models.published.dca import TYPES, DCAConfig, DCANetwork
from anncoder.types import Batch, Noise, Shape

Run = Callable[..., Any]
Weights = dict[str, np.ndarray[Any, Any]]
EPS = 1e-10
QUICK: dict[str, Any] = {"epochs": 2, "hidden_size": (8, 4, 8)}


@pytest.fixture
def counts(simulated: anndata.AnnData) -> anndata.AnnData:
    """Return counts without all-zero genes, which DCA wants."""
    return simulated[:, np.asarray(simulated.X.sum(axis=0)).ravel() > 0].copy()


# ---- the published formulae, in numpy ----


def nb(y: Any, mu: Any, theta: Any) -> Any:
    theta = np.minimum(theta, 1e6)
    coefficient = gammaln(theta + EPS) + gammaln(y + 1) - gammaln(y + theta + EPS)
    return coefficient + (theta + y) * np.log(1 + mu / (theta + EPS)) + y * (np.log(theta + EPS) - np.log(mu + EPS))


def zinb(y: Any, mu: Any, theta: Any, pi: Any) -> Any:
    theta = np.minimum(theta, 1e6)
    zero = -np.log(pi + (1 - pi) * (theta / (theta + mu + EPS)) ** theta + EPS)
    return np.where(y < 1e-8, zero, nb(y, mu, theta) - np.log(1 - pi + EPS))


def poisson(y: Any, mu: Any) -> Any:
    return mu - y * np.log(mu + EPS) + gammaln(y + 1)


def layer(h: Any, w: Weights, name: str) -> Any:
    """A dense layer, batch normalisation with the minibatch's moments and no scale, and ReLU."""
    h = h @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"]
    return normalized(h, w[f"{name}.1.0.bias"])


def normalized(h: Any, beta: Any) -> Any:
    return np.maximum((h - h.mean(0)) / np.sqrt(h.var(0) + 1e-3) + beta, 0)


def published(w: Weights, ae_type: str, x: Any, y: Any, sf: Any) -> tuple[float, Any]:
    """The loss of one type and the latent, for z-scored input x, counts y and size factors sf; 64-32-64-like."""
    h = normalized(x @ w["encoder.first.weight"] + w["encoder.first.bias"], w["encoder.after.0.0.bias"])
    latent = h @ w["encoder.rest.0.weight"].T + w["encoder.rest.0.bias"]
    h = normalized(latent, w["after_latent.0.bias"])
    if "fork" not in ae_type:
        h = layer(h, w, "decoder")

    def head(name: str) -> Any:
        own = layer(h, w, f"heads.{name}.0") if "fork" in ae_type else h
        return own @ w[f"heads.{name}.1.weight"].T + w[f"heads.{name}.1.bias"]

    sf = sf[:, None]
    if ae_type == "normal":
        return float(((y - head("mean") * sf) ** 2).mean()), latent
    eta = -head("mean") if "elempi" in ae_type else head("mean")
    mu = np.clip(np.exp(eta), 1e-5, 1e6) * sf
    if ae_type == "poisson":
        return float(poisson(y, mu).mean()), latent
    if ae_type in ("nb", "zinb"):
        theta = np.clip(np.exp(w["heads.gene_log_theta"]), 1e-3, 1e4)
    else:
        theta = np.clip(np.logaddexp(head("theta"), 0), 1e-4, 1e4)
    if ae_type.startswith("nb"):
        return float(nb(y, mu, theta).mean()), latent
    if "elempi" in ae_type:
        pi = expit(w["heads.pi_of_mean.slope"] * eta + w["heads.pi_of_mean.offset"])
    else:
        pi = expit(head("pi"))
    return float((zinb(y, mu, theta, pi) + 0.1 * pi**2).mean()), latent


def test_the_formulae_are_those_of_the_golden_values() -> None:
    y, mu, theta = (np.array(v, dtype=float) for v in ([0, 3, 0, 5, 10], [1, 1, 0.5, 2.5, 10], [1, 1, 2, 0.7, 1e6]))
    np.testing.assert_allclose(nb(y, mu, theta), [0.693147, 2.772589, 0.446287, 3.06257, 2.078567], atol=1e-5)
    np.testing.assert_allclose(zinb(y, mu, theta, 0.3), [0.430783, 3.129264, 0.290352, 3.419245, 2.435242], atol=1e-5)
    np.testing.assert_allclose(poisson(y, mu), [1.0, 2.791759, 0.5, 2.706038, 2.078562], atol=1e-5)


def problem(counts: anndata.AnnData, **hyper: Any) -> tuple[DCANetwork, Batch]:
    """Return a network in float64 with weights that differ everywhere, and a minibatch of 40 cells."""
    matrix = counts.X
    sizes = library_sizes(matrix)
    config = DCAConfig(**({"n_latent": 4, "n_hidden": (7,), "ridge_pi": 0.1} | hyper))
    network = DCANetwork(config, Shape(matrix.shape[1]), Noise(0))
    loader = MemoryLoader(Stored.of(matrix), sizes / np.median(sizes), np.arange(len(sizes)), batch_size=40)
    summary = summarize([(matrix, sizes / np.median(sizes))], matrix.shape[1], 1.0, transform=config.transform)
    network.start_from(summary, loader)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    batch = next(loader.epoch(0))
    batch = batch._replace(counts=batch.counts.with_values(batch.counts.values.double()))
    return network.double(), batch._replace(size_factor=batch.size_factor.double())


def z_scores(matrix: Any, sizes: Any, *, logs: bool = True) -> Any:
    x = matrix.toarray().astype(float) / sizes[:, None]
    x = np.log1p(x) if logs else x
    return (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)


@pytest.mark.parametrize("ae_type", TYPES)
def test_every_type_has_the_published_objective_and_latent(ae_type: Any, counts: anndata.AnnData) -> None:
    network, batch = problem(counts, ae_type=ae_type)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    factors = library_sizes(counts.X) / np.median(library_sizes(counts.X))
    x, y = z_scores(counts.X, factors)[:40], counts.X[:40].toarray()
    loss, latent = published(weights, ae_type, x, y, factors[:40])
    network.train()
    np.testing.assert_allclose(network.encode(batch).detach(), latent, rtol=1e-5, atol=1e-5)
    assert network(batch).total.item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("switches", "sized", "logs"),
    [({"size_factors": False}, False, True), ({"transform": "normalize"}, True, False)],
)
def test_switches_of_the_input(switches: Any, sized: bool, logs: bool, counts: anndata.AnnData) -> None:
    network, batch = problem(counts, **switches)
    factors = library_sizes(counts.X) / np.median(library_sizes(counts.X)) if sized else np.ones(counts.n_obs)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    x, y = z_scores(counts.X, factors, logs=logs)[:40], counts.X[:40].toarray()
    loss, latent = published(weights, "nb-conddisp", x, y, factors[:40])
    network.train()
    np.testing.assert_allclose(network.encode(batch).detach(), latent, rtol=1e-5, atol=1e-5)
    assert network(batch).total.item() == pytest.approx(loss, rel=1e-5)
    network.eval()
    at_own_size = network.denoise(batch) * batch.size_factor[:, None]
    expected = network.parameters_of(batch).log_mean.exp() * torch.from_numpy(factors[:40, None])
    torch.testing.assert_close(at_own_size, expected)


def test_input_that_is_not_scaled_is_not_centred(counts: anndata.AnnData) -> None:
    network, batch = problem(counts, standardize=False)
    factors = library_sizes(counts.X) / np.median(library_sizes(counts.X))
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    x = np.log1p(counts.X[:40].toarray() / factors[:40, None])
    _, latent = published(weights, "nb-conddisp", x, counts.X[:40].toarray(), factors[:40])
    np.testing.assert_allclose(network.train().encode(batch).detach(), latent, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("ae_type", "smallest"), [("nb-conddisp", 1e-4), ("nb", 1e-3)])
def test_means_and_dispersions_are_limited_as_published(ae_type: Any, smallest: float, counts: anndata.AnnData) -> None:
    network, batch = problem(counts, ae_type=ae_type)
    found = []
    for sign in (-1, 1):
        with torch.no_grad():
            network.heads.mean[-1].bias.fill_(sign * 50.0)
            theta = network.heads.gene_log_theta if ae_type == "nb" else network.heads.theta[-1].bias
            theta.fill_(sign * 5e4)
        log_mean, log_theta, _ = network.parameters_of(batch)
        found.append((log_mean.exp().unique().tolist(), log_theta.exp().unique().tolist()))
    for (mean, theta), limits in zip(found, ((1e-5, smallest), (1e6, 1e4)), strict=True):
        assert mean == pytest.approx([limits[0]], rel=1e-6)
        assert theta == pytest.approx([limits[1]], rel=1e-6)


def test_penalties_of_the_encoder_stand_in_for_the_others(counts: anndata.AnnData) -> None:
    network, batch = problem(counts, ae_type="zinb-elempi", l1=0.01, l2=0.02, l1_encoder=0.03)
    w = {name: value.numpy() for name, value in network.state_dict().items() if value.dim() == 2}
    of_encoder = [value for name, value in w.items() if name.startswith("encoder")]
    rest = [value for name, value in w.items() if not name.startswith("encoder")]
    assert (len(of_encoder), len(rest)) == (2, 4)
    terms = network(batch).terms
    l1 = 0.03 * sum(np.abs(v).sum() for v in of_encoder) + 0.01 * sum(np.abs(v).sum() for v in rest)
    assert terms["l1"].item() == pytest.approx(l1, rel=1e-6)
    assert terms["l2"].item() == pytest.approx(0.02 * sum((v**2).sum() for v in w.values()), rel=1e-6)


def test_input_dropout_is_of_z_scores_and_keeps_their_mean(counts: anndata.AnnData) -> None:
    network, batch = problem(counts, input_dropout=0.5, n_hidden=(), n_hidden_decoder=(7,))
    weight = network.encoder.first.weight.detach()
    with torch.no_grad():
        clean = network.eval().encode(batch)
        network.train()
        noisy = torch.stack([network.encode(batch) for _ in range(1000)])
    # the latent is linear in the input x here: dropout with probability 1/2 gives it the variance sum (w x)^2
    factors = library_sizes(counts.X) / np.median(library_sizes(counts.X))
    x = torch.from_numpy(z_scores(counts.X, factors)[:40])
    std = (x.square() @ weight.square()).sqrt()
    assert ((noisy.mean(0) - clean).abs() / std).max() < 5 / 1000**0.5
    torch.testing.assert_close(noisy.std(0), std, rtol=0.15, atol=0)


@pytest.mark.parametrize("init", ["glorot_uniform", "glorot_normal", "he_uniform", "he_normal"])
def test_initial_weights_have_kerass_spread(init: Any) -> None:
    network = DCANetwork(DCAConfig(init=init), Shape(300), Noise(0))
    for weight, fan_in, fan_out in (
        (network.encoder.first.weight, 300, 64),
        (network.encoder.rest[0].weight, 64, 32),
        (network.heads.mean[-1].weight, 64, 300),
    ):
        expected = (2 / (fan_in + fan_out)) ** 0.5 if init.startswith("glorot") else (2 / fan_in) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.05)
    assert not network.encoder.first.bias.any()


def test_published_training_is_the_default_and_its_quirks_are_asked_for(counts: anndata.AnnData) -> None:
    model = DCA(n_latent=4, n_hidden=(8,), faithful=True).fit(counts, max_epochs=3, progress=False)
    training = model.training_
    assert (training.optimizer, training.learning_rate, training.epsilon) == ("rmsprop", 1e-3, 1e-7)
    assert (training.clip_value, training.clip_norm, training.batch_size) == (5, 0, 32)
    assert (training.reduce_lr_patience, training.reduce_lr_factor, training.patience) == (10, 0.1, 15)
    assert list(model.valid_obs_) == list(counts.obs_names[-12:])
    assert model.best_epoch_ == 2  # the last
    fixed = DCA().config.defaults
    assert (fixed["valid_split"], fixed["keep_best"], fixed["max_epochs"]) == ("random", True, 300)


# ---- the acceptance checks, fast ----


# ---- the acceptance checks, fast ----


def test_it_denoises_simulated_dropout() -> None:
    data = splat(0, n_obs=1000)
    truth = logged(data.mean)
    model = DCA().fit(cells(data.counts), max_epochs=40, learning_rate=3e-3, threads=1, progress=False)
    denoised = logged(model.denoise(cells(data.counts)))
    assert correlation(denoised, truth) > 2 * correlation(logged(data.counts), truth)


def test_it_predicts_molecules_that_were_set_aside() -> None:
    row = held_out(splat(0, n_obs=600).counts, 0, max_epochs=20)
    assert row["held-out molecules: DCA"] < row["held-out molecules: size factor x gene mean"]


def test_the_latent_slot_is_the_centre_layer_before_normalisation(counts: anndata.AnnData) -> None:
    """Check D: in the function's own mode and from its own weights, by hand."""
    before = counts.X.copy()
    model = tl.dca(counts, mode="latent", return_model=True, **QUICK)
    w = {name: value.double().numpy() for name, value in model.network_.state_dict().items()}
    x = np.log1p(counts.X.toarray() / (library_sizes(counts.X) / model.library_size_)[:, None])
    x = (x - w["standardize.mean"]) / w["standardize.scale"]
    h = x @ w["encoder.first.weight"] + w["encoder.first.bias"]
    moments = w["encoder.after.0.0.running_mean"], w["encoder.after.0.0.running_var"]
    h = np.maximum((h - moments[0]) / np.sqrt(moments[1] + 1e-3) + w["encoder.after.0.0.bias"], 0)
    latent = h @ w["encoder.rest.0.weight"].T + w["encoder.rest.0.bias"]
    np.testing.assert_allclose(counts.obsm["X_dca"], latent, rtol=1e-6, atol=1e-6 * np.abs(latent).max())
    assert (before != counts.X).nnz == 0
    assert (before != counts.raw.X).nnz == 0


# ---- the function that scanpy had ----


def test_the_keywords_are_those_of_the_removed_function() -> None:
    declared = {n: p.default for n, p in inspect.signature(tl.dca).parameters.items() if n != "adata"}
    assert declared.pop("check_counts") is True  # the package's own function had it
    assert declared.pop("faithful") is False
    assert {n: dict(v) if n.endswith("kwds") else v for n, v in declared.items()} == {
        "mode": "denoise",
        "ae_type": "nb-conddisp",
        "normalize_per_cell": True,
        "scale": True,
        "log1p": True,
        "hidden_size": (64, 32, 64),
        "hidden_dropout": 0.0,
        "batchnorm": True,
        "activation": "relu",
        "init": "glorot_uniform",
        "network_kwds": {},
        "epochs": 300,
        "reduce_lr": 10,
        "early_stop": 15,
        "batch_size": 32,
        "optimizer": "RMSprop",
        "random_state": 0,
        "threads": None,
        "learning_rate": None,
        "verbose": False,
        "training_kwds": {},
        "return_model": False,
        "return_info": False,
        "copy": False,
    }


def test_denoising_puts_expected_counts_into_x_and_keeps_the_raw_ones(counts: anndata.AnnData) -> None:
    before = counts.copy()
    denoised, model = tl.dca(counts, copy=True, return_model=True, return_info=True, **QUICK)
    assert (counts.X != before.X).nnz == 0
    assert set(counts.obs) == set(before.obs)
    assert counts.raw is None
    np.testing.assert_array_equal(denoised.X, model.denoise(counts))
    assert (denoised.raw.X != counts.X).nnz == 0
    sizes = library_sizes(counts.X)
    np.testing.assert_array_equal(denoised.obs["n_counts"], sizes)
    np.testing.assert_allclose(denoised.obs["size_factors"], sizes / model.library_size_)
    normalized = model.denoise(counts, scale="normalized") * denoised.obs["size_factors"].to_numpy()[:, None]
    np.testing.assert_allclose(denoised.X, normalized, rtol=1e-5)
    assert list(denoised.obs["dca_split"].unique()) == ["train"]
    np.testing.assert_array_equal(denoised.obsm["X_dca_dispersion"], model.dispersion(counts))
    assert {k: len(v) for k, v in denoised.uns["dca_loss_history"].items()} == {"loss": 2, "val_loss": 2, "lr": 2}
    assert "X_dca" not in denoised.obsm
    assert tl.dca(counts, **QUICK) is None
    np.testing.assert_array_equal(counts.X, denoised.X)


def test_nothing_is_lost_where_raw_and_columns_hold_something_else(counts: anndata.AnnData) -> None:
    counts.raw = counts[:, :20].copy()
    counts.obs["size_factors"] = np.arange(counts.n_obs)
    before, of_raw = counts.X.copy(), counts.raw.X.copy()
    clash = counts.copy()
    clash.layers["dca_counts"] = before * 2
    with pytest.raises(ConfigError, match="cannot be kept") as caught:
        tl.dca(clash, **QUICK)
    assert caught.value.code == "key-taken"
    tl.dca(counts, mode="latent", **QUICK)
    assert not list(filter(None, counts.layers))  # anndata 0.13 counts X among them
    tl.dca(counts, **QUICK)
    assert (counts.layers["dca_counts"] != before).nnz == 0
    assert (of_raw != counts.raw.X).nnz == 0
    assert list(counts.obs["size_factors_before_dca"]) == list(range(counts.n_obs))


def test_a_view_becomes_an_object_and_its_parent_stays(counts: anndata.AnnData) -> None:
    before = counts.X.copy()
    view = counts[:100]
    tl.dca(view, **QUICK)
    assert view.X.shape == (100, counts.n_vars)
    assert (before != counts.X).nnz == 0


@pytest.mark.parametrize(
    ("ae_type", "dispersion", "dropout"),
    [
        ("normal", None, None),
        ("poisson", None, None),
        ("nb", "var", None),
        ("nb-shared", (120, 1), None),
        ("zinb", "var", (120, 57)),
        ("zinb-shared", (120, 1), (120, 1)),
        ("zinb-elempi", (120, 57), (120, 57)),
    ],
)
def test_information_stands_where_it_stood(
    ae_type: str, dispersion: Any, dropout: Any, counts: anndata.AnnData
) -> None:
    tl.dca(counts, ae_type=ae_type, return_info=True, **QUICK)
    assert ("X_dca_dispersion" in counts.var) == (dispersion == "var")
    shapes = {name: counts.obsm[name].shape for name in counts.obsm}
    expected = {"X_dca_dispersion": dispersion if dispersion != "var" else None, "X_dca_dropout": dropout}
    assert shapes == {name: shape for name, shape in expected.items() if shape}
    assert (counts.X >= 0).all()


def test_every_word_reaches_the_model(counts: anndata.AnnData) -> None:
    model = tl.dca(
        counts,
        ae_type="zinb-elempi",
        normalize_per_cell=False,
        scale=False,
        log1p=False,
        hidden_size=(9, 5),
        hidden_dropout=0.1,
        batchnorm=False,
        activation="LeakyReLU",
        init="he_normal",
        network_kwds={"l1_coef": 1e-4, "l2_coef": 2e-4, "l1_enc_coef": 3e-4, "l2_enc_coef": 4e-4, "ridge": 0.2}
        | {"input_dropout": 0.05},
        epochs=1,
        reduce_lr=0,
        early_stop=None,
        batch_size=16,
        optimizer="Adam",
        random_state=7,
        threads=1,
        learning_rate=1e-4,
        training_kwds={"clip_grad": 1.0, "validation_split": 0.2},
        return_model=True,
        copy=False,
    )
    assert model.config.model_dump() == {
        "ae_type": "zinb-elempi",
        "n_latent": 5,
        "n_hidden": (9,),
        "n_hidden_decoder": (),
        "activation": "leaky_relu",
        "norm": "none",
        "dropout_rate": 0.1,
        "input_dropout": 0.05,
        "init": "he_normal",
        "transform": "normalize",
        "standardize": False,
        "size_factors": False,
        "ridge_pi": 0.2,
        "l1": 1e-4,
        "l2": 2e-4,
        "l1_encoder": 3e-4,
        "l2_encoder": 4e-4,
        "check_counts": True,
        "faithful": False,
    }
    expected = {"max_epochs": 1, "batch_size": 16, "optimizer": "adam", "learning_rate": 1e-4, "clip_value": 1.0}
    expected |= {"valid_fraction": 0.2, "early_stopping": False, "reduce_lr_patience": 0, "seed": 7, "threads": 1}
    assert {name: getattr(model.training_, name) for name in expected} == expected
    assert (counts.obs["size_factors"] == 1).all()
    assert "n_counts" not in counts.obs


def test_counts_between_integers_are_taken_where_asked(counts: anndata.AnnData) -> None:
    counts.X = counts.X * 0.7
    with pytest.raises(InputError) as caught:
        tl.dca(counts, mode="latent", **QUICK)
    assert caught.value.code == "not-integer"
    tl.dca(counts, mode="latent", check_counts=False, **QUICK)
    assert np.isfinite(counts.obsm["X_dca"]).all()
    counts.X.data[3] = -1
    with pytest.raises(InputError) as caught:
        tl.dca(counts, mode="latent", check_counts=False, **QUICK)
    assert caught.value.code == "negative"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ({"mode": "latents"}, "unknown-key", "latent"),
        ({"ae_type": "zinb-conddisb"}, "bad-value", "ae_type"),
        ({"activation": "swish"}, "bad-value", "activation"),
        ({"optimizer": "Adagrad"}, "unknown-key", "Adam"),
        ({"init": "orthogonal"}, "bad-value", "init"),
        ({"hidden_size": ()}, "bad-value", "hidden_size"),
        ({"hidden_size": 64}, "bad-value", "hidden_size"),
        ({"hidden_size": (8, 4), "ae_type": "nb-fork"}, "bad-value", "nb-conddisp"),
        ({"network_kwds": {"file_path": "x"}}, "unknown-key", "network_kwds"),
        ({"training_kwds": {"epochs": 3}}, "unknown-key", "training_kwds"),
        ({"epochs": 0}, "bad-value", "max_epochs"),
    ],
)
def test_what_does_not_exist_is_named(words: Any, code: str, said: str, counts: anndata.AnnData) -> None:
    before = counts.X.copy()
    with pytest.raises(ConfigError) as caught:
        tl.dca(counts, **(QUICK | words))
    assert caught.value.code == code
    assert said in str(caught.value)
    assert (before != counts.X).nnz == 0


def test_the_remedy_for_counts_elsewhere_can_be_followed(counts: anndata.AnnData) -> None:
    logs = counts.copy()
    logs.layers["q"], logs.X = counts.X, counts.X.log1p()
    with pytest.raises(InputError) as caught:
        tl.dca(logs, mode="latent", **QUICK)
    assert caught.value.remedy == "adata.X = adata.layers['q'].copy(), which holds counts"
    del logs.layers["q"]
    logs.raw = counts
    with pytest.raises(InputError, match=r"adata = adata\.raw\.to_adata\(\)"):
        tl.dca(logs, mode="latent", **QUICK)
    tl.dca(logs.raw.to_adata(), mode="latent", **QUICK)


def test_wrong_data_are_named(counts: anndata.AnnData, tmp_path: Path) -> None:
    empty = counts.copy()
    empty.X = empty.X @ csr_matrix(np.diag((np.arange(empty.n_vars) != 3).astype(np.float32)))
    with pytest.raises(InputError, match="zero in every cell") as caught:
        tl.dca(empty, **QUICK)
    assert str(empty.var_names[3]) in str(caught.value)
    counts.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r+")
    with pytest.raises(InputError, match="backed"):
        tl.dca(backed, **QUICK)
    backed.file.close()
    with pytest.raises(InputError, match="expected an AnnData"):
        tl.dca(counts.X, **QUICK)


@pytest.mark.parametrize("ae_type", ["normal", "nb", "zinb-conddisp"])
def test_what_a_type_does_not_have_is_said(ae_type: Any, counts: anndata.AnnData) -> None:
    model = DCA(ae_type=ae_type, n_latent=3, n_hidden=(6,)).fit(counts, max_epochs=1, progress=False)
    if ae_type == "normal":
        with pytest.raises(ConfigError, match="no dispersion"):
            model.dispersion(counts)
    if ae_type == "zinb-conddisp":
        with pytest.raises(ConfigError, match="differs between cells"):
            model.dispersion()
    else:
        with pytest.raises(ConfigError, match="no dropout"):
            model.dropout_probability(counts)


# ---- every other door ----


def test_a_saved_model_gives_the_same_bits_and_its_slots(counts: anndata.AnnData, tmp_path: Path) -> None:
    settings = {"ae_type": "zinb", "n_latent": 3, "n_hidden": (6,), "max_epochs": 2, "progress": False}
    model = tl.autoencode(counts, "dca", denoise=True, **settings)
    model.save(tmp_path / "m")
    again = load(tmp_path / "m")
    np.testing.assert_array_equal(again.embed(counts), counts.obsm["X_ae"])
    np.testing.assert_array_equal(again.denoise(counts), counts.layers["ae_denoised"])
    np.testing.assert_array_equal(again.dispersion(), counts.var["ae_theta"].to_numpy())
    assert issubclass(type(again), ac.DCA)


def test_it_trains_from_the_command_line(anncoder: Run, counts: anndata.AnnData, tmp_path: Path) -> None:
    counts.write_h5ad(tmp_path / "in.h5ad")
    words = ("--model", "dca", "--set", "ae_type=nb-shared", "--set", "max_epochs=1", "--no-evaluation", "-q")
    result = anncoder("train", tmp_path / "in.h5ad", "-o", tmp_path / "out.h5ad", *words)
    assert result.exit_code == 0, result.output
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_ae"].shape == (120, 32)


SMALL = ("-s", "8,4,8", "-e", "2", "--threads", "1", "-q")


@pytest.fixture
def table(counts: anndata.AnnData, tmp_path: Path) -> Path:
    """Return a table of genes x cells, in which one gene and one cell have no count."""
    frame = pd.DataFrame(counts.X.toarray().T.astype(int), index=counts.var_names, columns=counts.obs_names)
    frame.loc["silent"] = 0
    frame["empty"] = 0
    frame.to_csv(tmp_path / "counts.tsv", sep="\t")
    return tmp_path / "counts.tsv"


def test_the_command_writes_its_tables_and_an_h5ad(
    anncoder: Run, table: Path, counts: anndata.AnnData, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"
    assert anncoder("dca", tmp_path / "none.tsv", out).exit_code == 3
    assert not out.parent.exists()
    result = anncoder("dca", table, out, "--type", "zinb", "--saveweights", *SMALL[:-1])
    assert result.exit_code == 0, result.output
    assert f"wrote {out}: dca.h5ad, dispersion.tsv, dropout.tsv, latent.tsv, mean.tsv, model\n" in result.stderr
    assert "left out 1 cell and 1 gene" in result.stderr
    names = ["dca.h5ad", "dispersion.tsv", "dropout.tsv", "latent.tsv", "mean.tsv", "model"]
    assert sorted(path.name for path in out.iterdir()) == names
    written = anndata.read_h5ad(out / "dca.h5ad")
    with h5py.File(out / "dca.h5ad") as file:
        assert "raw" not in file  # not as one that stands for nothing, which anndata 0.11 cannot open
    assert (written.X != counts.X).nnz == 0
    mean = pd.read_csv(out / "mean.tsv", sep="\t", index_col=0)
    assert list(mean.columns) == list(counts.obs_names)
    assert list(mean.index) == list(counts.var_names)
    np.testing.assert_allclose(mean.to_numpy().T, written.layers["dca_denoised"], rtol=1e-6)
    latent = pd.read_csv(out / "latent.tsv", sep="\t", index_col=0, header=None)
    np.testing.assert_allclose(latent, written.obsm["X_dca"], rtol=1e-6)
    dispersion = pd.read_csv(out / "dispersion.tsv", sep="\t", index_col=0, header=None)
    np.testing.assert_allclose(dispersion[1], written.var["X_dca_dispersion"], rtol=1e-6)
    dropout = pd.read_csv(out / "dropout.tsv", sep="\t", index_col=0)
    np.testing.assert_allclose(dropout.T, written.obsm["X_dca_dropout"], rtol=1e-6)
    np.testing.assert_array_equal(load(out / "model").denoise(counts), written.layers["dca_denoised"])


def test_what_is_not_the_commands_is_not_said_to_be_written(anncoder: Run, table: Path, tmp_path: Path) -> None:
    for name in ("mine.txt", "model"):
        (tmp_path / name).write_text("precious")
    result = anncoder("dca", table, tmp_path, *SMALL[:-1])
    assert result.stderr.endswith(f"wrote {tmp_path}: dca.h5ad, dispersion.tsv, latent.tsv, mean.tsv\n")


def test_tables_and_h5ad_files_are_read_the_right_way_round(
    anncoder: Run, table: Path, counts: anndata.AnnData, tmp_path: Path
) -> None:
    counts.write_h5ad(tmp_path / "cells.h5ad")
    pd.read_csv(table, sep="\t", index_col=0).T.to_csv(tmp_path / "cells.csv.gz")
    found = []
    for name, words in (("counts.tsv", ()), ("cells.h5ad", ()), ("cells.h5ad", ("-t",)), ("cells.csv.gz", ("-t",))):
        assert anncoder("dca", tmp_path / name, tmp_path / "out", *words, *SMALL).exit_code == 0
        found.append((tmp_path / "out" / "mean.tsv").read_bytes())
    assert len(set(found)) == 1
    assert not (tmp_path / "out" / "dropout.tsv").exists()


def test_a_test_split_and_a_subset_of_the_genes(
    anncoder: Run, table: Path, counts: anndata.AnnData, tmp_path: Path
) -> None:
    (tmp_path / "genes.txt").write_text("\n".join(counts.var_names[[5, 2]]))
    words = ("--testsplit", "--denoisesubset", tmp_path / "genes.txt")
    assert anncoder("dca", table, tmp_path / "out", *words, *SMALL).exit_code == 0
    for name in ("mean.tsv", "dispersion.tsv"):
        frame = pd.read_csv(tmp_path / "out" / name, sep="\t", index_col=0)
        assert list(frame.index) == list(counts.var_names[[5, 2]])
        assert frame.shape[1] == 120
    split = anndata.read_h5ad(tmp_path / "out" / "dca.h5ad").obs["dca_split"]
    assert split.value_counts().to_dict() == {"train": 108, "test": 12}


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (("--hyper",), 2, "has no --hyper [bad-option]"),
        (("--tensorboard",), 2, "has no --tensorboard [bad-option]"),
        (("--normtype", "scran"), 2, "zheng"),
        (("--hiddensize", "64;32"), 2, "is not a list of widths"),
        (("--type", "zip"), 2, "ae_type"),
        (("--optimizer", "Nadam"), 2, "optimizer"),
        (("--nosuch",), 2, "No such option"),
        (("--denoisesubset", "/nowhere/genes.txt"), 3, "[unreadable]"),
    ],
)
def test_options_that_do_not_exist_are_named(
    words: Any, exit_code: int, said: str, anncoder: Run, table: Path, tmp_path: Path
) -> None:
    result = anncoder("dca", table, tmp_path / "out", *SMALL, *words)
    assert result.exit_code == exit_code
    assert said in result.stderr
    assert not (tmp_path / "out" / "mean.tsv").exists()


def test_inputs_that_cannot_be_used_are_named(anncoder: Run, table: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.csv"
    text.write_text("gene,a,b\nx,1,2\ny,3,many\n")
    fractions = tmp_path / "fractions.tsv"
    (pd.read_csv(table, sep="\t", index_col=0) * 0.5).to_csv(fractions, sep="\t")
    (tmp_path / "genes.txt").write_text("nobody")
    mine = tmp_path / "mean.tsv"
    mine.write_bytes(table.read_bytes())
    for data, words, exit_code, said in (
        (text, (), 4, "1 of 2 columns hold something else than numbers: b [not-numeric]"),
        (tmp_path / "none.tsv", (), 3, "no such file"),
        (fractions, (), 4, "not-integer"),
        (table, ("--denoisesubset", tmp_path / "genes.txt"), 4, "nobody [unknown-genes]"),
        (mine, (), 2, "[output-is-input]"),
    ):
        result = anncoder("dca", data, mine.parent if data == mine else tmp_path / "out", *words, *SMALL)
        assert (result.exit_code, said in result.stderr) == (exit_code, True), result.stderr
    assert mine.read_bytes() == table.read_bytes()
    assert anncoder("dca", fractions, tmp_path / "out", "--nocheckcounts", *SMALL).exit_code == 0


def test_two_runs_in_one_folder_are_refused(anncoder: Run, counts: anndata.AnnData, tmp_path: Path) -> None:
    counts.write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / "dca.h5ad"):
        result = anncoder("dca", tmp_path / "in.h5ad", tmp_path / "out", *SMALL)
    assert result.exit_code == 6
    assert "output-in-use" in result.stderr


@pytest.mark.parametrize(
    ("text", "by_cell", "cells", "genes"),
    [
        (",c0,c1\n000,1,2\nNA,3,4\n", False, ["c0", "c1"], ["000", "NA"]),
        (",007,1e5\n0000,1,3\nnan,2,4\n", True, ["0000", "nan"], ["007", "1e5"]),
        ("c0,c1\nx,1,2\n010,3,4\n", False, ["c0", "c1"], ["x", "010"]),  # as R writes it, without a corner
        ('\n,c0,NA\n\n"x,1",1,2\ny,3,4\n', False, ["c0", "NA"], ["x,1", "y"]),
    ],
)
def test_names_of_a_table_are_text(text: str, by_cell: bool, cells: Any, genes: Any, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    adata = read_table(tmp_path / "t.csv", ",", by_cell=by_cell)
    assert (list(adata.obs_names), list(adata.var_names)) == (cells, genes)
    assert adata.X.toarray().tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (",c0,c0\nx,1,2\n", "duplicate-names", "more than one column: c0"),
        (",c0,c1\nx,1,2\nx,3,4\n", "duplicate-names", "more than one row: x"),
        ("x,1,0,1\ny,1,2,3\n", "no-header", "numbers, some of them twice, and no names: 1, 0, 1"),
        (",c0,c1\nx,1,2,3\n", "unreadable", "the first row has 3 values and the second 4"),
    ],
)
def test_names_that_are_none_are_refused(text: str, code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(AnncoderError, match=said) as caught:
        read_table(tmp_path / "t.csv", ",", by_cell=False)
    assert caught.value.code == code


def test_numbers_taken_as_names_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "t.csv").write_text("x,4,0,1\ny,1,2,3\n")
    assert list(read_table(tmp_path / "t.csv", ",", by_cell=False).obs_names) == ["4", "0", "1"]
    assert "holds numbers, which are taken as names: 4, 0, 1" in caplog.text
