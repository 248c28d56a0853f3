"""What every model must do, whatever its objective."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import anncoder
from anncoder import CountAutoencoder, DenoisingAutoencoder, UndercompleteAutoencoder
from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.data.summary import library_sizes, summarize
from anncoder.errors import ConfigError, InputError, ResourceError
from anncoder.models import find, names
from anncoder.models.count import moment_log_theta
from anncoder.models.published.dca import TYPES
from anncoder.training.results import blocks
from anncoder.types import Batch, Noise, Shape

SMALL: dict[str, Any] = {"n_latent": 4, "n_hidden": (12, 8)}
VARIANTS = [
    ("autoimpute", {}),
    ("autoimpute", {"replace": "all", "faithful": True}),
    ("count", {}),
    ("count", {"likelihood": "zinb", "dispersion": "gene-cell", "ridge_pi": 0.1}),
    ("count", {"likelihood": "zinb", "dispersion": "shared"}),
    ("count", {"likelihood": "nb", "dispersion": "gene-cell", "standardize": True}),
    ("count", {"likelihood": "poisson", "linear_decoder": True, "norm": "layer"}),
    ("count", {"likelihood": "gaussian", "dispersion": "gene-cell"}),
    ("count", {"likelihood": "gaussian", "dispersion": "gene", "norm": "none"}),
    ("dca", {}),
    *(("dca", {"ae_type": ae_type}) for ae_type in TYPES),
    ("dca", {"ae_type": "zinb-fork", "n_hidden_decoder": (8, 6), "l1": 1e-3, "l2_encoder": 1e-3, "ridge_pi": 0.1}),
    ("dca", {"input_dropout": 0.2, "dropout_rate": 0.2, "norm": "none", "activation": "prelu"}),
    ("denoising", {}),
    ("denoising", {"mask_predictor": False, "linear_decoder": False}),
    ("denoising", {"corruption": "mask"}),
    ("denoising", {"corruption": "dropout", "standardize": True}),
    ("denoising", {"corruption": "gaussian", "mask_predictor": False}),
    ("denoising", {"corruption": "thinning"}),
    ("saucie", {}),
    ("saucie", {"lambda_b": 0.1, "rescale": 10}),
    ("saucie", {"lambda_c": 0.1, "lambda_d": 0.2}),
    ("saucie", {"lambda_b": 0.1, "lambda_c": 0.1, "lambda_d": 0.2}),
    ("saucie", {"faithful": True}),
    ("netsne", {}),
    ("netsne", {"activation": "sigmoid", "n_pcs": 0, "l2": 1e-3}),
    ("scvis", {}),
    ("scvis", {"faithful": True, "n_pcs": 0, "perplexity": 4.0}),
    ("undercomplete", {}),
    ("undercomplete", {"error": "absolute", "l1": 1e-3, "l2": 1e-3, "warmup_steps": 5}),
    ("undercomplete", {"tied": True, "norm": "none", "activation": "tanh"}),
    ("undercomplete", {"n_hidden": (), "activation": "linear"}),
    ("scscope", {}),
    ("scscope", {"n_rounds": 1, "readout": "last", "latent_activation": "linear", "transform": "log1p"}),
    ("scscope", {"n_rounds": 3, "readout": "mean", "keep_observed": True}),
    ("scscope", {"faithful": True, "readout": "last", "n_hidden": ()}),
    ("variational", {}),
    ("variational", {"likelihood": "nb", "dispersion": "gene-batch", "size_factors": True}),
    ("variational", {"dispersion": "gene-cell", "batches_in_encoder": True, "faithful": True}),
    ("variational", {"likelihood": "nb", "linear_decoder": True, "norm": "layer", "warmup_epochs": 0}),
    ("variational", {"likelihood": "poisson", "n_hidden": (), "norm": "none", "transform": "normalize"}),
]
IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items()) or 'default'}" for name, options in VARIANTS]


def build(name: str, options: dict[str, Any], counts: Any) -> tuple[Any, Batch]:
    cls = find(name).config_class
    config = cls(**({k: v for k, v in SMALL.items() if k in cls.model_fields} | options))
    matrix = counts.X
    sizes = library_sizes(matrix)
    codes = np.arange(len(sizes)) % 2 if config.batches != "unused" else None
    network: Any = find(name).network_class(config, Shape(matrix.shape[1], 0 if codes is None else 2), Noise(0))
    median = float(np.median(sizes))
    loader = MemoryLoader(
        Stored.of(matrix), sizes / np.median(sizes), np.arange(len(sizes)), batch_size=40, batch_code=codes
    )
    summary = summarize([(matrix, sizes / median)], matrix.shape[1], median, transform=config.transform)
    network.start_from(summary, loader)
    return network, next(loader.epoch(0))


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
class TestEveryModel:
    def test_the_loss_is_finite_the_sum_of_its_terms_and_reaches_every_parameter(
        self, name: str, options: dict[str, Any], counts: Any
    ) -> None:
        network, batch = build(name, options, counts)
        loss = network.train()(batch)
        assert torch.isfinite(loss.total)
        torch.testing.assert_close(loss.total.detach(), torch.stack(list(loss.terms.values())).sum())
        assert not any(term.requires_grad for term in loss.terms.values())
        loss.total.backward()
        without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        # biases before a normalisation are cancelled by it; the gaussian noise model has no use for some either
        assert not [n for n in without if n.endswith("weight")], without

    def test_encoding_is_deterministic_and_of_each_cell_alone(
        self, name: str, options: dict[str, Any], counts: Any
    ) -> None:
        network, batch = build(name, options, counts)
        network.eval()
        with torch.no_grad():
            whole = network.encode(batch)
            assert whole.shape == (40, getattr(network.config, "width", 4))
            torch.testing.assert_close(whole, network.encode(batch), rtol=0, atol=0)
            half = Batch(
                batch.counts._replace(
                    indptr=batch.counts.indptr[:21],
                    indices=batch.counts.indices[: batch.counts.indptr[20]],
                    values=batch.counts.values[: batch.counts.indptr[20]],
                ),
                batch.size_factor[:20],
                batch.rows[:20],
                None if batch.batch_code is None else batch.batch_code[:20],
            )
            torch.testing.assert_close(whole[:20], network.encode(half), rtol=1e-4, atol=1e-5)

    def test_validation_losses_can_be_compared(self, name: str, options: dict[str, Any], counts: Any) -> None:
        network, batch = build(name, options, counts)
        network.eval()
        with torch.no_grad():
            assert network(batch).total == network(batch).total

    def test_denoised_expression_is_not_negative_and_of_the_right_size(
        self, name: str, options: dict[str, Any], counts: Any
    ) -> None:
        network, batch = build(name, options, counts)
        if not network.config.decodes:
            return
        with torch.no_grad():
            denoised = network.eval().denoise(batch)
        assert denoised.shape == (40, counts.n_vars)
        assert (denoised >= 0).all()
        assert torch.isfinite(denoised).all()

    def test_depth_does_not_move_the_latent(self, name: str, options: dict[str, Any], counts: Any) -> None:
        network, batch = build(name, options, counts)
        if name == "variational" and not network.config.size_factors:
            pytest.skip("the model reads counts that are not normalised")
        deeper = batch._replace(
            counts=batch.counts.with_values(batch.counts.values * 4), size_factor=batch.size_factor * 4
        )
        with torch.no_grad():
            torch.testing.assert_close(network.eval().encode(batch), network.encode(deeper), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", names())
def test_constructor_and_configuration_declare_the_same(name: str) -> None:
    """The constructors are spelled out for readers and editors; the configuration is what is checked and stored."""
    signature = inspect.signature(find(name).__init__).parameters
    declared = {p.name: p.default for p in signature.values() if p.name != "self"}
    fields = {n: f.default for n, f in find(name).config_class.model_fields.items()}
    assert declared == fields
    assert all(p.kind is p.KEYWORD_ONLY for p in signature.values() if p.name != "self")


def test_fit_and_the_training_configuration_declare_the_same() -> None:
    from anncoder.config import TrainingConfig
    from anncoder.models.base import Autoencoder

    declared = {p.name: p.default for p in inspect.signature(Autoencoder.fit).parameters.values()}
    fields = {n: f.default for n, f in TrainingConfig.model_fields.items()}
    assert {
        n: v for n, v in declared.items() if n not in ("self", "data", "y", "layer", "progress", "checkpoint")
    } == fields


def test_every_setting_is_explained_in_the_docstring() -> None:
    for name in names():
        cls = find(name)
        doc = cls.__doc__ + UndercompleteAutoencoder.__doc__
        for field, info in find(name).config_class.model_fields.items():
            assert field in doc, (name, field)
            assert info.description, (name, field)


@pytest.mark.parametrize(
    ("make", "code", "remedy"),
    [
        (lambda: CountAutoencoder(n_latents=3), None, None),
        (lambda: CountAutoencoder(n_latent=0), "bad-value", " is: "),
        (lambda: CountAutoencoder(l1=0.1, warmup_steps=10**30), "bad-value", " is: "),
        (lambda: anncoder.NetSNE(exaggeration_steps=10**30), "bad-value", " is: "),
        (lambda: anncoder.VariationalAutoencoder(warmup_epochs=10**30), "bad-value", " is: "),
        (lambda: CountAutoencoder(likelihood="nbb"), "bad-value", " is: "),  # type: ignore[arg-type]
        (lambda: CountAutoencoder(transform="none"), "bad-value", "gaussian"),
        (lambda: UndercompleteAutoencoder(tied=True), "bad-value", "norm='none'"),
        (lambda: DenoisingAutoencoder(strength=1.0), "bad-value", "share"),
        (lambda: DenoisingAutoencoder(corruption="thinning", transform="none"), "bad-value", "log1p"),
        (lambda: UndercompleteAutoencoder(l2=float("nan")), "bad-value", " is: "),
    ],
)
def test_wrong_hyper_parameters_are_named(make: Any, code: str | None, remedy: str | None) -> None:
    if code is None:
        with pytest.raises(TypeError, match="n_latents"):
            make()
        return
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.code == code
    assert remedy is not None
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("epsilon", [0, 1e-60])
def test_an_epsilon_that_is_none_in_float32_is_refused(epsilon: float, counts: Any) -> None:
    with pytest.raises(ConfigError, match="epsilon") as caught:
        CountAutoencoder().fit(counts, epsilon=epsilon, progress=False)
    assert caught.value.code == "bad-value"


def test_public_names_are_there_and_documented() -> None:
    for name in anncoder.__all__:
        thing = getattr(anncoder, name)
        assert name == "__version__" or thing.__doc__, name
    assert callable(anncoder.check)
    assert callable(anncoder.evaluate)
    with pytest.raises(AttributeError):
        _ = anncoder.nothing


def test_a_first_fit_that_fails_leaves_the_model_unfitted(counts: Any) -> None:
    counts.obs["plate"] = ["b"] + ["a"] * (counts.n_obs - 1)
    model = anncoder.SAUCIE(n_latent=2, n_hidden=(8,), lambda_b=0.1)
    with pytest.raises(InputError) as caught:  # in the first minibatch
        model.fit(counts, batch_key="plate", batch_size=16, progress=False)
    assert caught.value.code == "empty-batch-group"
    assert "fitted" not in repr(model)
    with pytest.raises(ConfigError, match="not fitted"):
        model.save("nowhere")
    with pytest.raises(ConfigError, match="not fitted"):
        model.embed(counts)


def test_a_second_fit_that_fails_leaves_the_first(counts: Any, tmp_path: Path) -> None:
    model = CountAutoencoder(**SMALL).fit(counts, max_epochs=1, progress=False)
    before, attributes = model.embed(counts), dict(vars(model))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError):
        model.fit(counts[:, ::-1].copy(), seed=1, checkpoint=tmp_path / "file", max_epochs=1, progress=False)
    assert all(value is attributes[name] for name, value in vars(model).items())
    np.testing.assert_array_equal(before, model.embed(counts))


def test_inference_mode_is_not_left_on_between_two_blocks(counts: Any) -> None:
    model = CountAutoencoder(**SMALL).fit(counts, max_epochs=1, progress=False)
    latents = blocks(model, model._source(counts, None, 0.0), model._network().encode)
    next(latents)  # as in whoever fails to write the first block and is kept by the exception
    assert not torch.is_inference_mode_enabled()
    CountAutoencoder(**SMALL).fit(counts, max_epochs=1, progress=False)


def test_one_cell_can_be_embedded_but_not_fitted(counts: Any) -> None:
    model = CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(counts, max_epochs=1, progress=False)
    np.testing.assert_allclose(model.embed(counts[5]), model.embed(counts)[5:6], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="at least 2 cells"):
        CountAutoencoder(n_latent=3).fit(counts[5], progress=False)


@pytest.mark.parametrize("deviation", [0.2, 0.8])  # of log library size
@pytest.mark.parametrize("theta", [np.inf, 5.0, 0.5])
def test_dispersion_starts_where_it_is_however_library_sizes_differ(deviation: float, theta: float) -> None:
    generator = np.random.default_rng(0)
    size = np.exp(deviation * generator.standard_normal(2000))[:, None]
    mu = size * (generator.gamma(0.6, 1 / 0.3, 200) + 0.1)
    rate = mu if np.isinf(theta) else generator.gamma(theta, mu / theta)
    matrix = sp.csr_matrix(generator.poisson(rate).astype(np.float32))
    sizes = library_sizes(matrix)
    summary = summarize([(matrix, sizes / np.median(sizes))], 200, float(np.median(sizes)), transform="log1p")
    median = float(moment_log_theta(summary).exp().median())
    assert median == pytest.approx(min(theta, 100), rel=0.1)


@pytest.mark.parametrize("corruption", ["swap", "mask"])
def test_the_denoising_objective_is_that_of_dense_arrays(counts: Any, corruption: str) -> None:
    """A weighted squared error of the clean input, and the cross-entropy of the mask of what was changed."""
    weights = {"masked_weight": 0.8, "mask_loss_weight": 0.3}
    network, batch = build("denoising", {"corruption": corruption, **weights}, counts)
    network.eval()
    with torch.no_grad():
        clean = network.inputs(batch)
        noisy = network.input_noise.corrupted(batch, Noise(network.noise.seed + int(batch.rows[0])), clean).x
        latent = network._encode(noisy)
        decoded, logits = network.decode(latent, batch.batch_code), network.mask_head(latent)
        terms = network(batch).terms
    x = clean.to_dense().double()
    mask = (noisy.to_dense() != clean.to_dense()).double()
    assert 0.02 < mask.mean() < 0.5
    error = (torch.where(mask > 0, 0.8, 0.2) * (decoded.double() - x).square()).mean()
    assert terms["reconstruction"].item() == pytest.approx(0.7 * error.item(), rel=1e-5)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), mask)
    assert terms["mask"].item() == pytest.approx(0.3 * entropy.item(), rel=1e-5)


def test_thinned_cells_keep_their_scale(counts: Any) -> None:
    network, batch = build("denoising", {"corruption": "thinning", "strength": 0.5}, counts)
    with torch.no_grad():
        clean = network.inputs(batch)
        noisy = [network.input_noise.corrupted(batch, network.noise, clean).x for _ in range(20)]
        thinned = [x.to_dense().expm1().mean().item() for x in noisy]
    assert np.mean(thinned) == pytest.approx(clean.to_dense().expm1().mean().item(), rel=0.02)


@pytest.mark.parametrize("options", [{"likelihood": "nb"}, {"likelihood": "poisson"}, {"likelihood": "gaussian"}])
def test_the_information_of_natural_axes_is_the_curvature_of_the_likelihood(options: Any, counts: Any) -> None:
    """The second derivative of the expected negative log-likelihood by what the decoder says, at its own mean."""
    network, batch = build("count", options, counts)
    latent = network.eval().raw_latent(batch).detach()
    parameters = [None if p is None else p.detach().double() for p in network.heads.limited(network.decoder(latent))]
    said, log_theta = parameters[:2]

    def expected(v: Any) -> Any:
        if options["likelihood"] == "gaussian":
            return (v - said).square() / (2 * (2 * log_theta).exp())
        mu = said.exp()
        if log_theta is None:
            return v.exp() - mu * v
        return (mu + log_theta.exp()) * (v.exp() + log_theta.exp()).log() - mu * v

    step = 1e-3
    curvature = (expected(said + step) - 2 * expected(said) + expected(said - step)) / step**2
    torch.testing.assert_close(network._information(latent).double(), curvature, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["count", "dca"])
def test_the_ridge_is_on_the_squared_probability_of_dropout(name: str, counts: Any) -> None:
    kind = {"count": {"likelihood": "zinb"}, "dca": {"ae_type": "zinb-conddisp"}}[name]
    network, batch = build(name, {**kind, "ridge_pi": 0.1}, counts)
    with torch.no_grad():
        pi = network.eval().parameters_of(batch).pi_logits.double().sigmoid()
        assert network(batch).terms["ridge_pi"].item() == pytest.approx(0.1 * pi.square().mean().item(), rel=1e-5)
