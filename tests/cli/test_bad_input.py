"""Every wrong input is one sentence with a place and a remedy, the right exit code, and no trace on the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from anncoder import CountAutoencoder

Run = Callable[..., Any]
Change = Callable[[anndata.AnnData], anndata.AnnData | None]

QUICK = ("--set", "max_epochs=1", "--set", "n_hidden=[8]", "--set", "n_latent=3", "--no-evaluation")


def snapshot(folder: Path) -> dict[str, str]:
    """Return the name and the sha256 of everything in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(anncoder: Run, tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a command that must be refused, and returns what it said."""

    def run(*words: object, code: int, said: tuple[str, ...]) -> str:
        before = snapshot(tmp_path)
        result = anncoder(*words)
        message = str(result.stderr)
        assert result.exit_code == code, message
        for part in said:
            assert part in message, message
        if code != 2 or "Usage" not in message:
            assert message.startswith("error: "), message
            assert message.count("error: ") == 1
            assert "remedy:" in message
            assert len(message) < 1000
        assert "Traceback" not in result.output
        assert "bug" not in message
        assert snapshot(tmp_path) == before  # no output, no run folder, no temporary, and the input as it was
        return message

    return run


@pytest.fixture
def write(counts: anndata.AnnData, tmp_path: Path) -> Callable[[Change], Path]:
    """Return a function that changes an AnnData of counts and writes it to a file."""

    def run(change: Change) -> Path:
        changed = change(counts)
        (counts if changed is None else changed).write_h5ad(tmp_path / "in.h5ad")
        return tmp_path / "in.h5ad"

    return run


def set_value(value: float) -> Change:
    def change(adata: anndata.AnnData) -> None:
        dense = adata.X.toarray()
        dense[7, 11] = value
        adata.X = csr_matrix(dense)

    return change


def normalised(adata: anndata.AnnData) -> None:
    adata.layers["raw_counts"] = adata.X.copy()
    adata.X = (adata.X.multiply(1e4 / adata.X.sum(axis=1))).tocsr().log1p()


def twice(adata: anndata.AnnData) -> None:
    adata.var_names = ["TWIN" if name in ("Gene4", "Gene9") else name for name in adata.var_names]


def empty(adata: anndata.AnnData) -> None:
    adata.X = csr_matrix(adata.shape, dtype=np.float32)


BAD_DATA: dict[str, tuple[Change, tuple[str, ...]]] = {
    "normalised": (normalised, ("not integers", "log", "--layer 'raw_counts'")),
    "negative": (set_value(-3), ("negative (-3", "cell 'Cell8', gene 'Gene12'")),
    "NaN": (set_value(np.nan), ("not finite (nan)", "cell 'Cell8', gene 'Gene12'")),
    "infinite": (set_value(np.inf), ("not finite (inf)", "cell 'Cell8', gene 'Gene12'")),
    "fraction": (set_value(2.5), ("not an integer (2.5", "cell 'Cell8', gene 'Gene12'")),
    "too large": (set_value(2.0**25), ("2**24", "cell 'Cell8', gene 'Gene12'")),
    "no cells": (lambda adata: adata[:0].copy(), ("there are no cells",)),
    "one cell": (lambda adata: adata[:1].copy(), ("at least 2 cells, this has 1",)),
    "no genes": (lambda adata: adata[:, :0].copy(), ("at least 2 genes, this has 0",)),
    "one gene": (lambda adata: adata[:, :1].copy(), ("at least 2 genes, this has 1",)),
    "all zero": (empty, ("the whole matrix is zero",)),
    "duplicated genes": (twice, ("1 gene name occurs more than once", "'TWIN'", "var_names_make_unique")),
}


@pytest.mark.filterwarnings("ignore:Variable names are not unique")  # that is the case
class TestData:
    @pytest.mark.parametrize("name", BAD_DATA)
    def test_train(self, refused: Callable[..., str], write: Callable[[Change], Path], name: str) -> None:
        change, said = BAD_DATA[name]
        path = write(change)
        refused("train", path, "-o", path.with_name("out.h5ad"), *QUICK, code=4, said=said)

    @pytest.mark.parametrize("name", ["normalised", "negative", "NaN", "duplicated genes"])
    def test_embed_and_denoise(
        self, refused: Callable[..., str], write: Callable[[Change], Path], model_folder: Path, name: str
    ) -> None:
        path = write(BAD_DATA[name][0])
        for command in ("embed", "denoise"):
            refused(command, model_folder, path, "-o", path.with_name("out.h5ad"), code=4, said=())

    def test_dropping_empty_cells_does_not_help_where_all_are(
        self, refused: Callable[..., str], write: Callable[[Change], Path]
    ) -> None:
        path = write(empty)
        words = ("train", path, "-o", path.with_name("out.h5ad"), "--drop-empty-cells", *QUICK)
        refused(*words, code=4, said=("the whole matrix is zero",))

    def test_damaged_indices_are_named_and_not_followed(
        self, refused: Callable[..., str], write: Callable[[Change], Path]
    ) -> None:
        import h5py

        path = write(lambda adata: None)
        with h5py.File(path, "r+") as file:
            file["X/indices"][100] = 10**9
        for words in ((), ("--drop-empty-cells",)):
            command = ("train", path, "-o", path.with_name("out.h5ad"), *words, *QUICK)
            refused(*command, code=4, said=("damaged", "1,000,000,000"))

    def test_a_missing_layer_says_where_the_counts_are(self, refused: Callable[..., str], counts_file: Path) -> None:
        for name, said in (
            ("count", "leave out layer (--layer): X holds counts"),
            ("logs", "leave out layer (--layer)"),
        ):
            words = ("train", counts_file, "-o", counts_file.with_name("out.h5ad"), "--layer", name, *QUICK)
            message = refused(*words, code=4, said=(said,))
        assert "not integers" in message

    def test_a_latent_as_wide_as_the_data(self, refused: Callable[..., str], counts_file: Path) -> None:
        words = ("train", counts_file, "-o", counts_file.with_name("out.h5ad"), "--set", "n_latent=60")
        refused(*words, code=2, said=("n_latent = 60 is not below the number of genes, 60", "below 60"))

    def test_slots_of_the_user(self, refused: Callable[..., str], write: Callable[[Change], Path]) -> None:
        def occupy(adata: anndata.AnnData) -> None:
            adata.obsm["X_ae"] = np.ones((adata.n_obs, 2))

        path = write(occupy)
        words = ("train", path, "-o", path.with_name("out.h5ad"), *QUICK)
        refused(*words, code=2, said=("obsm['X_ae'] exists, and nothing says that anncoder wrote it", "--key"))
        refused(*words, "--key", "a/b", code=2, said=("is no name for a slot",))

    def test_columns_that_do_not_exist(self, refused: Callable[..., str], counts_file: Path) -> None:
        words = ("train", counts_file, "-o", counts_file.with_name("out.h5ad"), *QUICK)
        refused(*words, "--labels", "gruop", code=2, said=("gruop", "did you mean 'group'?"))
        for key in ("valid_stratify", "valid_groups"):
            refused(*words, "--set", f"{key}=bacth", code=2, said=(key, "did you mean 'batch'?"))


class TestGenes:
    @pytest.fixture
    def model(self, counts: anndata.AnnData, tmp_path: Path) -> Path:
        symbols = counts[:, :40].copy()
        symbols.var_names = [f"SYM{i}" for i in range(40)]
        model = CountAutoencoder(n_latent=3, n_hidden=()).fit(symbols, max_epochs=1, progress=False)
        model.save(tmp_path / "model")
        return tmp_path / "model"

    def data(self, counts: anndata.AnnData, tmp_path: Path, names: list[str]) -> Path:
        adata = counts[:, : len(names)].copy()
        adata.var_names = names
        adata.write_h5ad(tmp_path / "in.h5ad")
        return tmp_path / "in.h5ad"

    def test_some_are_missing(
        self, refused: Callable[..., str], anncoder: Run, counts: anndata.AnnData, tmp_path: Path, model: Path
    ) -> None:
        path = self.data(counts, tmp_path, [f"SYM{i}" for i in range(38)])
        out = path.with_name("out.h5ad")
        words = ("embed", model, path, "-o", out)
        refused(*words, code=4, said=("2 of the model's 40 genes are missing: SYM38, SYM39",))
        refused(*words, "--allow-missing", "3", code=2, said=("allow_missing = 3",))
        result = anncoder(*words, "--allow-missing", "0.1")
        assert result.exit_code == 0, result.output
        assert "SYM38, SYM39" in result.stderr

    def test_ensembl_against_symbols(
        self, refused: Callable[..., str], counts: anndata.AnnData, tmp_path: Path, model: Path
    ) -> None:
        path = self.data(counts, tmp_path, [f"ENSG{i:011d}" for i in range(60)])
        said = ("40 of the model's 40 genes are missing", "Ensembl identifiers", "gene symbols")
        refused("embed", model, path, "-o", path.with_name("out.h5ad"), code=4, said=said)
        refused("evaluate", model, path, "-o", path.with_name("m.json"), code=4, said=said)

    def test_a_layer_needs_all_genes_to_be_known(
        self, refused: Callable[..., str], counts: anndata.AnnData, tmp_path: Path, model: Path
    ) -> None:
        path = self.data(counts, tmp_path, [f"SYM{i}" for i in range(60)])
        said = ("does not know 20 of the genes",)
        refused("denoise", model, path, "-o", path.with_name("out.h5ad"), code=4, said=said)


class TestFiles:
    @pytest.mark.parametrize("keep", [0, 100, 2_000, 0.5, 0.99])
    @pytest.mark.parametrize("command", ["check", "train", "embed"])
    def test_a_truncated_file(
        self, refused: Callable[..., str], counts_file: Path, model_folder: Path, keep: float, command: str
    ) -> None:
        content = counts_file.read_bytes()
        counts_file.write_bytes(content[: int(len(content) * keep if 0 < keep < 1 else keep)])
        out = ("-o", counts_file.with_name("out.h5ad"))
        words = {"check": (counts_file,), "train": (counts_file, *out), "embed": (model_folder, counts_file, *out)}
        refused(command, *words[command], code=3, said=(str(counts_file),))

    def test_no_hdf5_no_anndata_no_file(self, refused: Callable[..., str], tmp_path: Path) -> None:
        import h5py

        (tmp_path / "text.h5ad").write_text("gene,cell\n1,2\n")
        (tmp_path / "folder.h5ad").mkdir()
        with h5py.File(tmp_path / "other.h5ad", "w") as file:
            file["numbers"] = [1, 2, 3]
        (tmp_path / "loop.h5ad").symlink_to(tmp_path / "nowhere.h5ad")
        cases = {
            "text": "is a table of text",
            "missing": "no such file",
            "loop": "no such file",
            "folder": "is a folder, and none of zarr",
            "other": "is not of anndata: it holds numbers",
        }
        for name, said in cases.items():
            path = tmp_path / f"{name}.h5ad"
            refused("check", path, code=3, said=(said, str(path)))
            refused("train", path, "-o", tmp_path / "out.h5ad", code=3, said=(said, str(path)))

    def test_a_model_that_is_none(self, refused: Callable[..., str], counts_file: Path, tmp_path: Path) -> None:
        for name in ("nowhere", "in.h5ad", "."):
            words = (tmp_path / name, counts_file, "-o")
            for command in (("embed", *words, "o.h5ad"), ("denoise", *words, "o.h5ad"), ("info", tmp_path / name)):
                refused(*command, code=3, said=("is not a model folder", "manifest.json"))
            refused("evaluate", *words, tmp_path / "m.json", code=3, said=("is not a model folder",))


class TestOutputs:
    @pytest.fixture(params=["train", "embed", "denoise"])
    def command(self, request: pytest.FixtureRequest, model_folder: Path, counts_file: Path) -> tuple[object, ...]:
        return (
            ("train", counts_file, *QUICK) if request.param == "train" else (request.param, model_folder, counts_file)
        )

    def test_the_input_under_any_name(
        self, refused: Callable[..., str], command: tuple[object, ...], counts_file: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "soft.h5ad").symlink_to(counts_file)
        (tmp_path / "hard.h5ad").hardlink_to(counts_file)
        for name in ("in.h5ad", "soft.h5ad", "hard.h5ad", "sub/../in.h5ad", ".//in.h5ad"):
            refused(*command, "-o", f"{tmp_path}/{name}", code=2, said=("the output is the input", "--in-place"))

    def test_names_that_are_not_h5ad(
        self, refused: Callable[..., str], command: tuple[object, ...], tmp_path: Path
    ) -> None:
        (tmp_path / "folder.h5ad").mkdir()
        for name, said in (
            ("out.csv", "does not end in .h5ad"),
            ("out.zarr", "does not end"),
            ("folder.h5ad", "is a folder"),
        ):
            refused(*command, "-o", tmp_path / name, code=2, said=(said,))

    def test_folders_that_cannot_be_written(
        self,
        refused: Callable[..., str],
        command: tuple[object, ...],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "file").write_text("")
        refused(*command, "-o", tmp_path / "no" / "out.h5ad", code=6, said=("does not exist", "mkdir -p"))
        refused(*command, "-o", tmp_path / "file" / "out.h5ad", code=6, said=("is a file",))

        def denied(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("anncoder.io.atomic.tempfile.TemporaryFile", denied)  # chmod does not stop root
        refused(*command, "-o", tmp_path / "out.h5ad", code=6, said=("Permission denied", str(tmp_path)))

    def test_what_is_in_the_way_of_the_run_folder(
        self, refused: Callable[..., str], counts_file: Path, tmp_path: Path
    ) -> None:
        words = ("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK)
        (tmp_path / "out.anncoder").write_text("precious")
        refused(*words, code=3, said=("out.anncoder", "was not written by anncoder"))
        (tmp_path / "out.anncoder").unlink()
        (tmp_path / "out.anncoder").mkdir()
        (tmp_path / "out.anncoder" / "thesis.txt").write_text("precious")
        refused(*words, code=3, said=("out.anncoder", "was not written by anncoder"))
        (tmp_path / "out.anncoder" / "run.log").write_text("")
        (tmp_path / "out.anncoder" / "model").mkdir()
        (tmp_path / "out.anncoder" / "model" / "thesis.txt").write_text("precious")
        refused(*words, code=3, said=("out.anncoder/model", "was not written by anncoder"))
        (tmp_path / "out.anncoder" / "model").rename(tmp_path / "out.anncoder" / "unfinished")
        refused(*words, code=3, said=("out.anncoder/unfinished", "it holds 'thesis.txt'"))
        (tmp_path / "out.anncoder" / "unfinished" / "model").mkdir()
        (tmp_path / "out.anncoder" / "unfinished" / "thesis.txt").rename(
            tmp_path / "out.anncoder" / "unfinished" / "model" / "thesis.txt"
        )
        refused(*words, code=3, said=("out.anncoder/unfinished", "it holds 'thesis.txt'"))
        thesis = tmp_path / "out.anncoder" / "unfinished" / "model" / "thesis.txt"
        assert thesis.read_text() == "precious"

    def test_places_where_a_model_cannot_be_saved(
        self, refused: Callable[..., str], counts_file: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter.txt").write_text("precious")
        words = ("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK, "--save")
        refused(*words, tmp_path / "thesis", code=3, said=("was not written by anncoder",))
        refused(*words, counts_file, code=3, said=("was not written by anncoder",))
        refused(*words, tmp_path / "no" / "model", code=6, said=("does not exist",))
        for name in ("out.anncoder", "out.h5ad"):
            refused(*words, tmp_path / name, code=2, said=("other results stand there",))

    @pytest.mark.parametrize("command", ["embed", "denoise", "train"])
    def test_a_link_to_itself(
        self, command: str, refused: Callable[..., str], counts_file: Path, model_folder: Path, tmp_path: Path
    ) -> None:
        loop = tmp_path / "loop.h5ad"
        loop.symlink_to(loop)
        words = [*([] if command == "train" else [model_folder]), counts_file, "-o", loop]
        refused(command, *words, code=2, said=("leads back to itself", "[bad-output]"))

    def test_links_that_lead_nowhere(
        self, refused: Callable[..., str], counts_file: Path, model_folder: Path, tmp_path: Path
    ) -> None:
        loop, nothing, no_folder = (tmp_path / name for name in ("loop", "nothing", "no_folder.h5ad"))
        loop.symlink_to(loop)
        nothing.symlink_to(tmp_path / "gone")
        no_folder.symlink_to(tmp_path / "no" / "out.h5ad")
        for link in (loop, nothing):
            refused("embed", model_folder, counts_file, "-o", link, code=2, said=("is no folder", "[bad-output]"))
            refused("train", counts_file, "-o", link, *QUICK, code=2, said=("is no folder", "[bad-output]"))
            words = ("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK, "--save", link)
            refused(*words, code=3, said=("is a link to nothing that exists", "remove the link"))
        refused("train", counts_file, "-o", no_folder, *QUICK, code=6, said=("does not exist", "mkdir -p"))
        (tmp_path / "out.anncoder").symlink_to(tmp_path / "gone")
        refused("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK, code=3, said=("is a link to nothing",))

    def test_outputs_that_are_slips(
        self, refused: Callable[..., str], counts_file: Path, model_folder: Path, tmp_path: Path
    ) -> None:
        words = ("embed", model_folder, counts_file, "-o")
        refused(*words, model_folder, code=2, said=("is a model", "[bad-output]"))
        refused(*words, tmp_path / "out.anncoder", code=2, said=("is a run folder", "[bad-output]"))
        refused("train", counts_file, "-o", tmp_path / "out.anncoder", *QUICK, code=2, said=("is a run folder",))
        refused(*words, "", code=2, said=("no output was named",))  # of a variable of the shell that is not set
        for name in ("out.H5AD", ".h5ad"):
            refused(*words, tmp_path / name, code=2, said=("does not end in .h5ad",))

    def test_every_command_says_the_same_of_one_file(
        self, refused: Callable[..., str], model_folder: Path, tmp_path: Path
    ) -> None:
        with h5py.File(tmp_path / "raw.h5", "w") as file:
            file["matrix/barcodes"] = [b"AAAC", b"AAAG"]
        (tmp_path / "page.h5ad").write_text("<!DOCTYPE html><html></html>")
        (tmp_path / "page.csv").write_text("<!DOCTYPE html><html></html>")
        (tmp_path / "table.txt.h5ad").write_text("gene,a,b\ng1,0,1\n")
        (tmp_path / "empty.zarr").mkdir()
        adata = anndata.AnnData(np.ones((4, 3), np.float32), layers={"counts": np.ones((4, 3), np.float32)})
        adata.write_h5ad(tmp_path / "slash.h5ad")
        with h5py.File(tmp_path / "slash.h5ad", "r+") as file:
            file.move("layers/counts", "layers/of/us")
        out = tmp_path / "out.h5ad"
        for name, said in {
            "raw.h5": ("as AnnData: a file of 10x Genomics", "download it again"),
            "page.h5ad": ("is a web page", "download it again"),
            "page.csv": ("is a web page", "download it again"),
            "table.txt.h5ad": ("is a table of text", "pandas.read_csv("),
            "empty.zarr": ("it holds nothing", "a .zarr folder"),
            "slash.h5ad": ("a name with a slash ('of/us')", "f.move('layers/of/us', 'layers/of_us')"),
        }.items():
            path = tmp_path / name
            first = refused("check", path, code=3, said=said)
            assert "Traceback" not in first
            assert first == refused("train", path, "-o", out, *QUICK, code=3, said=said)
            assert first == refused("embed", model_folder, path, "-o", out, code=3, said=said)
            assert first == refused("dca", path, tmp_path / "outdir", code=3, said=said)

    def test_a_file_without_a_matrix(self, refused: Callable[..., str], tmp_path: Path) -> None:
        path = tmp_path / "in.h5ad"
        anndata.AnnData(obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=["g", "h"])).write_h5ad(path)
        for words in (("check", path), ("train", path, "-o", tmp_path / "o.h5ad"), ("dca", path, tmp_path / "outdir")):
            refused(*words, code=4, said=("has no X", "there is no matrix in this"))

    def test_metrics_never_replace_data(
        self, refused: Callable[..., str], counts_file: Path, model_folder: Path, tmp_path: Path
    ) -> None:
        words = ("evaluate", model_folder, counts_file, "-o")
        refused(*words, counts_file, code=2, said=("does not end in .json",))
        refused(*words, tmp_path / "no" / "m.json", code=6, said=("does not exist",))

    def test_simulate(self, refused: Callable[..., str], tmp_path: Path) -> None:
        refused("simulate", "-o", tmp_path / "no" / "s.h5ad", code=6, said=("does not exist",))
        refused("simulate", "-o", tmp_path / "s.csv", code=2, said=("does not end in .h5ad",))
        words = ("simulate", "-o", tmp_path / "s.h5ad", "--set")
        said = ("where:  --set: n_obs\n", "see: anncoder config --simulate")
        refused(*words, "n_obs=0", code=2, said=said)
        refused(*words, "n_cells=5", code=2, said=("unknown key 'n_cells'",))
        refused(*words, "n_obs=many", code=2, said=("n_obs",))


class TestConfiguration:
    def test_a_key_that_is_there_twice(self, refused: Callable[..., str], counts_file: Path, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("n_latent: 8\nmax_epochs: 1\nn_latent: 4\n")
        words = ("train", counts_file, "-o", tmp_path / "out.h5ad", "--config", tmp_path / "c.yaml")
        refused(*words, code=2, said=("bad-yaml", "'n_latent' is there twice", "line 3"))

    @pytest.fixture
    def train(self, refused: Callable[..., str], counts_file: Path) -> Callable[..., str]:
        def run(*words: object, **expected: Any) -> str:
            return refused("train", counts_file, "-o", counts_file.with_name("out.h5ad"), *words, **expected)

        return run

    @pytest.mark.parametrize(
        ("setting", "said"),
        [
            ("n_laten=4", ("unknown key 'n_laten'", "where:  --set", "did you mean 'n_latent'?")),
            ("learning_rat=1", ("did you mean 'learning_rate'?",)),
            ("xyzzy=1", ("unknown key 'xyzzy'", "known keys:", "batch_size")),
            ("batch_size=1", ("batch_size = 1", "greater than or equal to 2", "where:  --set: batch_size\n")),
            ("n_latent=0", ("n_latent = 0", "greater than or equal to 1")),
            ("n_latent=2.5", ("n_latent = 2.5", "integer")),
            ("n_latent=", ("n_latent = None",)),
            ("n_hidden=wide", ("n_hidden = 'wide'", "where:  --set: n_hidden")),
            ("likelihood=nbb", ("likelihood = 'nbb'", "'zinb'")),
            ("learning_rate=nan", ("learning_rate",)),
            ("learning_rate=-1", ("learning_rate = -1",)),
            ("valid_fraction=1", ("valid_fraction = 1",)),
            ("device=quantum", ("device 'quantum' cannot be used here", "device='auto'")),
            ("n_latent", ("'n_latent' is not of the form key=value",)),
            ("=4", ("is not of the form key=value",)),
            ("model=vae", ("unknown key 'vae'",)),
            ("model=[count]", ("unknown key",)),
        ],
    )
    def test_set(self, train: Callable[..., str], setting: str, said: tuple[str, ...]) -> None:
        train("--set", setting, code=2, said=said)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("n_laten: 4\n", ("unknown key 'n_laten'", "did you mean 'n_latent'?")),
            ("batch_size: 1\n", ("batch_size = 1",)),
            ("1: 2\n", ("unknown key '1'",)),
            ("", ("key: value",)),
            ("- 1\n- 2\n", ("key: value",)),
            ("just words", ("key: value",)),
            ("a: [1, 2\n", ("not valid YAML",)),
            ("a: b: c\n", ("not valid YAML",)),
            ("\x00\x01\x02", ("not valid YAML",)),
            ("[" * 1500, ("not valid YAML",)),
            ("n_latent: !!python/name:os.system\n", ("not valid YAML",)),
            ("n_latent: 2023-13-45\n", ("n_latent",)),
            (
                "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
                "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nn_latent: [*e,*e,*e,*e,*e]\n",
                ("unknown key 'a'",),
            ),
        ],
        ids=lambda value: repr(value)[:30],
    )
    def test_file(self, train: Callable[..., str], tmp_path: Path, text: str, said: tuple[str, ...]) -> None:
        (tmp_path / "x.yaml").write_text(text)
        message = train("--config", tmp_path / "x.yaml", code=2, said=said)
        if "unknown key" in message or "YAML" in message or "batch_size" in message:
            assert f"where:  {tmp_path / 'x.yaml'}" in message

    def test_the_place_that_counts_is_named(self, train: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_text("n_latent: 0\nlikelihood: gaussian\n")
        train("--config", tmp_path / "x.yaml", code=2, said=(f"where:  {tmp_path}/x.yaml: n_latent\n",))
        train("--config", tmp_path / "x.yaml", "--set", "n_latent=-1", code=2, said=("where:  --set: n_latent\n",))
        train("--threads", "0", code=2, said=("where:  options: threads\n",))

    def test_a_file_runs_no_code(self, train: Callable[..., str], tmp_path: Path) -> None:
        canary = tmp_path / "canary"
        (tmp_path / "x.yaml").write_text(f"n_latent: !!python/object/apply:pathlib.Path.touch [{str(canary)!r}]\n")
        train("--config", tmp_path / "x.yaml", code=2, said=("not valid YAML", "python/object/apply"))
        train("--set", f"n_latent=!!python/object/apply:os.system ['touch {canary}']", code=2, said=("n_latent",))
        assert not canary.exists()

    def test_bytes_that_are_no_text(self, train: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_bytes(b"n_latent: \xff\xfe\n")
        train("--config", tmp_path / "x.yaml", code=2, said=("not valid YAML",))

    def test_no_file(self, train: Callable[..., str], tmp_path: Path) -> None:
        for path in (tmp_path / "missing.yaml", tmp_path):
            train("--config", path, code=3, said=("cannot read the configuration", str(path)))

    def test_unknown_model(self, train: Callable[..., str], refused: Callable[..., str]) -> None:
        train("--model", "denoisng", code=2, said=("unknown key 'denoisng'", "did you mean 'denoising'?"))
        refused("config", "--model", "cuont", code=2, said=("did you mean 'count'?",))
        refused("config", "--set", "n_laten=3", code=2, said=("did you mean 'n_latent'?",))

    def test_usage(self, train: Callable[..., str], refused: Callable[..., str], model_folder: Path) -> None:
        train("--layr", "counts", code=2, said=("Usage", "No such option"))
        train("--seed", "-1", code=2, said=("Usage",))
        train("--threads", "0", code=2, said=("threads = 0",))
        train("--set", "n_latent=true", code=2, said=("n_latent = True: true and false",))
        train("--set", "n_hidden=[8, true]", code=2, said=("n_hidden = [8, True]",))
        train("--set", "seed=false", code=2, said=("seed = False",))
        train("--threads", "100000000000", code=2, said=("threads = 100000000000",))
        train("--set", f"seed={10**20}", code=2, said=("seed = 10000", "less than"))
        train("--set", f"seed={2**32}", code=2, said=("seed = 4294967296",))
        train("--seed", 2**32, code=2, said=("Usage", "--seed"))
        refused("trian", code=2, said=("Usage", "No such command"))
        refused("train", code=2, said=("Usage", "Missing"))
        words = ("denoise", model_folder, "in.h5ad", "-o", "out.h5ad", "--scale", "count")
        refused(*words, code=2, said=("did you mean 'counts'?",))

    def test_labels_of_evaluate(
        self, refused: Callable[..., str], model_folder: Path, counts_file: Path, tmp_path: Path
    ) -> None:
        words = ("evaluate", model_folder, counts_file, "-o", tmp_path / "m.json", "--labels", "gruop")
        refused(*words, code=2, said=("unknown key 'gruop'", "did you mean 'group'?"))


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")  # of anndata, about writing, which is the test's part
def test_a_zarr_folder_is_data_too(anncoder: Run, counts: anndata.AnnData, tmp_path: Path) -> None:
    assert isinstance(counts.obs, pd.DataFrame)
    counts.write_zarr(tmp_path / "in.zarr")
    result = anncoder("train", tmp_path / "in.zarr", "-o", tmp_path / "out.h5ad", *QUICK)
    assert result.exit_code == 0, result.output
