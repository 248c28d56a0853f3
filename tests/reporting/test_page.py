"""The page: its structure, what it says, what it must not load or run, its size, and bad input."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from typer.testing import Result

import anncoder as ac
from anncoder import CountAutoencoder, load
from anncoder.datasets import simulate
from anncoder.errors import AnncoderError
from anncoder.evaluation.comparison import Evaluation
from anncoder.reporting import maps
from anncoder.reporting.page import ModelReport, report
from anncoder.reporting.repeat import Asked, python_lines, shell_lines
from anncoder.reporting.scores import verdicts

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "img", "source", "br"}
LOADED = {"src", "srcset", "data", "poster", "action", "background"}
Run = Callable[..., Result]


class Page(HTMLParser):
    """Elements of a page: tags with their attributes, and whether all are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.texts))


def assert_self_contained(html: str) -> Page:
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "form", "base", "video", "audio", "svg"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in LOADED & attributes.keys():
            assert str(attributes[name]).startswith("data:image/png;base64,")
        if "href" in attributes:
            assert str(attributes["href"]).startswith("https://doi.org/")
    assert not re.search(r"@import|url\(|expression\(", html)
    return page


@pytest.fixture(scope="module")
def page(fitted: CountAutoencoder, simulated: anndata.AnnData) -> ModelReport:
    return report(simulated, fitted, labels="group")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, simulated: anndata.AnnData) -> Path:
    """Return the output of ``anncoder train --report``, with its run folder beside it."""
    from typer.testing import CliRunner

    from anncoder.cli.app import app

    folder = tmp_path_factory.mktemp("trained")
    simulated.write_h5ad(folder / "in.h5ad")
    words = ["train", folder / "in.h5ad", "-o", folder / "out.h5ad", "--labels", "group", "--report", "--threads", "1"]
    words += ["--set", "max_epochs=2", "--set", "n_hidden=[8]", "--set", "n_latent=3", "--set", "valid_fraction=0.2"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return folder / "out.h5ad"


class TestStructure:
    def test_it_is_one_page_that_loads_and_runs_nothing(self, page: ModelReport) -> None:
        parsed = assert_self_contained(page.html)
        assert page.html.startswith("<!DOCTYPE html>")
        metas = [attributes for tag, attributes in parsed.tags if tag == "meta"]
        assert {"charset": "utf-8"} in metas
        policy = next(m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy")
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        assert any(m.get("name") == "viewport" for m in metas)
        headings = [tag for tag, _ in parsed.tags if tag in ("h1", "h2", "h3")]
        assert headings == ["h1", *["h2"] * 8]

    def test_light_dark_and_narrow_are_matters_of_style(self, page: ModelReport) -> None:
        style = "".join(re.findall(r"<style>(.*?)</style>", page.html, flags=re.S))
        assert style.count("prefers-color-scheme: dark") == 2
        assert "max-width: 30rem" in style
        assert style.count("{") == style.count("}")
        # only its own elements: a notebook keeps its style
        rules = re.sub(r"@media[^{]*", "", page.fragment.partition("</style>")[0])
        for selector in re.findall(r"([^{};]+)\{", rules.replace("<style>", "")):
            assert all(part.strip().startswith(".ac-report") for part in selector.split(",") if part.strip()), selector

    def test_every_picture_has_words_and_every_table_a_head(self, page: ModelReport) -> None:
        parsed = Page(page.html)
        pictures = [attributes for tag, attributes in parsed.tags if tag == "img"]
        assert len(pictures) == 3  # curves, latent, PCA
        for picture in pictures:
            assert picture["alt"]
            _, _, code = str(picture["src"]).partition("base64,")
            assert base64.b64decode(code).startswith(b"\x89PNG")
        assert page.html.count("<table>") == 4
        assert page.html.count('<th scope="col">') >= 4

    def test_it_says_what_was_asked_for(self, page: ModelReport) -> None:
        text = Page(page.html).text
        for words in (
            "Report: count autoencoder of 120 cells",
            "nothing tells whether the loss would have gone on falling",
            "median",
            "n_hidden=(8,)",
            "reconstruction error",
            "PCA of its width",
            "gene means",
            "Correlations that denoising invents were not counted",
            "explained best",
            "explained worst",
            "Group1",
            f"anncoder {ac.__version__}",
            "anncoder train in.h5ad -o again.h5ad --model count",
            "ac.report(adata, model, labels='group', output='report.html')",
        ):
            assert words in text, words
        assert "held out 12 cells" in text
        assert {page.genes.index[0], page.genes.index[-1]} <= set(text.split())

    def test_a_notebook_gets_the_same_without_a_frame(self, page: ModelReport) -> None:
        assert page._repr_html_() in page.html
        assert_self_contained(page._repr_html_())
        assert "count autoencoder of 120 cells" in repr(page)

    def test_the_same_call_gives_the_same_page_and_changes_nothing(
        self, page: ModelReport, fitted: CountAutoencoder, simulated: anndata.AnnData
    ) -> None:
        before = simulated.copy()
        again = report(simulated, fitted, labels="group")
        assert again.html == page.html
        np.testing.assert_array_equal(before.X.toarray(), simulated.X.toarray())
        pd.testing.assert_frame_equal(before.obs, simulated.obs)
        assert set(before.uns) == set(simulated.uns)
        assert not simulated.obsm

    def test_few_cells_still_have_a_report(self, fitted: CountAutoencoder, simulated: anndata.AnnData) -> None:
        few = report(simulated[:6].copy(), fitted)
        assert few.evaluation is None
        assert "not compared with PCA" in Page(few.html).text

    def test_a_model_without_a_decoder_and_one_of_two_axes(self, simulated: anndata.AnnData) -> None:
        model = ac.NetSNE(n_hidden=(8,), n_latent=2).fit(simulated, max_epochs=2, batch_size=64, progress=False)
        found = report(simulated, model)
        assert found.genes.empty
        text = assert_self_contained(found.html).text
        assert "the first two axes" in text
        assert "no decoder" in text

    def test_the_guard(self, fitted: CountAutoencoder, simulated: anndata.AnnData) -> None:
        found = report(simulated, fitted, guard=True)
        assert found.evaluation is not None
        text = Page(found.html).text
        assert "are correlated after denoising by the model" in text
        assert "were not counted" not in text

    def test_a_score_given_is_not_computed_again(
        self, page: ModelReport, fitted: CountAutoencoder, simulated: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from anncoder.reporting import page as module

        monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("evaluated again"))
        assert report(simulated, fitted, labels="group", evaluation=page.evaluation).html == page.html


class TestUntrustedNames:
    def test_names_of_genes_labels_cells_and_columns_are_text(self, simulated: anndata.AnnData) -> None:
        adata = simulated.copy()
        adata.var_names = [f"{EVIL}{i}" for i in range(adata.n_vars)]
        adata.obs_names = [f"{EVIL}$x_{i}$" for i in range(adata.n_obs)]
        column = f'"{EVIL}$'
        adata.obs[column] = pd.Categorical([f"{EVIL}$\\frac{{{group}}}" for group in adata.obs["group"]])
        adata.uns[f"{column}_colors"] = np.array(["red; background: url(http://x.y)", "#00ff00", '"><script>'])
        model = CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(adata, max_epochs=2, progress=False)
        found = report(adata, model, labels=column)
        parsed = assert_self_contained(found.html)
        assert "<script" not in found.html
        assert parsed.text.count(EVIL) > 10
        styles = [attributes["style"] for _, attributes in parsed.tags if "style" in attributes]
        assert all(re.fullmatch(r"color: #[0-9a-f]{6}|width: [0-9.]+em", str(style)) for style in styles)

    def test_file_names_are_text_even_if_they_are_not_utf8(
        self, fitted: CountAutoencoder, simulated: anndata.AnnData, tmp_path: Path
    ) -> None:
        for name in ("<img src=x onerror=alert(1)>.h5ad", "a & b;$(touch x).h5ad", "caf\udce9.h5ad"):
            path = tmp_path / name
            simulated.write_h5ad(path)
            found = report(path, fitted, output=tmp_path / "r.html")
            written = (tmp_path / "r.html").read_text(encoding="utf-8")
            assert written == found.html
            assert_self_contained(written)
            assert "onerror=alert(1)>" not in written

    def test_a_model_of_a_strange_layer(self, simulated: anndata.AnnData) -> None:
        adata = simulated.copy()
        adata.layers[EVIL] = adata.X
        model = CountAutoencoder(n_latent=2, n_hidden=(8,)).fit(adata, layer=EVIL, max_epochs=1, progress=False)
        assert_self_contained(report(adata, model).html)


class TestSize:
    def test_twenty_thousand_cells(self, tmp_path: Path) -> None:
        adata = simulate(n_obs=20_000, n_vars=50, n_groups=4, lib_loc=6.0, seed=1)
        model = CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(adata, max_epochs=1, batch_size=1024, progress=False)
        random = np.random.default_rng(0)
        adata.obsm["X_umap_pca"], adata.obsm["X_umap_ae"] = random.normal(size=(2, adata.n_obs, 2))
        found = report(adata, model, labels="group", output=tmp_path / "r.html")
        text = assert_self_contained(found.html).text
        assert (tmp_path / "r.html").stat().st_size < 1_000_000
        assert "20,000 cells" in text
        assert "5,000 sampled cells" in text
        assert "obsm['X_umap_ae']" in text

    def test_a_picture_never_has_more_than_five_thousand_cells(
        self, simulated: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn: list[int] = []
        original = maps.Groups.scatter

        def spy(self: Any, axes: Any, points: Any, *, size: float) -> None:
            drawn.append(len(points))
            original(self, axes, points, size=size)

        monkeypatch.setattr(maps.Groups, "scatter", spy)
        adata = anndata.AnnData(np.ones((12_000, 1), np.float32))
        values = np.random.default_rng(0).normal(size=(12_000, 2))
        found = maps.maps_of(adata, "ae", values, values, maps.checked_groups(adata, None), seed=0)
        assert [(one.title, one.how) for one in found] == [
            ("latent", "the first two axes"),
            ("PCA", "the first two axes"),
        ]
        assert drawn == [5000, 5000]


class TestMaps:
    points = np.random.default_rng(0).normal(size=(120, 2))

    def titles(self, adata: anndata.AnnData) -> list[tuple[str, str]]:
        values = np.random.default_rng(1).normal(size=(120, 3)).astype(np.float32)
        found = maps.maps_of(adata, "ae", values, values, maps.checked_groups(adata, "group"), seed=0)
        return [(one.title, one.how) for one in found]

    def test_without_any_both_are_tsne(self, counts: anndata.AnnData) -> None:
        assert self.titles(counts) == [("latent", "t-SNE of 120 cells"), ("PCA", "t-SNE of 120 cells")]

    def test_both_there_are_drawn_as_they_are(self, counts: anndata.AnnData) -> None:
        counts.obsm["X_umap"] = counts.obsm["X_umap_pca"] = self.points
        counts.uns["neighbors"] = {"params": {"use_rep": "X_ae"}}
        assert self.titles(counts) == [("latent", "obsm['X_umap']"), ("PCA", "obsm['X_umap_pca']")]

    def test_one_there_stands_beside_a_comparable_pair(self, counts: anndata.AnnData) -> None:
        counts.obsm["X_umap"] = self.points
        assert self.titles(counts)[2] == ("obsm['X_umap']", "obsm['X_umap']")

    def test_coordinates_that_are_none_are_passed_over(self, counts: anndata.AnnData) -> None:
        counts.obsm["X_umap"] = self.points[:, :1]
        counts.uns["neighbors"] = "mine"
        assert len(self.titles(counts)) == 2
        counts.obsm["X_umap"] = np.where(np.arange(120)[:, None] < 5, np.nan, self.points)
        assert len(self.titles(counts)) == 3

    def test_identical_cells_are_drawn(self, counts: anndata.AnnData) -> None:
        same = np.ones((120, 3), np.float32)
        assert len(maps.maps_of(counts, "ae", same, same, maps.checked_groups(counts, None), seed=0)) == 2


class TestVerdicts:
    def found(self, **scores: list[float]) -> Evaluation:
        table = pd.DataFrame(scores, index=["model", "pca", "gene_mean"][: len(next(iter(scores.values())))])
        return Evaluation(table, 100, 50, "held-out", None)

    def test_better_level_and_worse(self) -> None:
        assert "better than PCA of its width, by 2.00 nats" in verdicts(self.found(heldout_nll=[100, 102, 130]))[0]
        assert "0.20 nats a cell is nothing" in verdicts(self.found(heldout_nll=[100, 100.2, 130]))[0]
        assert "worse than PCA of its width, by 3.00 nats" in verdicts(self.found(heldout_nll=[105, 102, 130]))[0]
        higher = self.found(neighbor_consistency=[0.6, 0.5, np.nan])
        assert verdicts(higher) == [
            "The model keeps neighbours better than PCA of its width, by 0.100 in neighbour consistency."
        ]

    def test_no_better_than_the_average_cell(self) -> None:
        said = verdicts(self.found(heldout_nll=[131, 102, 130]))
        assert any("no better than the average cell" in sentence for sentence in said)
        assert verdicts(self.found(reconstruction_mse=[1, 1, 1])) == []


class TestCommand:
    def test_train_writes_it_into_the_run_folder(self, trained: Path) -> None:
        path = trained.with_suffix(".anncoder") / "report.html"
        text = assert_self_contained(path.read_text(encoding="utf-8")).text
        assert "held-out molecules" in text
        assert "Group1" in text

    def test_a_run_without_it_leaves_no_older_one(self, anncoder: Run, trained: Path, tmp_path: Path) -> None:
        folder = tmp_path / "out.anncoder"
        words = ["train", trained, "-o", tmp_path / "out.h5ad", "--no-evaluation", "--quiet", "--set", "max_epochs=1"]
        anncoder(*words, "--report")
        assert (folder / "report.html").is_file()
        assert anncoder(*words).exit_code == 0
        assert not (folder / "report.html").exists()
        (folder / "report.html").write_text("my own notes")
        anncoder(*words)
        assert (folder / "report.html").read_text() == "my own notes"

    def test_of_the_output_of_train(self, anncoder: Run, trained: Path, tmp_path: Path) -> None:
        output = tmp_path / "r.html"
        done = anncoder("report", trained, "-o", output, "--labels", "group")
        assert done.exit_code == 0
        assert "warning: After 2 epochs nothing tells" in done.stdout
        text = assert_self_contained(output.read_text(encoding="utf-8")).text
        assert str(trained) in text
        again = tmp_path / "named.html"
        model = trained.with_suffix(".anncoder") / "model"
        anncoder("report", trained, "-o", again, "--labels", "group", "--model", model)
        assert again.read_bytes() == output.read_bytes()

    def test_its_command_repeats_the_fit(
        self, anncoder: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = load(trained.with_suffix(".anncoder") / "model")
        monkeypatch.chdir(tmp_path)
        for line in shell_lines(model, Asked(str(trained), "group")):
            assert anncoder(*shlex.split(line)[1:]).exit_code == 0
        assert Path("report.html").is_file()
        again = load("again.anncoder/model")
        assert again.training_ == model.training_
        assert again.config == model.config
        adata = anndata.read_h5ad(trained)
        np.testing.assert_array_equal(adata.obsm["X_ae"], anndata.read_h5ad("again.h5ad").obsm["X_ae"])
        names = {"sc": anndata}
        code = [line.replace("sc.read_h5ad", "sc.io.read_h5ad") for line in python_lines(model, Asked(str(trained)))]
        exec("\n".join(code).replace(", scanpy as sc", ""), names)
        np.testing.assert_array_equal(names["adata"].obsm["X_ae"], adata.obsm["X_ae"])


class TestBadInput:
    def refused(self, call: Callable[[], Any], code: str, *words: str) -> None:
        with pytest.raises(AnncoderError) as caught:
            call()
        assert caught.value.code == code
        for word in words:
            assert word in str(caught.value)

    def test_in_python(self, fitted: CountAutoencoder, simulated: anndata.AnnData, tmp_path: Path) -> None:
        output = tmp_path / "r.html"
        other = simulated.copy()
        other.var_names = [f"other{i}" for i in range(other.n_vars)]
        numbered = simulated.copy()
        numbered.obs["cell"] = numbered.obs_names
        path = tmp_path / "in.html"
        simulated.write_h5ad(path)
        self.refused(lambda: report(other, fitted, output=output), "missing-genes")
        self.refused(lambda: report(simulated, fitted, output=output, labels="nix"), "unknown-key", "group")
        self.refused(lambda: report(numbered, fitted, output=output, labels="cell"), "too-many-groups")
        self.refused(lambda: report(simulated, fitted, output=tmp_path / "no" / "r.html"), "no-folder", "mkdir")
        self.refused(lambda: report(simulated, fitted, output=tmp_path / "r.pdf"), "bad-output", ".html")
        self.refused(lambda: report(path, fitted, output=path), "output-is-input", "another name")
        self.refused(lambda: report(simulated, CountAutoencoder(), output=output), "not-fitted")
        self.refused(lambda: report(simulated, "model", output=output), "no-model")  # type: ignore[arg-type]
        self.refused(lambda: report(simulated, fitted, output=output, seed=-1), "bad-value")
        assert sorted(found.name for found in tmp_path.iterdir()) == ["in.html"]

    def test_on_the_command_line(self, anncoder: Run, trained: Path, model_folder: Path, tmp_path: Path) -> None:
        def ends(code: int, error: str, *words: object) -> None:
            done = anncoder("report", *words)
            assert done.exit_code == code
            assert f"[{error}]" in done.stderr

        output = tmp_path / "r.html"
        source = trained.parent / "in.h5ad"
        moved = tmp_path / "moved.h5ad"
        moved.write_bytes(trained.read_bytes())
        ends(4, "no-results", source, "-o", output)
        ends(4, "no-results", trained, "-o", output, "--key", "other")
        ends(3, "no-file", moved, "-o", output)
        ends(3, "no-file", tmp_path / "nix.h5ad", "-o", output)
        ends(2, "unknown-key", trained, "-o", output, "--labels", "nix")
        ends(6, "no-folder", trained, "-o", tmp_path / "no" / "r.html")
        ends(2, "output-is-input", trained, "-o", trained)
        (tmp_path / "moved.anncoder").mkdir()
        (tmp_path / "moved.anncoder" / "model").symlink_to(model_folder)
        ends(4, "other-model", moved, "-o", output)
        assert not output.exists()
