"""Models on disk: the same bits back, nothing of a stranger's that is not what it says, and no code from it."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from benchmarks.speed.machine import peak_memory

from anncoder import CountAutoencoder, DenoisingAutoencoder, UndercompleteAutoencoder, load
from anncoder.errors import ConfigError, FileError, InputError, ResourceError
from anncoder.io import model_folder
from anncoder.io.model_folder import CONFIG, GENES, MANIFEST, WEIGHTS, decode_names, encode_names
from anncoder.models.undercomplete import UndercompleteConfig, UndercompleteNetwork
from anncoder.types import Batch, Loss, Noise, Shape

FILES = (CONFIG, WEIGHTS, GENES, MANIFEST)


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of a model folder, to be damaged."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def reseal(folder: Path, **changes: Any) -> None:
    """Make the manifest fit the files again, as an attacker would."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest["seal"]
    manifest["files"] = {name: model_folder._fingerprint_of_file(folder / name) for name in (CONFIG, GENES, WEIGHTS)}
    (folder / MANIFEST).write_bytes(model_folder._sealed(manifest | changes))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    reseal(folder)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    change(weights)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(weights))
    reseal(folder)


class TestRoundTrip:
    @pytest.mark.parametrize(
        "model",
        [
            CountAutoencoder(n_latent=3, n_hidden=(8,), likelihood="zinb", dispersion="gene-cell", standardize=True),
            CountAutoencoder(n_latent=3, n_hidden=(), likelihood="poisson", norm="layer"),
            DenoisingAutoencoder(n_latent=3, n_hidden=(8,)),
            UndercompleteAutoencoder(n_latent=3, n_hidden=(8,), tied=True, norm="none"),
        ],
        ids=lambda model: repr(model),
    )
    def test_the_same_bits_come_back(self, model: Any, counts: anndata.AnnData, tmp_path: Path) -> None:
        model.fit(counts, max_epochs=1, seed=3, progress=False)
        model.save(tmp_path / "model")
        again = load(tmp_path / "model")
        assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(FILES)
        assert type(again) is type(model)
        assert again.config == model.config
        assert again.training_ == model.training_
        for left, right in ((model.embed(counts), again.embed(counts)), (model.denoise(counts), again.denoise(counts))):
            assert left.tobytes() == right.tobytes()
        pd.testing.assert_frame_equal(model.history_, again.history_)
        for name in ("layer_", "library_size_", "best_epoch_", "stopped_"):
            assert getattr(model, name) == getattr(again, name)
        assert list(model.var_names_) == list(again.var_names_)
        assert list(model.valid_obs_) == list(again.valid_obs_)

    def test_a_loaded_model_can_be_saved_again(self, model: Path, tmp_path: Path) -> None:
        load(model).save(tmp_path / "again")
        for name in FILES:
            assert (tmp_path / "again" / name).read_bytes() == (model / name).read_bytes()

    def test_a_model_replaces_a_model_and_nothing_else(
        self, model: Path, fitted: CountAutoencoder, tmp_path: Path
    ) -> None:
        fitted.save(model)
        assert sorted(path.name for path in model.iterdir()) == sorted(FILES)
        (model / "notes.txt").write_text("precious")
        with pytest.raises(FileError, match=r"it holds 'notes\.txt'"):
            fitted.save(model)
        assert (model / "notes.txt").read_text() == "precious"
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter.txt").write_text("precious")
        with pytest.raises(FileError, match="was not written by anncoder"):
            fitted.save(tmp_path / "thesis")
        assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"

    @pytest.mark.parametrize("content", [b'{"name": "my app"}', b"{}", b"[]", b"", b'{"schema": 1, "files": {}}'])
    def test_a_manifest_of_another_program_is_no_model(
        self, content: bytes, fitted: CountAutoencoder, tmp_path: Path
    ) -> None:
        project = tmp_path / "webproject"
        project.mkdir()
        (project / MANIFEST).write_bytes(content)
        for more in ({MANIFEST}, {MANIFEST, "index.html"}):
            for name in more - {MANIFEST}:
                (project / name).write_text("precious")
            with pytest.raises(FileError, match="was not written by anncoder") as caught:
                fitted.save(project)
            assert caught.value.code == "not-ours"
            assert {path.name for path in project.iterdir()} == more
        assert (project / MANIFEST).read_bytes() == content

    @pytest.mark.parametrize("name", FILES)
    def test_a_damaged_model_is_not_replaced(self, name: str, model: Path, fitted: CountAutoencoder) -> None:
        content = (model / name).read_bytes()
        for damage in (lambda path: path.write_bytes(content[:-2]), Path.unlink):
            damage(model / name)
            with pytest.raises(FileError, match=name) as caught:
                model_folder.refuse_target(model)
            assert (caught.value.code, caught.value.remedy[:19]) == ("not-ours", "choose another name")
            with pytest.raises(FileError, match=name):
                fitted.save(model)
        assert {path.name for path in model.iterdir()} == {*FILES} - {name}

    def test_a_failed_save_leaves_the_old_model(
        self, model: Path, fitted: CountAutoencoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {name: (model / name).read_bytes() for name in FILES}

        def fails(_: object) -> bytes:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(safetensors.torch, "save", fails)
        with pytest.raises(ResourceError, match="No space left"):
            fitted.save(model)
        assert {name: (model / name).read_bytes() for name in FILES} == before
        assert [path.name for path in model.parent.iterdir()] == ["model"]


class TestNames:
    ODD = ("MT-CO1", "a b", "tab\there", "line\nbreak", "cr\rlf\r\n", "back\\slash", "\\n", "\\", "", "gène", "遺伝子")
    ODD += ("\x00", "\x1b[31mred", "\u2028", "\x85", "\ufeffBOM", "🧬", "'quote\"", "=cmd()", " end ")

    def test_odd_names_come_back(self, counts: anndata.AnnData, tmp_path: Path) -> None:
        some = counts[:, : len(self.ODD)].copy()
        some.var_names = list(self.ODD)
        some.obs_names = [f"cell\n{i}" for i in range(some.n_obs)]
        model = UndercompleteAutoencoder(n_latent=2, n_hidden=()).fit(some, max_epochs=1, progress=False)
        model.save(tmp_path / "model")
        again = load(tmp_path / "model")
        assert tuple(again.var_names_) == self.ODD
        assert list(again.valid_obs_) == list(model.valid_obs_)
        assert (tmp_path / "model" / GENES).read_bytes().count(b"\n") == len(self.ODD)
        assert again.embed(some).tobytes() == model.embed(some).tobytes()

    def test_ordinary_names_stand_one_a_line(self) -> None:
        assert encode_names(["CD79A", "CD79B"]) == "CD79A\nCD79B\n"
        assert decode_names("") == []
        assert decode_names("\n") == [""]

    def test_what_is_no_text_is_refused_in_saving(self, fitted: CountAutoencoder, tmp_path: Path) -> None:
        weights = fitted._network().state_dict()
        fitted.save(tmp_path / "model")
        stored = model_folder.read_stored(tmp_path / "model")
        with pytest.raises(InputError, match="not valid Unicode"):
            model_folder.write_model(tmp_path / "other", stored.config, ["a\ud800", *stored.genes[1:]], weights)
        assert not (tmp_path / "other").exists()


class TestDamage:
    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file(self, model: Path, name: str) -> None:
        (model / name).unlink()
        with pytest.raises(FileError, match=f"no {name}" if name == MANIFEST else f"{name} is missing"):
            load(model)

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
    def test_a_cut_file(self, model: Path, name: str, keep: float) -> None:
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[: min(int(len(content) * keep), len(content) - 1)])
        with pytest.raises(FileError):
            load(model)

    @pytest.mark.parametrize("name", [CONFIG, GENES, WEIGHTS])
    def test_a_changed_byte(self, model: Path, name: str) -> None:
        content = (model / name).read_bytes()
        rng = np.random.default_rng(0)
        for at in [0, len(content) - 1, *rng.integers(len(content), size=30)]:
            changed = bytearray(content)
            changed[at] ^= 1 << int(rng.integers(8))
            (model / name).write_bytes(changed)
            with pytest.raises(FileError, match=name):
                model_folder.read_stored(model)

    def test_every_changed_byte_of_the_manifest(self, model: Path) -> None:
        content = (model / MANIFEST).read_bytes()
        for at in range(len(content)):
            new = ord("\t") if content[at : at + 1].isspace() else content[at] ^ 1  # the first is JSON as well
            (model / MANIFEST).write_bytes(content[:at] + bytes([new]) + content[at + 1 :])
            with pytest.raises(FileError):
                model_folder._read_manifest(model)

    def test_no_model_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
            with pytest.raises(FileError, match="is not a model folder") as caught:
                load(path)
            assert caught.value.remedy

    def test_a_newer_schema_says_upgrade(self, model: Path) -> None:
        reseal(model, schema=model_folder.SCHEMA + 1)
        with pytest.raises(FileError, match="its schema is 2") as caught:
            load(model)
        assert caught.value.remedy == "upgrade anncoder"

    @pytest.mark.parametrize("schema", [None, 0, -1, True, "1", 1.0, [1]])
    def test_a_schema_that_is_no_number(self, model: Path, schema: object) -> None:
        reseal(model, schema=schema)
        with pytest.raises(FileError, match="no schema number"):
            load(model)


