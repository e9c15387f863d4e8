"""The store of a campaign: an SQLite file with a row a trial, written as the trial ends.

A campaign that is killed loses the trials that were under way, nothing else; it goes on from its store. What a trial
measures is a pure function of what the store's identity names, so that results do not tell whether, where or how often
a campaign was interrupted.

Tables, for whoever wants to look: `trials` (variant, condition, trial, seed, measured as JSON), `variants` (path and
kind of the model), `conditions` (label and largest flip rate), `identity`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import onnx
import onnxruntime as ort

from qtaml_onnx import __version__
from qtaml_onnx.campaign.metrics import Metric
from qtaml_onnx.campaign.trials import Measured, Trial, Work
from qtaml_onnx.data import Dataset, dataset_sha256
from qtaml_onnx.errors import InputError, QtamlError

__all__ = ["Identity", "TrialStore", "campaign_identity"]

SCHEMA_VERSION = 1
_APPLICATION = 0x51544D4C  # "QTML": tells our files from other programs' (https://sqlite.org/pragma.html)

Identity = Mapping[str, str]
"""What decides a trial's result, by what it is called: the models, the data, the seed …"""

_TABLES = """
CREATE TABLE identity (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE variants (variant INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE conditions (condition INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE trials (
    variant INTEGER NOT NULL, condition INTEGER NOT NULL, trial INTEGER NOT NULL, seed INTEGER NOT NULL,
    measured TEXT NOT NULL, PRIMARY KEY (variant, condition, trial)
) WITHOUT ROWID;
"""


class TrialStore(AbstractContextManager["TrialStore"]):
    """A store that is open. One process at a time may hold it.

    Attributes:
        path: The file.
        found: What was stored when it was opened.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        variants: Sequence[str],
        conditions: Sequence[str],
        *,
        resume: bool,
        seed: int,
    ) -> None:
        """Opens or makes a store.

        Args:
            path: The file.
            identity: Of the campaign.
            variants: What the models are called.
            conditions: What the rates are called.
            resume: Whether a store that exists is gone on with; else it is refused.
            seed: Of trial 0.

        Raises:
            InputError: if the file exists and `resume` is false, is no store, is in use, of another campaign or from a
                newer version.
            QtamlError: if it cannot be written.
        """
        self.path = path
        self._seed = seed
        if not path.parent.is_dir():
            raise InputError(f"store {path}: the folder {path.parent} does not exist; make it first")
        if path.is_dir():
            raise InputError(f"store {path} is a folder; name a file")
        if path.exists() and not resume:
            raise InputError(f"store {path} exists; go on with it by --resume, or name a new file")
        with self._guarded():
            self._db = sqlite3.connect(path, timeout=1.0, isolation_level=None)
            try:
                self._open(identity, variants, conditions)
                self.found = {
                    Trial(variant, condition, number): json.loads(measured)
                    for variant, condition, number, measured in self._db.execute(
                        "SELECT variant, condition, trial, measured FROM trials"
                    )
                }
            except BaseException:
                self._db.close()
                raise

    def _open(self, identity: Identity, variants: Sequence[str], conditions: Sequence[str]) -> None:
        # One process alone, which is also what lets WAL work on network file systems.
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (tables or version) and application != _APPLICATION:
            raise InputError(f"store {self.path} is an SQLite file of another program; name a new file")
        if version > SCHEMA_VERSION:
            raise InputError(
                f"store {self.path} has schema version {version}, this program knows {SCHEMA_VERSION}; "
                "a newer qtaml-onnx reads it"
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last trials; a killed process none
        self._db.execute("BEGIN IMMEDIATE")
        if not tables:
            for statement in filter(str.strip, _TABLES.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._db.executemany("INSERT INTO identity VALUES (?, ?)", list(identity.items()))
            self._db.executemany("INSERT INTO variants VALUES (?, ?)", list(enumerate(variants)))
            self._db.executemany("INSERT INTO conditions VALUES (?, ?)", list(enumerate(conditions)))
        self._db.execute("COMMIT")
        self._compare(dict(self._db.execute("SELECT name, value FROM identity")), identity)

    def _compare(self, stored: Identity, wanted: Identity) -> None:
        differing = [name for name in (*wanted, *stored) if stored.get(name) != wanted.get(name)]
        if not differing:
            return
        said = []
        for name in dict.fromkeys(differing):
            there, here = stored.get(name, "none"), wanted.get(name, "none")
            short = len(there) <= _READABLE and len(here) <= _READABLE
            said.append(f"{name} ({there} there, {here} here)" if short else name)
        raise InputError(
            f"store {self.path} is of another campaign: it differs in {', '.join(said)}; name a new file, or give "
            "what it was made with"
        )

    def add(self, trial: Trial, measured: Measured) -> None:
        """Stores a trial for good.

        Raises:
            QtamlError: if the disk is full or fails. What was stored before stays.
        """
        row = (trial.variant, trial.condition, trial.number, self._seed + trial.number, json.dumps(measured))
        with self._guarded():
            self._db.execute("INSERT OR REPLACE INTO trials VALUES (?, ?, ?, ?, ?)", row)

    def __len__(self) -> int:
        """How many trials are stored."""
        with self._guarded():
            return int(self._db.execute("SELECT count(*) FROM trials").fetchone()[0])

    def __exit__(self, *_error: object) -> None:
        """Closes the file; everything is in it already."""
        self._db.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turns what SQLite raises into a line that names the file."""
        try:
            yield
        except sqlite3.Error as error:
            text = str(error)
            if "locked" in text:
                raise InputError(f"store {self.path} is in use by another process; wait for it") from error
            if "not a database" in text or "malformed" in text:
                raise InputError(f"store {self.path} is not a store, or damaged; name a new file") from error
            if "full" in text:
                raise QtamlError(
                    f"store {self.path}: the disk is full; free space and go on with --resume: what was stored is safe"
                ) from error
            raise QtamlError(
                f"store {self.path} cannot be read or written ({text}); check space and permissions, then --resume"
            ) from error


