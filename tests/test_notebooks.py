"""Every notebook runs from top to bottom, and is committed with its outputs: ``python tests/test_notebooks.py``."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from traitlets import default

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FEWEST_PICTURES = {"04_systems": 1}
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class ThisPython(KernelSpecManager):
    """Finds one kernel: this interpreter, whatever kernels are installed for the user."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        assert kernel_name == "python3"
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
        )


class Manager(AsyncKernelManager):
    """Starts that kernel."""

    @default("kernel_spec_manager")
    def _this_python(self) -> ThisPython:
        return ThisPython(parent=self)


def test_they_are_there() -> None:
    names = ["01_quickstart", "02_from_pca_to_counts", "03_training", "04_systems", "05_time"]
    assert [path.stem for path in NOTEBOOKS] == names


def executed(path: Path, folder: Path) -> Any:
    """Return a notebook, run from top to bottom in a folder."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        kernel_manager_class=Manager,
        timeout=300,
        allow_errors=False,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    return notebook


def store(path: Path) -> None:
    """Run a notebook and write it with its outputs, but for stderr, where libraries name files of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(path, Path(folder))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.pop("language_info", None)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


@every_notebook
def test_it_is_committed_with_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # run in order, once
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= FEWEST_PICTURES.get(path.stem, 3)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = path.read_text(encoding="utf-8")
    assert len(text) < 1_500_000
    assert " at 0x" not in text  # addresses in memory
    assert "## Exercises" in text
    assert "<summary>Answers</summary>" in text
    assert not re.search(r"""["'\s(](/(?:home|root|tmp|work|Users|mnt|usr)/|~/|[A-Z]:\\)""", text)


@every_notebook
@pytest.mark.slow
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = executed(path, tmp_path)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= FEWEST_PICTURES.get(path.stem, 3)
    printed = "".join(output.get("text", "") for output in outputs)
    assert "Traceback" not in printed
    # tqdm's, of scanpy's and ours: ipywidgets would draw the bars, and nobody must have them
    assert "Warning" not in printed.replace("TqdmWarning", "")
    SAYS[path.stem]("\n".join([printed, *(output.get("data", {}).get("text/plain", "") for output in outputs)]))


def numbers(pattern: str, shown: str) -> list[float]:
    """Return the groups of the first match as numbers."""
    found = re.search(pattern, shown, re.MULTILINE)
    assert found, pattern
    return [float(group) for group in found.groups()]


def quickstart(shown: str) -> None:
    orders = re.findall(r"true one: Spearman (-?[\d.]+)", shown)
    assert len(orders) == 2
    assert min(map(float, orders)) > 0.9
    assert shown.count("True") >= 2
    (model,), (pca,), (mean,) = (
        numbers(rf"^simulated: .*{name} ([\d.]+)", shown) for name in ("autoencoder", "PCA", "gene means")
    )
    assert model < min(pca, mean) - 0.2
    apart, mixed = (numbers(rf"^{name} batch_key: mixing ([\d.]+), .* ([\d.]+)$", shown) for name in ("no", "with"))
    assert apart[0] < 0.3
    assert min(mixed) > 0.9


def from_pca_to_counts(shown: str) -> None:
    assert numbers(r"that of PCA: ([\d.]+) degrees", shown)[0] < 3
    for k in (2, 10, 30):
        of_pca, of_linear, _ = numbers(rf"^{k} +([\d.]+) +([\d.]+) +([\d.]+)$", shown)
        assert abs(of_linear / of_pca - 1) < 0.1
    assert numbers(r"^2 +[\d.]+ +[\d.]+ +([\d.]+)$", shown)[0] < 0.85 * numbers(r"^2 +([\d.]+) +[\d.]+ +", shown)[0]
    assert numbers(r"two units: ([\d.]+)", shown)[0] > numbers(r"two components: ([\d.]+)", shown)[0] + 0.1
    error, of_pca = numbers(r"autoencoder ([\d.]+), PCA ([\d.]+)", shown)
    assert error < of_pca
    # error to the truth, library size in the latent, k-means ARI
    rows = {name: numbers(rf"^{name} +([\d.]+) +([\d.]+) +[\d.]+$", shown) for name in ("PCA", "denoising", "count")}
    # what the text says: a quarter and up to a half of the variance, of PCA nearly four fifths
    for name, most in (("denoising", 0.4), ("count", 0.55)):
        assert rows[name][0] < rows["PCA"][0]
        assert rows[name][1] < most < rows["PCA"][1] - 0.2


def training(shown: str) -> None:
    assert re.findall(r"NAND: (\d)", shown) == ["1", "1", "1", "0"]
    by_rule, by_trying = numbers(r"([-\d.]+) by the chain rule, ([-\d.]+) by trying", shown)
    assert abs(by_rule - by_trying) < 1e-3
    assert "stopped being finite in epoch 1" in shown
    assert len(re.findall(r"^seed \d +[\d.]+ +[\d.]+ +NaN$", shown, re.MULTILINE)) == 3
    last, kept = (numbers(rf"^{name} .*?([\d.]+)$", shown)[0] for name in ("none", "early stopping"))
    assert kept < last
    (means,), (by_chance,), (by_svm,) = (
        numbers(pattern, shown)
        for pattern in (r"^gene means +([\d.]+)", r"largest type\) +NaN +([\d.]+)", r"all 765 genes +NaN +([\d.]+)")
    )
    for method in ("PCA, 10 components", "autoencoder, 10 units"):
        error, told = numbers(rf"^{method} +([\d.]+) +([\d.]+)$", shown)
        assert error < 0.8 * means
        assert by_chance + 0.2 < told < by_svm + 0.05
    error, told = numbers(r"^untrained network +([\d.]+) +([\d.]+)$", shown)
    assert error > 0.95 * means
    assert told > by_chance
    assert "not-integer" in shown
    assert "still falling" in shown


def systems(shown: str) -> None:
    mean = numbers(r"^gene means +0 +([\d.]+)", shown)[0]
    for name in ("PCA, 10", "undercomplete", "denoising", "count", "variational", "dca", "scvis", "saucie"):
        assert numbers(rf"^{name} +\d+ +([\d.]+)", shown)[0] < mean, name
    assert re.search(r"^netsne +2 +NaN", shown, re.MULTILINE)
    model, of_means = (numbers(rf"^{row} +([\d.]+) +[\d.]+ +[\d.]+$", shown)[0] for row in ("model", "gene_mean"))
    assert model < of_means  # AutoImpute's masked test


def time_series(shown: str) -> None:
    assert re.findall(r"^\d, \d, \d: a (\w+)", shown, re.MULTILINE) == ["loss", "tie", "win"]
    chances = re.findall(r"^(?:equal|[AB] leaves) .*?([\d.]+) +[\d.]+$", shown, re.MULTILINE)
    assert max(map(float, chances)) > 0.7
    assert min(map(float, chances)) < 0.4
    ratios = [float(row) for row in re.findall(r"^[23]\.0 +NaN +[\d.]+ +[\d.]+ +([\d.]+)$", shown, re.MULTILINE)]
    assert len(ratios) == 2
    assert all(1.6 < ratio < 2.05 for ratio in ratios)


# what a notebook's text says of its numbers, on any machine
SAYS: dict[str, Callable[[str], None]] = {
    "01_quickstart": quickstart,
    "02_from_pca_to_counts": from_pca_to_counts,
    "03_training": training,
    "04_systems": systems,
    "05_time": time_series,
}


if __name__ == "__main__":
    for each in NOTEBOOKS:
        store(each)
