"""The command line of DCA: the options of the published ``dca`` command, which ``anncoder dca`` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anncoder.cli_options import LAST_SEED, MOST_THREADS

Penalty = Annotated[float, typer.Option(min=0.0)]


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
    threads: Annotated[int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads.")] = None,
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
    denoisesubset: Annotated[
        Path | None, typer.Option(help="File of the genes to write, one a line.", readable=False)
    ] = None,
    faithful: Annotated[bool, typer.Option("--faithful", help="Published split (last cells), last weights.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Start of every random stream.")] = 0,
    hyper: Annotated[bool, typer.Option("--hyper", hidden=True)] = False,
    hypern: Annotated[int | None, typer.Option(hidden=True)] = None,
    hyperepoch: Annotated[int | None, typer.Option(hidden=True)] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", hidden=True)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Denoise with DCA as its own command does: mean.tsv, latent.tsv, dispersion.tsv, dropout.tsv; and dca.h5ad."""
    from anncoder.commands.outcome import outcome

    with outcome(debug=debug, quiet=quiet):
        from anncoder.commands.dca import DCARequest, refuse_unsupported, run_dca, widths
        from anncoder.dca_words import Words

        asked = {"--hyper": hyper, "--hypern": hypern, "--hyperepoch": hyperepoch, "--tensorboard": tensorboard}
        refuse_unsupported([name for name, value in asked.items() if value], normtype)
        words = Words(
            ae_type=ae_type,
            normalize_per_cell=sizefactors,
            scale=norminput,
            log1p=loginput,
            hidden_size=widths(hiddensize),
            hidden_dropout=dropoutrate,
            input_dropout=inputdropout,
            batchnorm=batchnorm,
            activation=activation,
            init=init,
            ridge=ridge,
            l1=l1,
            l2=l2,
            l1enc=l1enc,
            l2enc=l2enc,
            epochs=epochs,
            reduce_lr=reducelr,
            early_stop=earlystop,
            batch_size=batchsize,
            optimizer=optimizer,
            learning_rate=learningrate,
            clip_grad=gradclip,
            random_state=seed,
            threads=threads,
            check_counts=checkcounts,
            faithful=faithful,
        )
        run_dca(DCARequest(data, outdir, words, transpose, testsplit, saveweights, denoisesubset, quiet))
