"""Command line (typer): commands, arguments and options; the modules beside do the work."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from anncoder.cli.exit import outcome
from anncoder.cli.options import (
    LAST_SEED,
    MODELS,
    AllowMissing,
    BatchKeys,
    CategoricalKeys,
    ContinuousKeys,
    CovariateValues,
    Debug,
    DemoFolder,
    Device,
    DropEmpty,
    GivenSeed,
    InPlace,
    Inputs,
    Key,
    Layer,
    ModelFolder,
    Output,
    Outputs,
    Quiet,
    Resume,
    Root,
    Seed,
    Seeds,
    Settings,
    Threads,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Single-cell autoencoders: h5ad in, latent embedding and denoised expression out.",
    epilog="Exit codes: 0 done, 1 a bug, 2 usage or configuration, 3 unreadable input, 4 invalid input, 5 diverged, "
    "6 out of memory or disk, 130/143 interrupted.",
)

OneInput = Annotated[
    Path, typer.Argument(help="An .h5ad file or .zarr folder of any size.", show_default=False, readable=False)
]

LAST_STREAM = 2  # descriptor of stderr


def main() -> None:
    """Run the command line."""
    _open_closed_streams()
    app(prog_name="anncoder")


def _open_closed_streams() -> None:
    # `anncoder ... 2>&-`: messages then go nowhere, and the next file that is opened is not taken for stderr
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= LAST_STREAM:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - as long as the process


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"anncoder {version('anncoder')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del version


def command(run: Callable[..., None]) -> Callable[..., None]:
    """Add a command with the arguments of a function, and ``--debug``; its errors become messages and exit codes."""

    @wraps(run)
    def guarded(*, debug: bool, **options: Any) -> None:
        with outcome(debug=debug, quiet=options.get("quiet", False)):
            run(**options)

    signature = inspect.signature(run, eval_str=True)
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    shown = signature.replace(parameters=[*signature.parameters.values(), debug])
    guarded.__signature__ = shown  # type: ignore[attr-defined] # typer reads it
    return app.command()(guarded)


@command
def check(
    data: Inputs,
    layer: Layer = None,
    expression: Annotated[bool, typer.Option("--expression", help="Expect expression values, not counts.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    estimate: Annotated[bool, typer.Option(help="Try some steps, and say how long a fit will take here.")] = True,
) -> None:
    """Say what a file holds, whether a model can be trained on it, and how long that will take."""
    from anncoder.cli.inspect import run_check

    run_check(data, layer=layer, counts=not expression, as_json=json, estimate=estimate)


@command
def train(
    data: Inputs,
    output: Outputs,
    model: Annotated[str | None, typer.Option(help=MODELS)] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.", readable=False)] = None,
    settings: Settings = None,
    batch_key: BatchKeys = None,
    categorical_key: CategoricalKeys = None,
    continuous_key: ContinuousKeys = None,
    layer: Layer = None,
    key: Key = "ae",
    denoise: Annotated[bool, typer.Option("--denoise", help="Write the denoised layer too.")] = False,
    save: Annotated[Path | None, typer.Option(help="Save the model to this folder as well.", readable=False)] = None,
    mask_var: Annotated[
        str | None,
        typer.Option(help="var column of the genes to fit on, none for all; highly_variable, if there is one."),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="obs column to compare clusters with.")] = None,
    evaluation: Annotated[bool, typer.Option(help="Compare with PCA and the gene means.")] = True,
    report: Annotated[bool, typer.Option("--report", help="Write report.html into the run folder.")] = False,
    seed: GivenSeed = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, gpu, cuda, cuda:1, mps.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    in_place: InPlace = False,
    drop_empty_cells: DropEmpty = False,
    resume: Resume = None,
    progress: Annotated[bool | None, typer.Option(help="A bar, or none; by default where there is a terminal.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a model; OUTPUT is the input plus the latent, beside it the run folder with model, history and log."""
    request = dict(locals())
    from anncoder.cli.train import TrainRequest, run_train

    run_train(TrainRequest(**request))


