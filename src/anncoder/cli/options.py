"""Options that several commands share: input, output, layer, key, seed, model name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from anncoder.models import names

# spelt out, for --help must not wait for pydantic; a test holds them to anncoder.config.TrainingConfig
LAST_SEED, MOST_THREADS = 2**32 - 1, 1024

# readable=False, here and in the commands: that a file cannot be read has an exit code of its own; it is no wrong usage
Inputs = Annotated[
    list[Path],
    typer.Argument(
        help="An .h5ad file or .zarr folder of any size, 10x .h5, mtx folder or loom; several, or a quoted glob.",
        show_default=False,
        readable=False,
    ),
]
ModelFolder = Annotated[
    Path, typer.Argument(help="A saved model: the folder of --save, or RUN.anncoder/model.", readable=False)
]


def _named(text: str) -> Path:
    if not text:  # a variable of the shell that is not set; as a path it would be the current folder
        raise typer.BadParameter("no output was named")
    return Path(text).expanduser()


def _output(of: str) -> Any:
    return typer.Option("--output", "-o", help=of, show_default=False, readable=False, parser=_named, metavar="<path>")


Output = Annotated[Path, _output("The .h5ad file to write.")]
Outputs = Annotated[
    Path,
    _output("The .h5ad file to write; or, of one input or several, a folder, in which each keeps its name."),
]
BatchKeys = Annotated[
    list[str] | None,
    typer.Option("--batch-key", help="obs column with the experimental batch; given again, their combinations count."),
]
CategoricalKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--categorical-key",
        help="obs column of categories whose effect is to go, beside the batch; any number of times.",
    ),
]
ContinuousKeys = Annotated[
    list[str] | None,
    typer.Option("--continuous-key", help="obs column of numbers whose effect is to go; any number of times."),
]
CovariateValues = Annotated[
    list[str] | None,
    typer.Option(
        "--covariate", help="Decode every cell as with this value: stress=0.3, or stress=mean; any number of times."
    ),
]
Layer = Annotated[str | None, typer.Option(help="Layer that holds the counts, or raw.X; X if not given.")]
Key = Annotated[str, typer.Option(help="Name of the results: obsm['X_KEY'], uns['KEY'], layers['KEY_denoised'].")]
InPlace = Annotated[bool, typer.Option("--in-place", help="Let the output replace the input.")]
DropEmpty = Annotated[bool, typer.Option("--drop-empty-cells", help="Leave out cells without any count.")]
AllowMissing = Annotated[float, typer.Option(help="Share of the model's genes that may be missing.")]
Resume = Annotated[
    bool | None,
    typer.Option(
        "--resume/--no-resume",
        help="Go on with the unfinished run of this output and refuse another one, or start anew; by default go on "
        "if settings and data are the same.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, gpu, cuda, cuda:1, mps, auto.")]
Threads = Annotated[int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]
MODELS = f"One of {', '.join(names())}, or a model of an installed package (docs/own-model.md)."
Seed = Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Start of every random stream.")]
MOST_FITS = 20  # of anncoder.evaluation.stability
Seeds = Annotated[
    int,
    typer.Option(
        min=0, max=MOST_FITS, help="Compare so many fits with seeds of their own, the model one of them; 0 for none."
    ),
]
Root = Annotated[
    str | None, typer.Option(help="With --seeds: name of the cell that pseudotime starts from.", show_default=False)
]
GivenSeed = Annotated[
    int | None, typer.Option(min=0, max=LAST_SEED, help="Start of every random stream; 0 if not given.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, any number of times; keys: anncoder config (--simulate).")
]
DemoFolder = Annotated[
    Path,
    typer.Option(
        "--outdir", "-o", help="Folder for demo_counts.h5ad, demo.h5ad, demo.anncoder/, demo_*.png.", readable=False
    ),
]