class Canary:
    """Leaves a file behind if anybody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def header_of(weights: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", weights[:8])
    return dict(json.loads(weights[8 : 8 + length]))


def with_header(weights: bytes, header: object) -> bytes:
    (length,) = struct.unpack("<Q", weights[:8])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + weights[8 + length :]


class TestHostile:
    """Every manifest here fits its files: nothing but the content speaks against them."""

    def refuse(self, model: Path, match: str | None = None) -> None:
        with pytest.raises(FileError, match=match) as caught:
            load(model)
        assert caught.value.exit_code == 3
        assert len(str(caught.value)) < 1000

    def test_a_pickle_runs_no_code(self, model: Path, tmp_path: Path) -> None:
        canary = tmp_path / "canary"
        (model / WEIGHTS).write_bytes(pickle.dumps(Canary(canary)))
        reseal(model)
        self.refuse(model)
        torch.save({"weights": Canary(canary)}, model / WEIGHTS)
        reseal(model)
        self.refuse(model)
        assert not canary.exists()

    @pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 0, 1])
    def test_a_header_length_that_is_not_there(self, model: Path, length: int) -> None:
        content = (model / WEIGHTS).read_bytes()
        (model / WEIGHTS).write_bytes(struct.pack("<Q", length) + content[8:])
        reseal(model)
        self.refuse(model, WEIGHTS)

    @pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 1) + b"{"])
    def test_a_file_that_is_no_safetensors(self, model: Path, content: bytes) -> None:
        (model / WEIGHTS).write_bytes(content)
        reseal(model)
        self.refuse(model, WEIGHTS)

    def test_headers_that_lie(self, model: Path) -> None:
        content = (model / WEIGHTS).read_bytes()
        honest = header_of(content)
        name = next(name for name, entry in honest.items() if sorted(entry.get("shape", [])) == [3, 8])
        begin, end = honest[name]["data_offsets"]
        lies: list[object] = [
            {**honest, name: 1},
            {**honest, name: {}},
            {**honest, name: {**honest[name], "dtype": "F64"}},
            {**honest, name: {**honest[name], "shape": honest[name]["shape"][::-1]}},
            {**honest, name: {**honest[name], "shape": [10**12, 10**12]}},
            {**honest, name: {**honest[name], "data_offsets": [begin, end + 10**12]}},
            {**honest, name: {**honest[name], "data_offsets": [-5, 10]}},
            {**honest, name: {**honest[name], "data_offsets": [begin + 4, end + 4]}},
            {**honest, "../../../etc/passwd": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
            {key: entry for key, entry in honest.items() if key != name},
            [honest],
            "text",
        ]
        for lie in lies:
            (model / WEIGHTS).write_bytes(with_header(content, lie))
            reseal(model)
            self.refuse(model, WEIGHTS)
        (model / WEIGHTS).write_bytes(content[:-4])
        reseal(model)
        self.refuse(model, WEIGHTS)
        (model / WEIGHTS).write_bytes(content + b"more")
        reseal(model)
        self.refuse(model, WEIGHTS)

    @pytest.mark.parametrize("dtype", ["F8_E8M0", "F8_E5M2", "I8", "I4"])
    def test_types_that_are_not_the_networks_or_nobodys(self, model: Path, dtype: str) -> None:
        header, end = {}, 0
        for name, entry in header_of((model / WEIGHTS).read_bytes()).items():
            begin, end = end, end + int(np.prod(entry["shape"]))  # a byte each, as the header says
            header[name] = {"dtype": dtype, "shape": entry["shape"], "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        (model / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + b"\x01" * end)
        reseal(model)
        self.refuse(model, WEIGHTS)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_weights_that_are_not_finite(self, model: Path, value: float) -> None:
        change_weights(
            model, lambda weights: next(w for w in weights.values() if w.dim() == 2).view(-1)[:1].fill_(value)
        )
        self.refuse(model, "not finite")

    def test_shapes_that_do_not_fit(self, model: Path) -> None:
        change_config(model, hyperparameters={"n_latent": 4, "n_hidden": [8]})
        self.refuse(model, "does not fit")

    @pytest.mark.parametrize(
        "changes",
        [
            {"n_latent": 10**9},
            {"n_latent": 10**400},
            {"n_hidden": [10**9]},
            {"n_hidden": [65_536] * 16},
            {"n_hidden": [65_536] * 10**5},
            {"n_latent": "__import__('os')"},
            {"n_latent": None},
            {"n_hidden": {"a": 1}},
            {"class_path": "os.system"},
            {"likelihood": "../../nb"},
        ],
        ids=lambda changes: str(changes)[:40],
    )
    def test_hyperparameters_beyond_all_bounds(self, model: Path, changes: dict[str, Any]) -> None:
        hyper = json.loads((model / CONFIG).read_text())["hyperparameters"]
        change_config(model, hyperparameters=hyper | changes)
        self.refuse(model)

    @pytest.mark.parametrize(
        "changes",
        [
            {"model": "os.system"},
            {"model": ["count"]},
            {"model": None},
            {"hyperparameters": None},
            {"training": {"learning_rate": "nan"}},
            {"training": []},
            {"library_size": 0},
            {"library_size": float("nan")},
            {"library_size": 10**400},
            {"library_size": "large"},
            {"best_epoch": 10**6},
            {"stopped": "\x1b[31m"},
            {"history": {"epoch": [0, 1], "train_loss": [1.0]}},
            {"history": [1, 2]},
            {"history": {}},
            {"valid_obs": "abc"},
            {"layer": 3},
            {"extra": 1},
        ],
        ids=str,
    )
    def test_records_that_make_no_sense(self, model: Path, changes: dict[str, Any]) -> None:
        change_config(model, **changes)
        self.refuse(model)

    @pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "1", "", "{", "\ufeff{}", '{"a": 1e999}'])
    def test_json_that_is_deep_or_none(self, model: Path, text: str) -> None:
        for name in (CONFIG, MANIFEST):
            before = (model / name).read_bytes()
            (model / name).write_text(text)
            if name == CONFIG:
                reseal(model)
            self.refuse(model)
            (model / name).write_bytes(before)

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (b"", "no gene"),
            (b"one\n", "does not fit"),
            (b"one\ntwo", "does not fit"),
            (b"\xff\xfe\n" * 60, None),
            (b"same\n" * 60, "twice"),
        ],
    )
    def test_genes_that_do_not_belong(self, model: Path, content: bytes, match: str | None) -> None:
        (model / GENES).write_bytes(content)
        reseal(model)
        self.refuse(model, match)

    def test_files_named_elsewhere_are_not_looked_at(self, model: Path) -> None:
        manifest = json.loads((model / MANIFEST).read_bytes())
        reseal(model, files=manifest["files"] | {"../../canary": {"bytes": 1, "sha256": "0"}})
        load(model)  # the names of the four files are ours, not the manifest's
        for files in (None, [], {}, {CONFIG: None}, {"../" + CONFIG: manifest["files"][CONFIG]}):
            reseal(model, files=files)
            self.refuse(model)

    @pytest.mark.skipif(sys.platform != "linux", reason="a peak can be forgotten on Linux alone")
    def test_memory_is_not_taken_before_the_file_is_known_to_fit(self, model: Path) -> None:
        hyper = json.loads((model / CONFIG).read_text())["hyperparameters"]
        change_config(model, hyperparameters=hyper | {"n_hidden": [8192] * 8})  # 1.9 GB
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = peak_memory()
        self.refuse(model, "does not fit")
        assert peak_memory() - before < 200


FLOATS, INTEGERS = ("float64", "float32", "float16", "bfloat16"), ("int64", "int32", "int16", "int8")
KINDS = (*FLOATS, *INTEGERS, "uint64", "uint32", "uint16", "uint8", "bool")


class Own(UndercompleteNetwork):
    """A network as somebody may write it: buffers of every kind, and random numbers drawn in ``__init__``."""

    def __init__(self, config: UndercompleteConfig, shape: Shape, noise: Noise) -> None:
        super().__init__(config, shape, noise)
        for kind in KINDS:
            self.register_buffer(f"of_{kind}", torch.tensor([[0, 1], [1, 0]]).to(getattr(torch, kind)))
        self.drawn = torch.nn.Parameter(torch.empty(3))
        with torch.no_grad():
            self.drawn.normal_(generator=noise.on(self.drawn.device))

    def forward(self, batch: Batch) -> Loss:
        """Return the loss, of which every parameter is a part."""
        return Loss.of({"reconstruction": super().forward(batch).total, "own": self.drawn.square().sum()})


def fit_own(counts: anndata.AnnData, monkeypatch: pytest.MonkeyPatch) -> UndercompleteAutoencoder:
    monkeypatch.setattr(UndercompleteAutoencoder, "network_class", Own)
    return UndercompleteAutoencoder(n_latent=3, n_hidden=()).fit(counts, max_epochs=1, progress=False)


class TestOwnNetworks:
    """What the table of models promises to a new one, in saving rather than in loading."""

    def test_every_type_of_buffer_comes_back(
        self, counts: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = fit_own(counts, monkeypatch)
        model.save(tmp_path / "model")
        again = load(tmp_path / "model")
        assert again.embed(counts).tobytes() == model.embed(counts).tobytes()
        kept = again._network().state_dict()
        for name, value in model._network().state_dict().items():
            assert kept[name].dtype == value.dtype
            assert torch.equal(kept[name], value)

    def test_an_estimator_that_does_not_take_all_of_its_configuration(
        self, counts: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that stands in for ours is loaded as ours; one of the table has to take what it is loaded with."""

        class Mine(UndercompleteAutoencoder):
            def __init__(self, *, n_latent: int = 3) -> None:
                super().__init__(n_latent=n_latent, n_hidden=())

        model = Mine().fit(counts, max_epochs=1, progress=False)
        model.save(tmp_path / "ours")
        assert load(tmp_path / "ours").embed(counts).tobytes() == model.embed(counts).tobytes()
        monkeypatch.setattr("anncoder.models.undercomplete.MODEL", Mine)
        with pytest.raises(FileError, match="does not take every field") as caught:
            model.save(tmp_path / "model")
        assert caught.value.code == "unsavable"
        assert not (tmp_path / "model").exists()

    def test_a_model_that_is_in_no_table(self, model: Path, counts: anndata.AnnData) -> None:
        change_config(model, model="mine")
        with pytest.raises(FileError, match="of the kind 'mine'") as caught:
            load(model)
        assert "load(folder, model=MyModel)" in caught.value.remedy

        class Mine(CountAutoencoder):
            name = "mine"

        assert type(load(model, model=Mine)) is Mine
        with pytest.raises(FileError, match="'mine'"):
            load(model, model=UndercompleteAutoencoder)
        with pytest.raises(ConfigError, match="class of a model"):
            load(model, model=Mine())  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("own", torch.zeros(2, dtype=torch.complex64), "own is of type torch.complex64"),
            ("own", torch.eye(2).to_sparse(), "sparse_coo"),
            ("drawn", torch.nn.Parameter(torch.tensor([1.0, float("inf"), 1.0])), "drawn holds values that are not"),
            ("of_float16", torch.full((2, 2), float("nan"), dtype=torch.float16), "of_float16 holds values"),
            ("own", torch.zeros(2), "other names, shapes or types: 'own'"),
            ("of_bool", torch.zeros(3, dtype=torch.bool), "'of_bool'"),
            ("of_int32", torch.zeros(2, 2, dtype=torch.int16), "'of_int32'"),
        ],
    )
    def test_what_could_not_be_loaded_is_not_saved(
        self,
        name: str,
        value: torch.Tensor,
        said: str,
        counts: anndata.AnnData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        model = fit_own(counts, monkeypatch)
        if isinstance(value, torch.nn.Parameter):
            setattr(model._network(), name, value)
        else:
            model._network().register_buffer(name, value)
        with pytest.raises(FileError, match=said) as caught:
            model.save(tmp_path / "model")
        assert caught.value.code == "unsavable"
        assert not (tmp_path / "model").exists()

    def test_one_tensor_under_two_names(
        self, counts: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = fit_own(counts, monkeypatch)
        network = model._network()
        network.again = network.drawn
        with pytest.raises(FileError, match="are the same tensor"):
            model.save(tmp_path / "model")


def test_the_folder_of_a_run_has_its_model_in_it(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.anncoder"
    run.mkdir()
    with pytest.raises(FileError, match=r"model/ in the one that") as caught:
        load(run)
    assert caught.value.code == "not-a-model"
    model.rename(run / "model")
    with pytest.raises(FileError) as caught:
        load(run)
    assert caught.value.remedy == f"give the model in it: {str(run / 'model')!r}"


def test_loading_leaves_the_folder_alone_and_needs_no_write_access(model: Path) -> None:
    for path in (*model.iterdir(), model):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path.name: path.stat().st_mtime_ns for path in model.iterdir()}
    load(model)
    assert {path.name: path.stat().st_mtime_ns for path in model.iterdir()} == before
    model.chmod(0o755)
