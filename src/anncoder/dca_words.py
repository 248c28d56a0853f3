"""DCA's settings by their published names, as its function and its command line have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from anncoder.config import unknown_key
from anncoder.errors import ConfigError
from anncoder.estimators.dca import DCA

ACTIVATIONS = {"LeakyReLU": "leaky_relu", "PReLU": "prelu"}  # Keras's names, where ours are others
OPTIMIZERS = {"RMSprop": "rmsprop", "Adam": "adam"}
NETWORK_WORDS = {
    "l1_coef": "l1",
    "l2_coef": "l2",
    "l1_enc_coef": "l1enc",
    "l2_enc_coef": "l2enc",
    "ridge": "ridge",
    "input_dropout": "input_dropout",
}
TRAINING_WORDS = {"clip_grad": "clip_grad", "validation_split": "validation_split"}


class Words(NamedTuple):
    """Settings by DCA's names, with DCA's defaults."""

    ae_type: Any = "nb-conddisp"
    normalize_per_cell: bool = True
    scale: bool = True
    log1p: bool = True
    hidden_size: Any = (64, 32, 64)
    hidden_dropout: float = 0.0
    input_dropout: float = 0.0
    batchnorm: bool = True
    activation: str = "relu"
    init: Any = "glorot_uniform"
    ridge: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    l1enc: float = 0.0
    l2enc: float = 0.0
    epochs: int = 300
    reduce_lr: int | None = 10
    early_stop: int | None = 15
    batch_size: int = 32
    optimizer: str = "RMSprop"
    learning_rate: float | None = None
    clip_grad: float | None = 5.0
    validation_split: float = 0.1
    random_state: int = 0
    threads: int | None = None
    check_counts: bool = True
    faithful: bool = False

    def model(self) -> DCA:
        """Return the model, unfitted; of the hidden layers the middle one is the latent.

        Raises
        ------
        ConfigError
            A word or a value does not exist here.
        """
        if isinstance(self.hidden_size, str) or not isinstance(self.hidden_size, Sequence) or not len(self.hidden_size):
            raise ConfigError(
                f"hidden_size = {self.hidden_size!r} names no layers",
                code="bad-value",
                where="hidden_size",
                remedy="hidden_size=(64, 32, 64)",
            )
        centre, activation = len(self.hidden_size) // 2, ACTIVATIONS.get(str(self.activation), self.activation)
        return DCA(
            ae_type=self.ae_type,
            n_latent=self.hidden_size[centre],
            n_hidden=tuple(self.hidden_size[:centre]),
            n_hidden_decoder=tuple(self.hidden_size[centre + 1 :]),
            activation=activation,  # type: ignore[arg-type]  # the configuration says what there is
            norm="batch-shift" if self.batchnorm else "none",
            dropout_rate=self.hidden_dropout,
            input_dropout=self.input_dropout,
            init=self.init,
            transform="log1p" if self.log1p else "normalize",
            standardize=self.scale,
            size_factors=self.normalize_per_cell,
            ridge_pi=self.ridge,
            l1=self.l1,
            l2=self.l2,
            l1_encoder=self.l1enc,
            l2_encoder=self.l2enc,
            check_counts=self.check_counts,
            faithful=self.faithful,
        )

    def training(self) -> dict[str, Any]:
        """Return the settings of :meth:`DCA.fit`; a patience or a clipping of 0 or None is none."""
        optimizer = str(self.optimizer).lower()
        if optimizer not in OPTIMIZERS.values():
            raise unknown_key(str(self.optimizer), sorted(OPTIMIZERS), where="optimizer")
        return {
            "max_epochs": self.epochs,
            "reduce_lr_patience": self.reduce_lr or 0,
            "early_stopping": bool(self.early_stop),
            "patience": self.early_stop or None,
            "batch_size": self.batch_size,
            "optimizer": optimizer,
            "learning_rate": self.learning_rate,
            "clip_value": self.clip_grad or 0.0,
            "valid_fraction": self.validation_split,
            "seed": self.random_state,
            "threads": self.threads,
        }


def translated(given: Mapping[str, Any] | None, known: Mapping[str, str], *, where: str) -> dict[str, Any]:
    """Return settings under the names of :class:`Words`; an unknown one is a ConfigError."""
    given = {} if given is None else given
    for name in given:
        if name not in known:
            raise unknown_key(str(name), sorted(known), where=where)
    return {known[name]: value for name, value in given.items()}
