"""net-SNE: its divergence against scikit-learn's, pictures of new cells, and pictures that are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from benchmarks.data import simplex
from benchmarks.published.netsne import ten_classes
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from typer.testing import Result

import anncoder as ac
from anncoder import NetSNE
from anncoder.errors import ConfigError, InputError
from anncoder.models.published.netsne import NetsneConfig, NetsneNetwork, log_similarities
from anncoder.nn.tsne import joint_affinities
from anncoder.types import CSR, Batch, Noise, Shape, Summary

SHORT: dict[str, Any] = {"max_epochs": 2, "progress": False}


class Cells:
    """A loader of a dense matrix; what held-out cells there are have rows between those of the others."""

    def __init__(self, x: np.ndarray[Any, Any]) -> None:
        self.n_obs, self.x = len(x), torch.from_numpy(x.astype(np.float32))

    def batch(self, rows: Any) -> Batch:
        rows = torch.as_tensor(rows)
        n, d = len(rows), self.x.shape[1]
        counts = CSR(torch.arange(0, n * d + 1, d), torch.arange(d).repeat(n), self.x[rows].ravel(), d)
        return Batch(counts, torch.ones(n), 2 * rows)

    def epoch(self, number: int) -> Any:
        yield self.batch(range(self.n_obs))

    def __len__(self) -> int:
        return 1


@pytest.fixture(scope="module")
def network() -> tuple[NetsneNetwork, Cells]:
    cells = Cells(np.random.default_rng(0).normal(size=(300, 8)) * np.arange(1, 9))
    network = NetsneNetwork(NetsneConfig(transform="none", perplexity=10), Shape(8), Noise(0))
    nothing = torch.zeros(8)
    network.start_from(Summary(300, 0.0, 1.0, nothing, nothing, nothing, nothing), cells)
    return network.eval(), cells


class TestObjective:
    def test_with_all_cells_it_is_the_divergence(self, network: tuple[NetsneNetwork, Cells]) -> None:
        model, cells = network
        with torch.no_grad():
            batch = cells.batch(torch.randperm(300))
            places = model.encode(cells.batch(range(300))).double().numpy()
            found = model(batch)
        p = joint_affinities(cells.x.numpy(), 10).toarray()
        q = 1 / (1 + cdist(places, places) ** 2)
        np.fill_diagonal(q, 0)
        q /= q.sum()
        some = p > 0
        assert found.terms["kl"].item() == pytest.approx((p[some] * np.log(p[some] / q[some])).sum(), rel=1e-4)

    def test_parts_of_the_data_give_it_on_average(self, network: tuple[NetsneNetwork, Cells]) -> None:
        model, cells = network
        with torch.no_grad():
            exact = model(cells.batch(range(300))).total.item()
            model.train()
            model.steps.fill_(10_000)
            parts = [model(cells.batch(torch.randperm(300)[:100])).total.item() for _ in range(400)]
            model.eval()
        assert np.mean(parts) == pytest.approx(exact, abs=4 * np.std(parts) / 20)
        assert np.std(parts) < 0.3

    def test_gradients_of_parts_are_those_of_all_on_average(self, network: tuple[NetsneNetwork, Cells]) -> None:
        model, cells = network
        weight = model.encoder[-1].weight

        def gradient(rows: Any) -> Any:
            (found,) = torch.autograd.grad(model(cells.batch(rows)).total, weight)
            return found.ravel().double().numpy()

        exact = gradient(range(300))
        model.train()
        mean = np.mean([gradient(torch.randperm(300)[:100]) for _ in range(300)], axis=0)
        model.eval()
        assert np.corrcoef(exact, mean)[0, 1] > 0.98

    def test_cells_that_were_not_fitted_are_compared_among_themselves(
        self, network: tuple[NetsneNetwork, Cells]
    ) -> None:
        model, cells = network
        with torch.no_grad():
            batch = cells.batch(range(60))
            stranger = batch._replace(rows=batch.rows + 1)
            assert model(stranger).total != model(batch).total
            assert model(stranger).total == model(stranger).total
            beyond = batch._replace(rows=batch.rows + 10_000)
            torch.testing.assert_close(model(beyond).total, model(stranger).total)

    def test_exaggeration_ends(self, network: tuple[NetsneNetwork, Cells]) -> None:
        model, cells = network
        model.train()
        model.steps.fill_(248)
        with torch.no_grad():
            factors = [model(cells.batch(range(300))).terms["exaggeration"].item() > 0 for _ in range(4)]
        model.eval()
        assert factors == [True, True, False, False]
        with torch.no_grad():
            assert model(cells.batch(range(300))).terms.keys() == {"kl"}  # in evaluation there is none
            assert int(model.steps) == 252

    def test_an_input_that_does_not_vary_is_centred_and_not_divided(self) -> None:
        cells = Cells(np.random.default_rng(0).normal(size=(40, 8)) * [0, *range(1, 8)] + 3)
        model = NetsneNetwork(NetsneConfig(transform="none", perplexity=5), Shape(8), Noise(0))
        model.start_from(Summary(40, 0.0, 1.0, *[torch.zeros(8)] * 4), cells)
        standardized = model.standardized(model.scores(cells.batch(range(40))))
        assert not standardized[:, 0].any()
        torch.testing.assert_close(standardized[:, 1:].std(dim=0, correction=0), torch.ones(7))

    def test_the_penalty_is_on_all_weights(self) -> None:
        cells = Cells(np.random.default_rng(0).normal(size=(40, 8)))
        model = NetsneNetwork(NetsneConfig(transform="none", perplexity=5, l2=0.5), Shape(8), Noise(0)).eval()
        squares = [w.square().sum().item() for w in model.parameters() if w.dim() == 2]
        assert len(squares) == 3
        assert model(cells.batch(range(40))).terms["l2"].item() == pytest.approx(0.5 * sum(squares), rel=1e-5)

    def test_similarities_are_summed_over_pairs_of_different_cells(self) -> None:
        places = np.random.default_rng(0).normal(size=(50, 2)) * 30
        q = 1 / (1 + cdist(places, places) ** 2)
        tensor = torch.from_numpy(places)
        assert log_similarities(tensor, tensor).item() == pytest.approx(np.log(q.sum() - 50), rel=1e-9)
        assert log_similarities(tensor, tensor[:7]).item() == pytest.approx(np.log(q[:, :7].sum() - 7), rel=1e-9)


class TestEstimator:
    def test_the_picture_is_nearly_as_good_as_scikit_learns(self) -> None:
        x, _ = simplex(0, 300)
        data = anndata.AnnData(x.astype(np.float32))
        model = NetSNE(transform="none", perplexity=15, exaggeration_steps=50).fit(data, max_steps=400, progress=False)
        theirs = TSNE(perplexity=15, random_state=0, max_iter=500).fit(x).kl_divergence_
        assert model.history_["train_kl"].iloc[-1] <= 1.25 * theirs

    def test_new_cells_find_their_class(self) -> None:
        row, _ = ten_classes(0, n_obs=1500, n_new=1000, exaggeration_steps=30, max_steps=200, batch_size=500)
        assert row["simplex, mapped 5-NN: model"] > row["simplex, mapped 5-NN: PCA-2"] + 0.2

    @pytest.mark.parametrize("on_disk", [False, True])
    def test_a_given_picture_is_learned(self, counts: anndata.AnnData, tmp_path: Path, on_disk: bool) -> None:
        sizes = counts.X.toarray().sum(axis=1, keepdims=True)
        logs = np.log1p(counts.X.toarray() / (sizes / np.median(sizes)))
        counts.obsm["X_tsne"] = 10 * PCA(2).fit_transform(logs)
        counts.write_h5ad(tmp_path / "a.h5ad")
        data = str(tmp_path / "a.h5ad") if on_disk else counts
        model = NetSNE(target="X_tsne", n_pcs=10).fit(data, max_epochs=400, valid_fraction=0.2, progress=False)
        held_out = counts.obs_names.isin(model.valid_obs_)
        truth = counts.obsm["X_tsne"][held_out]
        missed = np.square(model.embed(counts)[held_out] - truth).sum() / np.square(truth - truth.mean(axis=0)).sum()
        assert missed < 0.15
        assert "train_regression" in model.history_

    def test_nothing_of_the_fitted_cells_is_kept(self, counts: anndata.AnnData, tmp_path: Path) -> None:
        model = NetSNE(n_pcs=10).fit(counts, valid_fraction=0.2, **SHORT)
        assert np.isfinite(model.history_[["train_kl", "valid_kl"]]).all(axis=None)
        network: Any = model.network_
        assert network.fitted is None
        assert sum(value.numel() for value in network.state_dict().values()) < 5000
        model.save(tmp_path / "m")
        assert np.array_equal(ac.load(tmp_path / "m").embed(counts), model.embed(counts))

    def test_results_stand_in_the_slots(self, counts: anndata.AnnData) -> None:
        ac.tl.autoencode(counts, "netsne", key_added="ns", n_pcs=10, **SHORT)
        assert counts.obsm["X_ns"].shape == (counts.n_obs, 2)
        with pytest.raises(ConfigError, match="no decoder"):
            ac.tl.autoencode(counts, "netsne", key_added="other", denoise=True, **SHORT)

    def test_the_command_line_trains_it_and_names_a_missing_slot(
        self, counts_file: Path, tmp_path: Path, anncoder: Callable[..., Result]
    ) -> None:
        words = (
            "train",
            counts_file,
            "-o",
            tmp_path / "out.h5ad",
            "--no-evaluation",
            "--model",
            "netsne",
            "--set",
            "max_epochs=1",
        )
        missing = anncoder(*words, "--set", "target=X_usr")
        assert missing.exit_code == 2
        assert "did you mean 'X_user'" in missing.output
        result = anncoder(*words, "--set", "target=X_user")
        assert result.exit_code == 0, result.output
        assert "X_ae" in anndata.read_h5ad(tmp_path / "out.h5ad").obsm

    @pytest.mark.parametrize(
        ("hyper", "error", "code"),
        [
            ({"perplexity": 119}, ConfigError, "few-cells"),
            ({"target": "X_nothing"}, ConfigError, "unknown-key"),
            ({"target": "three"}, InputError, "bad-coordinates"),
            ({"target": "holes"}, InputError, "bad-coordinates"),
        ],
    )
    def test_what_cannot_be_is_named(self, hyper: Any, error: Any, code: str, counts: anndata.AnnData) -> None:
        counts.obsm["three"] = np.zeros((counts.n_obs, 3))
        counts.obsm["holes"] = np.full((counts.n_obs, 2), np.nan)
        with pytest.raises(error) as caught:
            NetSNE(**hyper).fit(counts, **SHORT)
        assert caught.value.code == code
        assert caught.value.remedy
