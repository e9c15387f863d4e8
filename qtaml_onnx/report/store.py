"""The store of a campaign, read for a report: an SQLite file with a row a trial.

It is opened read-only; one that a campaign holds is refused. Tables: `identity` (name, value), `variants` (variant,
name), `conditions` (condition, name), `trials` (variant, condition, trial, seed, measured as JSON).
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from qtaml_onnx.errors import InputError
from qtaml_onnx.report.fields import is_share

__all__ = ["StoredCampaign", "StoredResult", "is_store", "read_store"]

APPLICATION = 0x51544D4C
STORE_VERSION = 1
_MAGIC = b"SQLite format 3\0"


class StoredResult(BaseModel):
    """One model under one condition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    condition: str
    trials: int
    mean: float
    ci_low: float | None
    ci_high: float | None
    worst: float = Field(description="least value of a trial")
    best: float = Field(description="greatest value of a trial")


class StoredCampaign(BaseModel):
    """What a store holds, as a document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    store_version: int
    metric: str
    confidence: float
    interval: Literal["t"] = Field(
        "t", description="Student's t over the trials, as if their number had been fixed in advance"
    )
    trials: int
    results: list[StoredResult]
    identity: dict[str, str]

    def to_json(self) -> str:
        """The text of the document as JSON."""
        return self.model_dump_json(indent=1) + "\n"


def is_store(path: Path) -> bool:
    """Whether a file is an SQLite file; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read_store(path: Path, confidence: float = 0.95) -> StoredCampaign:
    """Reads a store.

    Args:
        path: The file.
        confidence: Of the intervals.

    Raises:
        InputError: if it is no store of a campaign, of a newer version, damaged, or without a trial.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return _read(path, database, confidence)
    except (sqlite3.Error, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"store {path} cannot be read ({' '.join(str(error).split())}); name a campaign's store"
        ) from error


def _read(path: Path, database: sqlite3.Connection, confidence: float) -> StoredCampaign:
    if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise InputError(f"store {path} is an SQLite file of another program; name a campaign's store or a report.json")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > STORE_VERSION:
        raise InputError(
            f"store {path} has schema version {version}, this program knows {STORE_VERSION}; "
            "a newer qtaml-onnx reads it"
        )
    identity = dict(database.execute("SELECT name, value FROM identity"))
    models = dict(database.execute("SELECT variant, name FROM variants"))
    conditions = dict(database.execute("SELECT condition, name FROM conditions"))
    values: dict[tuple[int, int], list[float]] = {}
    metric = ""
    rows = database.execute("SELECT variant, condition, measured FROM trials ORDER BY variant, condition, trial")
    for variant, condition, measured in rows:
        document = json.loads(measured)
        metric = metric or next(iter(document))
        values.setdefault((variant, condition), []).append(float(document[metric]))
    if not values:
        raise InputError(f"store {path} holds no trial yet; let the campaign run")
    return StoredCampaign(
        store=str(path),
        store_version=version,
        metric=metric,
        confidence=confidence,
        trials=sum(map(len, values.values())),
        results=[
            _result(models[variant], conditions[condition], found, metric, confidence)
            for (variant, condition), found in values.items()
        ],
        identity={str(name): str(value) for name, value in identity.items()},
    )


def _result(model: str, condition: str, values: list[float], metric: str, confidence: float) -> StoredResult:
    mean, n = float(np.mean(values)), len(values)
    low = high = None
    if n > 1 and math.isfinite(mean):
        half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
        bounds = (0.0, 1.0) if is_share(metric) else (-math.inf, math.inf)
        low, high = max(bounds[0], mean - half), min(bounds[1], mean + half)
    return StoredResult(
        model=model, condition=condition, trials=n, mean=mean, ci_low=low, ci_high=high,
        worst=min(values), best=max(values),
    )  # fmt: skip