_READABLE = 24
"""Values of an identity up to so many characters are shown; longer ones are hashes."""


def campaign_identity(clean: onnx.ModelProto, work: Work) -> Identity:
    """What decides the trials' results. Not the number of trials, nor who runs them."""
    rates = [[array.tolist() for array in conditions] for conditions in work.rates]
    return {
        "clean model": _model_digest(clean),
        "models": " ".join(map(_model_digest, work.models)),
        "data": _data_digest(work.data),
        "flip rates": repr(rates),
        "metrics": ", ".join(metric.name + _source_digest(metric) for metric in work.metrics),
        "seed": str(work.seed),
        "batch size": str(work.batch_size),
        "qtaml-onnx version": __version__,
        "onnxruntime version": ort.__version__,
    }


def _model_digest(model: onnx.ModelProto) -> str:
    """SHA-256 of what a model computes with: its nodes, constants, interface, functions and operator sets."""
    digest = hashlib.sha256()
    graph = model.graph
    for parts in (
        model.opset_import, model.functions, graph.node, graph.initializer, graph.input, graph.output,
    ):  # fmt: skip
        for part in parts:
            data = part.SerializeToString(deterministic=True)
            digest.update(len(data).to_bytes(8, "little") + data)
        digest.update(b"|")
    return digest.hexdigest()


def _data_digest(data: Dataset) -> str:
    """Of samples, labels and how they are fed."""
    return f"{dataset_sha256(data)} {data.one_by_one} {data.batch}"


def _source_digest(metric: Metric) -> str:
    """Of a user's function, a hash of the file that it is in: with other code a trial has another value."""
    if metric.function is None:
        return ""
    try:
        source = Path(inspect.getsourcefile(metric.function.function) or "").read_bytes()
    except (OSError, TypeError):  # built in, or wrapped
        return ""
    return f" {hashlib.sha256(source).hexdigest()}"
