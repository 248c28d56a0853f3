"""Configuration: hyper-parameters that models share, training settings, their bounds.

The same words are constructor arguments, ``fit`` arguments, keys of ``configs/*.yaml`` and of ``--set``.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, get_args

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from anncoder.errors import ConfigError, listed

ActivationName = Literal[
    "relu", "linear", "elu", "gelu", "leaky_relu", "mish", "prelu", "selu", "sigmoid", "silu", "softplus", "tanh"
]
NormName = Literal["batch", "batch-shift", "layer", "none"]
LikelihoodName = Literal["nb", "zinb", "poisson", "gaussian"]
DispersionName = Literal["gene", "gene-cell", "shared"]
DispersionOfBatchesName = Literal["gene", "gene-batch", "gene-cell", "shared"]
CorruptionName = Literal["swap", "mask", "dropout", "gaussian", "thinning", "none"]
TransformName = Literal["log1p", "normalize", "none"]
OptimizerName = Literal["adam", "rmsprop", "sgd"]
SplitName = Literal["random", "tail"]
PrecisionName = Literal["float32", "tf32"]
EmptyCellsName = Literal["leave-out", "error"]

Width = Annotated[int, Field(ge=1, le=65_536)]
Steps = Annotated[int, Field(ge=0, le=2**31 - 1)]  # as many as a float32 or an integer of torch can be compared with
Probability = Annotated[float, Field(ge=0, lt=1)]
BatchKey = str | Annotated[tuple[str, ...], Field(min_length=1)]
Keys = str | tuple[str, ...]
Weight = Annotated[float, Field(ge=0, le=1e9)]

T = TypeVar("T")

MOST_NAMES = 10  # in a message


def _refuse_bool(value: Any, kind: Any) -> Any:
    # to pydantic true is 1, and `n_latent: true` a width
    listed = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(item, bool) for item in listed) and not _allows_bool(kind):
        raise PydanticCustomError("no_bool", "true and false are no values of this setting")
    return value


def _allows_bool(kind: Any) -> bool:
    return kind in (bool, Any) or any(_allows_bool(part) for part in get_args(kind))


class Settings(BaseModel):
    """A frozen set of named values.

    Raises
    ------
    ConfigError
        An unknown key (the nearest known one is named), or a value out of range (the range is named).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise _config_error(error, type(self).model_fields, type(self).__name__) from None

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        return _refuse_bool(value, cls.model_fields[str(info.field_name)].annotation)

    @classmethod
    def refuse_value(cls, name: str, value: Any) -> None:
        """Raise a ConfigError if a setting cannot have a value, independently of the others."""
        field = cls.model_fields[name]
        checked = pydantic.BeforeValidator(lambda given: _refuse_bool(given, field.annotation))
        alone: Any = Annotated[(field.annotation, checked, *field.metadata)]
        try:
            pydantic.TypeAdapter(alone, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
        except pydantic.ValidationError as error:
            raise _config_error(error, cls.model_fields, cls.__name__, (name,)) from None


# types with bounds and description, for the models to give their own defaults
LatentUnits = Annotated[int, Field(ge=1, le=4096, description="number of latent units")]
HiddenWidths = Annotated[
    tuple[Width, ...], Field(max_length=16, description="encoder widths; the decoder mirrors them; [] for none")
]
Activation = Annotated[ActivationName, Field(description="activation of the hidden layers")]
Norm = Annotated[NormName, Field(description="normalisation of the hidden layers")]
LinearDecoder = Annotated[bool, Field(description="decode without hidden layers")]
Corruption = Annotated[CorruptionName, Field(description="what is done to the input in training")]
OpenCorruption = Annotated[
    CorruptionName | None, Field(description="what is done to the input in training; null for what suits the model")
]
Strength = Annotated[float, Field(ge=0, description="probability of a change, or standard deviation of the gaussian")]


class NetworkConfig(Settings):
    """Base of all hyper-parameters: latent, input, and defaults of a fit.

    A model overrides the class attributes and properties in which it differs.
    """

    decodes: ClassVar[bool] = True  # whether it can give expected expression
    compresses: ClassVar[bool] = True  # whether the latent must be narrower than the data
    encodes_batches: ClassVar[bool] = False  # whether the results for a cell depend on its experimental batch
    decodes_as: ClassVar[bool] = False  # whether cells can be decoded as if of another batch
    other_batches: ClassVar[bool] = False  # whether cells of no known batch pass for cells of the average one
    loss_unit: ClassVar[str] = "mean of cells and genes"  # unit of the loss in plots; empty for none

    n_latent: LatentUnits = 16
    transform: Annotated[
        TransformName,
        Field(
            description="log1p: data are raw counts, log-normalised here; normalize: the same without the logarithm; "
            "none: expression as it is"
        ),
    ] = "log1p"

    @property
    def reads_counts(self) -> bool:
        """Whether the data must be raw counts (and not expression values as they are)."""
        return self.transform != "none"

    @property
    def integers(self) -> bool:
        """Whether these counts must be integers."""
        return True

    @property
    def width(self) -> int:
        """Number of columns that the latent of a cell has."""
        return self.n_latent

    @property
    def recordable(self) -> bool:
        """Whether a step does the same for every minibatch, so that it can be recorded as a CUDA graph.

        Its forward then consists of kernels and dense products alone: no random numbers, no state in Python, no waiting
        for the device.
        """
        return False

    @property
    def batches(self) -> Literal["unused", "optional", "needed"]:
        """Whether the model uses or needs ``batch_key``."""
        return "unused"

    @property
    def instead_of_batches(self) -> str:
        """The remedy for a ``batch_key`` of no use."""
        return (
            "leave batch_key out, or use a model that corrects for them: count, denoising, undercomplete, variational, "
            "scscope, saucie with lambda_b"
        )

    @property
    def takes_covariates(self) -> bool:
        """Whether the model uses ``categorical_keys`` and ``continuous_keys``."""
        return False

    @property
    def instead_of_covariates(self) -> str:
        """The remedy for covariates of no use."""
        return "leave them out, or use a model that takes them: count, denoising, undercomplete, variational"

    @property
    def labels(self) -> Literal["unused", "optional", "needed"]:
        """Whether the model uses or needs ``label_key``."""
        return "unused"

    @property
    def embeds_batches(self) -> bool:
        """Whether the latent of a cell depends on its experimental batch."""
        return self.encodes_batches

    @property
    def fits_slot(self) -> str | None:
        """Slot of obsm with coordinates that the latent is fitted to, for models that can do so."""
        return None

    @property
    def fewest_cells(self) -> int:
        """Smallest possible ``batch_size``."""
        return 2

    @property
    def defaults(self) -> dict[str, Any]:
        """Default settings of a fit; an override names those in which it differs."""
        return {
            "max_epochs": 400,
            "max_steps": None,
            "batch_size": 128,
            "optimizer": "adam",
            "learning_rate": 2e-3,
            "weight_decay": 0.0,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-8,
            "lr_warmup_steps": 0,
            "averaging": False,
            "clip_norm": 10.0,
            "clip_value": 0.0,
            "valid_fraction": 0.1,
            "valid_split": "random",
            "early_stopping": True,
            "keep_best": True,
            "patience": 15,
            "patience_steps": 0,
            "min_delta": 1e-4,
            "reduce_lr_patience": 5,
            "reduce_lr_factor": 0.3,
        }


# settings of a fit that converges in few epochs: small minibatches and large steps at a constant rate, whose average
# is validated and kept. Measured in docs/benchmarks.md
FAST_TRAINING: dict[str, Any] = {
    "batch_size": 64,
    "learning_rate": 1e-2,
    "beta1": 0.8,
    "beta2": 0.99,
    "lr_warmup_steps": 20,
    "averaging": True,
    "patience": 2,
    "patience_steps": 120,
    "min_delta": 5e-4,
    "reduce_lr_patience": 0,
}


class Layers(NamedTuple):
    """Hidden layers: their widths in order, and the activation, normalisation and dropout behind each product."""

    widths: tuple[int, ...]
    activation: ActivationName = "relu"
    norm: NormName = "batch"
    dropout_rate: float = 0.0


class LayeredConfig(NetworkConfig):
    """Hyper-parameters of the models with freely chosen layers."""

    encodes_batches: ClassVar[bool] = True
    decodes_as: ClassVar[bool] = True
    other_batches: ClassVar[bool] = True

    n_hidden: HiddenWidths = (256,)
    activation: Activation = "relu"
    norm: Norm = "batch"
    linear_decoder: LinearDecoder = False
    dropout_rate: Annotated[Probability, Field(description="share of hidden units dropped in training")] = 0.0
    standardize: Annotated[bool, Field(description="z-score the genes of the network input")] = False
    start: Annotated[
        Literal["components", "random"], Field(description="initial weights of the encoder: from PCA, or random")
    ] = "components"
    corruption: OpenCorruption = None
    strength: Strength = 0.5
    natural_axes: Annotated[
        bool, Field(description="turn and scale the latent so that distances are of expression")
    ] = True
    batches_in_encoder: Annotated[
        bool,
        Field(description="take batches and covariates from the input and the latent; else the decoder alone does"),
    ] = True
    l1: Annotated[Weight, Field(description="L1 penalty on the weights")] = 0.0
    l2: Annotated[Weight, Field(description="L2 penalty on the weights")] = 0.0
    warmup_steps: Annotated[Steps, Field(description="steps over which penalties rise to full strength")] = 0

    @property
    def batches(self) -> Literal["unused", "optional", "needed"]:
        """Factors of the batches are taken from the input, and the decoder reads the batch."""
        return "optional"

    @property
    def takes_covariates(self) -> bool:
        """As batches."""
        return True

    @property
    def embeds_batches(self) -> bool:
        """Whether batches and covariates are taken from the input and the latent."""
        return self.batches_in_encoder

    def model_post_init(self, context: Any, /) -> None:
        """Refuse a corruption that has no meaning."""
        refuse_corruption(self.noise_kind, self.strength, self.transform, type(self).__name__)

    @property
    def noise_kind(self) -> CorruptionName:
        """What is done to the input in training: by default counts are thinned, and expression values left alone."""
        if self.corruption is not None:
            return self.corruption
        return "thinning" if self.reads_counts else "none"

    @property
    def layers(self) -> Layers:
        """Hidden layers of the encoder."""
        return Layers(self.n_hidden, self.activation, self.norm, self.dropout_rate)

    @property
    def decoder_layers(self) -> Layers:
        """Hidden layers of the decoder: the encoder's, mirrored."""
        widths = () if self.linear_decoder else tuple(reversed(self.n_hidden))
        return self.layers._replace(widths=widths)


def refuse_corruption(corruption: str, strength: float, transform: str, where: str) -> None:
    """Raise a ConfigError for a strength, or an input, that a corruption has no meaning for."""
    if corruption != "gaussian" and strength >= 1:
        what = f"strength = {strength:g} is not a probability below 1"
        remedy = f"for corruption={corruption!r} give the share of entries to change, such as 0.4"
        raise ConfigError("bad-value", what, f"{where}.strength", remedy)
    if corruption == "thinning" and transform == "none":
        what = "thinning removes molecules: it needs counts"
        remedy = "set transform='log1p' and fit raw counts, or choose another corruption"
        raise ConfigError("bad-value", what, f"{where}.corruption", remedy)


class TrainingConfig(Settings):
    """Settings of a fit; null stands for the default of the model, :attr:`NetworkConfig.defaults`."""

    max_epochs: Annotated[int | None, Field(ge=1, description="most passes over the data")] = None
    max_steps: Annotated[int | None, Field(ge=1, description="most minibatches, in whole epochs")] = None
    batch_size: Annotated[int | None, Field(ge=2, description="cells in a minibatch")] = None
    optimizer: Annotated[OptimizerName | None, Field(description="adam, rmsprop or sgd")] = None
    learning_rate: Annotated[float | None, Field(gt=0, description="step size")] = None
    weight_decay: Annotated[Weight | None, Field(description="decay of the weights")] = None
    beta1: Annotated[Probability | None, Field(description="Adam's memory of the gradient; momentum of sgd")] = None
    beta2: Annotated[Probability | None, Field(description="Adam's memory of the squared gradient")] = None
    epsilon: Annotated[float | None, Field(ge=1e-30, description="added to the optimizer's denominator")] = None
    lr_warmup_steps: Annotated[Steps | None, Field(description="steps over which the step size rises to full")] = None
    averaging: Annotated[
        bool | None, Field(description="validate and keep an average of the weights of the last steps")
    ] = None
    clip_norm: Annotated[float | None, Field(ge=0, description="largest norm of the gradient; 0 for any")] = None
    clip_value: Annotated[float | None, Field(ge=0, description="largest entry of the gradient; 0 for any")] = None
    valid_fraction: Annotated[float | None, Field(ge=0, le=0.9, description="share of cells held out; 0 for none")] = (
        None
    )
    valid_split: Annotated[
        SplitName | None, Field(description="hold out cells at random, or the last ones of the data (tail)")
    ] = None
    valid_stratify: Annotated[str | None, Field(description="obs column whose proportions the split keeps")] = None
    valid_groups: Annotated[str | None, Field(description="obs column whose groups the split never divides")] = None
    early_stopping: Annotated[bool | None, Field(description="stop when the validation loss no longer falls")] = None
    keep_best: Annotated[bool | None, Field(description="end with the best weights, not the last")] = None
    patience: Annotated[int | None, Field(ge=1, description="epochs without improvement before stopping")] = None
    patience_steps: Annotated[
        Steps | None, Field(description="minibatches without improvement, at least, before stopping")
    ] = None
    min_delta: Annotated[Weight | None, Field(description="relative fall of the loss that counts as improvement")] = (
        None
    )
    reduce_lr_patience: Annotated[
        int | None, Field(ge=0, description="epochs without improvement before the step size falls; 0 for never")
    ] = None
    reduce_lr_factor: Annotated[float | None, Field(gt=0, lt=1, description="by how much it falls")] = None
    batch_key: Annotated[
        BatchKey | None,
        Field(description="obs column with the experimental batch; of several, combinations"),
    ] = None
    categorical_keys: Annotated[
        Keys | None,
        Field(description="obs columns of categories that the decoder reads beside the batch, each its own"),
    ] = None
    continuous_keys: Annotated[
        Keys | None,
        Field(description="obs columns of numbers that the decoder reads, standardised by the fitted cells"),
    ] = None
    label_key: Annotated[
        str | None, Field(description="obs column with labels to learn, for models that do; missing: unknown")
    ] = None
    mask_var: Annotated[
        str | None,
        Field(description="var column of the genes to fit on; auto: highly_variable, where there is one; null: all"),
    ] = "auto"
    empty_cells: Annotated[
        EmptyCellsName, Field(description="cells without any count: leave-out of the fit (they are embedded), or error")
    ] = "leave-out"
    # scikit-learn takes no larger one; a training should not find that out when it is over
    seed: Annotated[int, Field(ge=0, lt=2**32, description="start of every random stream")] = 0
    device: Annotated[str, Field(description="auto, cpu, gpu, cuda, cuda:1, mps")] = "auto"
    threads: Annotated[
        int | None,
        Field(ge=1, le=1024, description="CPU threads; null for as many as pay"),
    ] = None
    precision: Annotated[PrecisionName, Field(description="matrix products on a CUDA GPU")] = "float32"
    cuda_graph: Annotated[
        bool | None,
        Field(description="record a step on a CUDA GPU once and replay it; null for where that can be done"),
    ] = None

    @property
    def covariates(self) -> list[str]:
        """Columns of the covariates: the categorical ones, then the continuous ones."""
        return [*_several(self.categorical_keys), *_several(self.continuous_keys)]

    @property
    def obs_columns(self) -> list[str]:
        """Columns of obs that the fitted model may read: of the batch, and of the covariates."""
        return [*_several(self.batch_key), *self.covariates]

    def model_post_init(self, context: Any, /) -> None:
        """Refuse a column that has two parts."""
        for name in self.covariates:
            if self.obs_columns.count(name) > 1:
                what = f"the column {name!r} is named twice among batch_key, categorical_keys and continuous_keys"
                where = "categorical_keys" if name in _several(self.categorical_keys) else "continuous_keys"
                raise ConfigError("bad-covariate", what, where, "name each column once; a batch is batch_key alone")

    def with_defaults_of(self, model: NetworkConfig) -> Self:
        """Return the settings with open ones (None) replaced by the defaults of the model.

        Raises
        ------
        ConfigError
            The model needs a ``batch_key``.
        """
        if self.batch_key is None and model.batches == "needed":
            what = "the model needs the experimental batch of each cell"
            remedy = "batch_key='COLUMN' names the column of obs that has it (--set batch_key=COLUMN)"
            raise ConfigError("no-batch-key", what, "batch_key", remedy)
        if self.label_key is None and model.labels == "needed":
            what = "the model needs labels of some of the cells"
            remedy = "label_key='COLUMN' names the column of obs that has them (--set label_key=COLUMN)"
            raise ConfigError("no-label-key", what, "label_key", remedy)
        defaults = model.defaults if self.max_epochs is None else {**model.defaults, "max_steps": None}
        return self.model_copy(update={k: v for k, v in defaults.items() if getattr(self, k) is None})


def arguments(local: dict[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters by name, from the ``locals()`` of a constructor."""
    return {name: value for name, value in local.items() if name not in ("self", "__class__")}


def given(value: T | None) -> T:
    """Return a setting that is not None: :meth:`TrainingConfig.with_defaults_of` has filled it in."""
    assert value is not None
    return value


def split_settings(
    values: Mapping[str, Any], model_config: type[NetworkConfig], *, where: str = "settings"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split flat settings into a model's hyper-parameters and the training settings.

    A key that belongs to neither is a ConfigError at ``where``, with the nearest known key.
    """
    model_keys, training_keys = set(model_config.model_fields), set(TrainingConfig.model_fields)
    for key in values:
        if key not in model_keys | training_keys:
            raise unknown_key(str(key), sorted(model_keys | training_keys), where=where)
    hyper = {k: v for k, v in values.items() if k in model_keys}
    return hyper, {k: v for k, v in values.items() if k in training_keys}


def _several(key: Keys | None) -> list[str]:
    return [] if key is None else [key] if isinstance(key, str) else list(key)


def refuse_unused_batches(model: NetworkConfig, training: TrainingConfig) -> None:
    """Raise a ConfigError for batches or covariates, whose columns exist, of a model that makes no use of them."""
    if training.covariates and not model.takes_covariates:
        what = f"the covariates {listed(training.covariates)}, but this model (as it is set) makes no use of covariates"
        where = "categorical_keys" if training.categorical_keys else "continuous_keys"
        raise ConfigError("covariates-unused", what, where, model.instead_of_covariates)
    if training.batch_key is not None and model.batches == "unused":
        what = f"batch_key = {training.batch_key!r}, but this model (as it is set) makes no use of batches"
        raise ConfigError("batches-unused", what, "batch_key", model.instead_of_batches)


def refuse_unused_labels(model: NetworkConfig, training: TrainingConfig) -> None:
    """Raise a ConfigError for a ``label_key``, whose column exists, of a model that learns no labels."""
    if training.label_key is not None and model.labels == "unused":
        what = f"label_key = {training.label_key!r}, but this model learns no labels"
        remedy = "leave label_key out: no model of this package learns labels; docs/own-model.md has one that does"
        raise ConfigError("labels-unused", what, "label_key", remedy)


# words of other packages for our settings
ALIASES = {
    "lr": "learning_rate",
    "random_state": "seed",
    "random_seed": "seed",
    "n_comps": "n_latent",
    "n_components": "n_latent",
    "n_dims": "n_latent",
    "latent_dim": "n_latent",
    "latent_size": "n_latent",
    "n_epochs": "max_epochs",
    "epochs": "max_epochs",
    "max_epoch": "max_epochs",
    "n_layers": "n_hidden",
    "hidden": "n_hidden",
    "hidden_size": "n_hidden",
    "batch": "batch_key",
    "train_size": "valid_fraction",
    "early_stopping_patience": "patience",
    "gene_likelihood": "likelihood",
    "dropout": "dropout_rate",
    "use_gpu": "device",
    "accelerator": "device",
    "n_jobs": "threads",
    "n_threads": "threads",
}
ELSEWHERE = {
    "trials": "did you mean 'n_trials' (--trials) of a search?",
    "use_highly_variable": "mask_var='highly_variable' (--mask-var); it is the default where var has that column",
    "use_rep": "models read counts: layer='counts' (--layer counts) names a layer",
}


def unknown_key(key: object, known: Sequence[str], *, where: str) -> ConfigError:
    """Return the error for an unknown key, naming what is meant by it elsewhere, or the nearest known one."""
    near = [ALIASES[key]] if isinstance(key, str) and ALIASES.get(key) in known else []
    near = near or difflib.get_close_matches(str(key), known, n=1)
    if str(key) in ELSEWHERE and "learning_rate" in known:  # among settings, not among names of data
        remedy = ELSEWHERE[str(key)]
    else:
        remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {listed(known, MOST_NAMES) or 'none'}"
    return ConfigError("unknown-key", f"unknown key {key!r}", where, remedy)


def _config_error(
    error: pydantic.ValidationError, fields: Mapping[str, Any], where: str, within: tuple[str, ...] = ()
) -> ConfigError:
    first = error.errors(include_url=False)[0]
    if isinstance(raised := first.get("ctx", {}).get("error"), ConfigError):  # of a model_post_init
        return raised
    key = ".".join(str(part) for part in (*within, *first["loc"]))
    if first["type"] == "extra_forbidden":
        return unknown_key(key, sorted(fields), where=where)
    what = f"{key} = {reprlib.repr(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return ConfigError("bad-value", what, f"{where}.{key}", _meaning(fields, key))


def _meaning(fields: Mapping[str, Any], key: str) -> str:
    # what a setting is: its bounds are in the message already
    field = fields.get(key.partition(".")[0])
    return "" if field is None or not field.description else f"{key.partition('.')[0]} is: {field.description}"