@command
def search(
    data: Annotated[Path, typer.Argument(help="An .h5ad file or .zarr folder.", show_default=False, readable=False)],
    output: Output,
    model: Annotated[str | None, typer.Option(help=f"The model to search settings for. {MODELS}")] = None,
    space: Annotated[
        Path | None,
        typer.Option(help="YAML: for each setting a list of values, or {low: a, high: b, log: true}.", readable=False),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many settings to try.")] = 20,
    settings: Settings = None,
    layer: Layer = None,
    seed: GivenSeed = None,
    labels: Annotated[str | None, typer.Option(help="obs column to compare clusters with.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, gpu, cuda, cuda:1, mps.")] = None,
    threads: Threads = None,
) -> None:
    """Try settings at random, scored on held-out molecules, and train the best; goes on where it was stopped."""
    from anncoder.cli.search import SearchRequest, run_search

    options = (f"{name}={value}" for name, value in (("device", device), ("threads", threads)) if value is not None)
    of_all = (*(settings or ()), *options)  # the options last: they beat --set
    run_search(SearchRequest(data, output, model, space, trials, of_all, layer, seed, labels))


@command
def recommend(
    data: Inputs,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for table, picture and the winner.", readable=False),
    ] = Path("recommendation"),
    layer: Layer = None,
    models: Annotated[
        list[str] | None, typer.Option(help="Models to compare with PCA; count, denoising, variational if not given.")
    ] = None,
    widths: Annotated[list[int] | None, typer.Option(help="Latent units to try; 10 and 32 if not given.")] = None,
    genes: Annotated[
        list[int] | None, typer.Option(help="Numbers of variable genes to try; 1000 and 2000 if not given.")
    ] = None,
    settings: Settings = None,
    seed: GivenSeed = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, gpu, cuda, cuda:1, mps.")] = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Fit PCA and autoencoders, score them without labels, and say what to take; goes on where it was stopped."""
    from anncoder.cli.search import RecommendRequest, run_recommend

    of_all = tuple(settings or ())
    run_recommend(RecommendRequest(data, output, layer, models, widths, genes, seed, device, threads, of_all, quiet))


@command
def embed(
    model: ModelFolder,
    data: Inputs,
    output: Outputs,
    layer: Layer = None,
    key: Key = "ae",
    allow_missing: AllowMissing = 0.0,
    in_place: InPlace = False,
    drop_empty_cells: DropEmpty = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Write the latent of a saved model for new cells; genes are matched by name."""
    from anncoder.cli.apply import ApplyRequest, run_embed

    request = ApplyRequest(model, data, output, layer, key, allow_missing, in_place, drop_empty_cells, device, threads)
    run_embed(request)


@command
def denoise(
    model: ModelFolder,
    data: Inputs,
    output: Outputs,
    layer: Layer = None,
    key: Key = "ae",
    scale: Annotated[str | None, typer.Option(help="counts (of a model of counts the default) or normalized.")] = None,
    batch: Annotated[str | None, typer.Option(help="Decode every cell as if of this experimental batch.")] = None,
    covariate: CovariateValues = None,
    allow_missing: AllowMissing = 0.0,
    in_place: InPlace = False,
    drop_empty_cells: DropEmpty = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Write the denoised expression of a saved model as a new layer."""
    from anncoder.cli.apply import ApplyRequest, run_denoise

    request = ApplyRequest(model, data, output, layer, key, allow_missing, in_place, drop_empty_cells, device, threads)
    run_denoise(request, scale=scale, batch=batch, covariates=covariate)


@command
def adapt(
    model: ModelFolder,
    data: Inputs,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the adapted model.", readable=False)],
    batch_key: BatchKeys = None,
    layer: Layer = None,
    allow_missing: AllowMissing = 0.0,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Save a model that knows the experimental batches of new cells too; all else in it stays as it is."""
    from anncoder.cli.apply import AdaptRequest, run_adapt

    run_adapt(AdaptRequest(model, data, output, batch_key, layer, allow_missing, seed, device, threads))


@command
def evaluate(
    model: ModelFolder,
    data: Inputs,
    labels: Annotated[str | None, typer.Option(help="obs column with the cell types.")] = None,
    batch_key: BatchKeys = None,
    layer: Layer = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .json file to write.", readable=False)] = Path(
        "evaluation.json"
    ),
    allow_missing: AllowMissing = 0.0,
    guard: Annotated[
        bool, typer.Option("--guard", help="Fit again to permuted genes, and count the correlations invented.")
    ] = False,
    seeds: Seeds = 0,
    root: Root = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Compare a saved model with PCA of the same width and with the gene means."""
    request = dict(locals())
    from anncoder.cli.inspect import EvaluateRequest, run_evaluate

    run_evaluate(EvaluateRequest(**request))


@command
def report(
    data: OneInput,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .html file to write.", show_default=False, readable=False)
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="A saved model; that of `anncoder train` beside the file if not given.", readable=False),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="obs column with the cell types.")] = None,
    key: Key = "ae",
    layer: Layer = None,
    guard: Annotated[
        bool, typer.Option("--guard", help="Fit again to permuted genes, and count the correlations invented.")
    ] = False,
    seeds: Seeds = 0,
    root: Root = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Write a page on data, training, scores beside PCA, maps and genes; of the output of `anncoder train`."""
    request = dict(locals())
    from anncoder.cli.inspect import ReportRequest, run_report

    run_report(ReportRequest(**request))


@command
def relations(
    data: Annotated[Path, typer.Argument(help="An .h5ad file or .zarr folder.", show_default=False, readable=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .csv file to write.", show_default=False, readable=False)
    ],
    source: Annotated[str, typer.Option(help="The gene that the others are scored against.", show_default=False)],
    target: Annotated[
        list[str] | None, typer.Option(help="Another gene, any number of times; all if not given.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Layer of denoised or smooth values; ae_denoised if not given.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, any number of times: the arguments of ac.tl.gene_relations."),
    ] = None,
    seed: GivenSeed = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Score one gene against all others by DREMI, with shuffles as null, or against their descendants."""
    from anncoder.cli.time_series.relations import RelationsRequest, run_relations

    of_all = tuple(settings or ())
    run_relations(RelationsRequest(data, output, source, target, layer, of_all, seed, threads, quiet))


@command
def info(
    model: ModelFolder,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a saved model is; opening it runs no code from it."""
    from anncoder.cli.inspect import run_info

    run_info(model, as_json=json)


@command
def config(
    model: Annotated[str, typer.Option(help=MODELS)] = "count",
    settings: Settings = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="Those of `anncoder simulate`.")] = False,
) -> None:
    """Print every setting of a model with its default, as YAML that `train --config` reads."""
    from anncoder.cli.demo import run_config_of_simulate
    from anncoder.cli.inspect import run_config

    run_config_of_simulate(tuple(settings or ())) if simulate else run_config(model, tuple(settings or ()))


@command
def simulate(
    output: Output,
    settings: Settings = None,
    seed: GivenSeed = None,
    keep_means: Annotated[bool, typer.Option("--keep-means", help="Write the true means as a layer.")] = False,
) -> None:
    """Simulate counts of groups or paths of cells (Splatter's model), of any number, with flat memory."""
    from anncoder.cli.demo import run_simulate

    run_simulate(output, tuple(settings or ()), seed=seed, keep_means=keep_means)


@command
def demo(
    outdir: DemoFolder = Path(),
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Do the main job on 700 real blood cells: check, train, embed, denoise, cluster, draw. Downloads nothing."""
    from anncoder.cli.demo import run_demo

    run_demo(outdir, seed=seed, threads=threads)


DryRun = Annotated[bool, typer.Option("--dry-run", help="Say sizes, memory and seconds, and do nothing.")]
Options = Annotated[list[str] | None, typer.Option("--set", help="key=value, any number of times.")]


@command
def transport(
    data: OneInput,
    output: Output,
    time_key: Annotated[str, typer.Option(help="obs column with the time of each cell.")],
    labels: Annotated[str | None, typer.Option(help="obs column: fates, and flows between these labels.")] = None,
    key: Annotated[str, typer.Option(help="The latent is obsm['X_KEY'].")] = "ae",
    use_rep: Annotated[str | None, typer.Option(help="Another slot of obsm.")] = None,
    growth_key: Annotated[
        str | None, typer.Option(help="obs column with factors a unit of time; that of ac.tl.growth, if there is one.")
    ] = None,
    settings: Options = None,
    validate: Annotated[bool, typer.Option("--validate", help="Hold out each time between two others.")] = False,
    in_place: InPlace = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Find which cells of a time point those of the one before become: optimal transport, growth, fates."""
    request = dict(locals())
    from anncoder.cli.time_series.transport_maps import TransportRequest, run_transport

    run_transport(TransportRequest(**request))


@command
def dynamics(
    data: OneInput,
    output: Output,
    time_key: Annotated[str, typer.Option(help="obs column with the time of each cell.")],
    coordinate: Annotated[str, typer.Option(help="obs column from 0 to 1, such as dpt_pseudotime.")],
    sizes: Annotated[
        Path | None,
        typer.Option(help="CSV of the population's size: columns time, size and, if known, sd.", readable=False),
    ] = None,
    key: Annotated[str, typer.Option(help="Name of the results: uns['KEY'].")] = "dynamics",
    settings: Options = None,
    in_place: InPlace = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Fit velocity, growth and diffusion along a coordinate to cells of several times and population sizes."""
    request = dict(locals())
    from anncoder.cli.time_series.populations import DynamicsRequest, run_dynamics

    run_dynamics(DynamicsRequest(**request))


@command
def balance(
    data: OneInput,
    output: Output,
    labels: Annotated[str, typer.Option(help="obs column with the labels of entry and exits.")],
    entry: Annotated[list[str] | None, typer.Option(help="Label of the cells where new ones enter.")] = None,
    exits: Annotated[
        list[str] | None, typer.Option(help="LABEL=RATE, or LABEL, of cells that leave; a fate each.")
    ] = None,
    rates: Annotated[str | None, typer.Option(help="Instead, an obs column of net rates.")] = None,
    key: Annotated[str, typer.Option(help="The latent is obsm['X_KEY'].")] = "ae",
    use_rep: Annotated[str | None, typer.Option(help="Another slot of obsm.")] = None,
    key_added: Annotated[str, typer.Option(help="Name of the results: obs['KEY_V'], obsm['KEY_fates'].")] = "balance",
    basis: Annotated[str, typer.Option(help="Slot of obsm to draw on, where it is there.")] = "X_umap",
    settings: Options = None,
    in_place: InPlace = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Find the potential from entry to exits in a snapshot, and the fate of each cell."""
    request = dict(locals())
    from anncoder.cli.time_series.populations import BalanceRequest, run_balance

    run_balance(BalanceRequest(**request))


Penalty = Annotated[float, typer.Option(min=0.0)]


@command
def dca(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help=".csv or .tsv (genes x cells), .h5ad or .zarr (cells x genes).", readable=False
        ),
    ],
    outdir: Annotated[
        Path, typer.Argument(metavar="OUTDIR", help="Folder for the tables and the .h5ad file.", readable=False)
    ],
    normtype: Annotated[str, typer.Option(help="zheng: there is no other.")] = "zheng",
    transpose: Annotated[bool, typer.Option("--transpose", "-t", help="A table is cells x genes.")] = False,
    testsplit: Annotated[bool, typer.Option("--testsplit", help="Keep a tenth of the cells out of the fit.")] = False,
    ae_type: Annotated[str, typer.Option("--type", help="Likelihood, dispersion and heads.")] = "nb-conddisp",
    threads: Threads = None,
    batchsize: Annotated[int, typer.Option("--batchsize", "-b", help="Cells in a minibatch.")] = 32,
    sizefactors: Annotated[bool, typer.Option("--sizefactors/--nosizefactors", help="Normalise by size.")] = True,
    norminput: Annotated[bool, typer.Option("--norminput/--nonorminput", help="z-score the input.")] = True,
    loginput: Annotated[bool, typer.Option("--loginput/--nologinput", help="Log the input.")] = True,
    dropoutrate: Annotated[float, typer.Option("--dropoutrate", "-d", help="Of hidden units.")] = 0.0,
    batchnorm: Annotated[bool, typer.Option("--batchnorm/--nobatchnorm", help="Batch normalisation.")] = True,
    l1: Penalty = 0.0,
    l2: Penalty = 0.0,
    l1enc: Penalty = 0.0,
    l2enc: Penalty = 0.0,
    ridge: Annotated[float, typer.Option(min=0.0, help="On the dropout probability.")] = 0.0,
    gradclip: Annotated[float, typer.Option(min=0.0, help="Largest entry of the gradient.")] = 5.0,
    activation: Annotated[str, typer.Option(help="Of hidden layers.")] = "relu",
    optimizer: Annotated[str, typer.Option(help="RMSprop or Adam.")] = "RMSprop",
    init: Annotated[str, typer.Option(help="Initial weights.")] = "glorot_uniform",
    epochs: Annotated[int, typer.Option("--epochs", "-e", help="At most.")] = 300,
    earlystop: Annotated[int, typer.Option(min=0, help="Epochs without improvement; 0: never stop early.")] = 15,
    reducelr: Annotated[int, typer.Option(min=0, help="Epochs until the step size falls; 0: never.")] = 10,
    hiddensize: Annotated[str, typer.Option("--hiddensize", "-s", help="Widths; the middle is the latent.")] = (
        "64,32,64"
    ),
    inputdropout: Annotated[float, typer.Option(help="Of input values.")] = 0.0,
    learningrate: Annotated[float | None, typer.Option("--learningrate", "-r", help="Step size.")] = None,
    saveweights: Annotated[bool, typer.Option("--saveweights/--no-saveweights", help="Save OUTDIR/model.")] = False,
    checkcounts: Annotated[bool, typer.Option("--checkcounts/--nocheckcounts", help="Refuse other values.")] = True,
    layer: Layer = None,
    denoisesubset: Annotated[
        Path | None, typer.Option(help="File of the genes to write, one a line.", readable=False)
    ] = None,
    faithful: Annotated[bool, typer.Option("--faithful", help="Published split (last cells), last weights.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Start of every random stream.")] = 0,
    hyper: Annotated[bool, typer.Option("--hyper", hidden=True)] = False,
    hypern: Annotated[int | None, typer.Option(hidden=True)] = None,
    hyperepoch: Annotated[int | None, typer.Option(hidden=True)] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", hidden=True)] = False,
    quiet: Quiet = False,
) -> None:
    """Denoise with DCA as its own command does: mean.tsv, latent.tsv, dispersion.tsv, dropout.tsv; and dca.h5ad."""
    options = dict(locals())
    from anncoder.cli.dca import DCARequest, run_dca

    run_dca(DCARequest(data, outdir, options, transpose, testsplit, saveweights, denoisesubset, quiet))
