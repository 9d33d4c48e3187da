"""Training settings in files: read what a run or a person has written, and write what can be read again.

A file states the fields of :class:`~scoresde.TrainConfig` by their names. The SDE, the network, the prediction, the
weighting and the time sampler may each be a name, a table with a name and options, or dotted names, as ``--set`` takes
them:

    data = "photos"                       steps = 20_000
    sde = "ve"                            "sde.sigma_max" = 80.0
    [network]
    channels = 64

``config.json`` of a run has another form, which is read as well. In a run, all automatic choices have been made, so
its settings train the same model again. A name in a file never imports a class, whoever has written the file
(:mod:`scoresde.core.registry`).
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, UsageError
from ..core.files import check_format, read_object
from ..core.opened import parse_json, read_bytes, reason
from ..core.registry import READ, closest, fields_of, resolve
from ..core.tables import NETWORKS, PARAMETRIZATIONS, RATES, SDES, TIME_SAMPLERS, WEIGHTINGS
from .config import TrainConfig, plain, stored_fields
from .files import find_run
from .origin import found
from .spec import ModelSpec

__all__ = ["PARTS", "Settings", "nested", "read_settings", "settings_json", "settings_text"]

# The parts with options of their own, and the tables of their names.
PARTS = {
    "sde": SDES, "network": NETWORKS, "predict": PARAMETRIZATIONS, "weighting": WEIGHTINGS, "t_sampler": TIME_SAMPLERS,
    "decay": RATES,
}  # fmt: skip
DTYPES = ("float32", "float64")
ALWAYS = ("data", "sde")  # shown even if they have their default values
LARGEST = 2**24  # largest size of a file of settings, in bytes


@dataclass(frozen=True)
class Settings:
    """Settings from a file.

    Attributes:
        source: The file or the run folder.
        values: The stated fields of :class:`~scoresde.TrainConfig`, as plain values.
        dtype: The precision of the training, or ``None`` if the file does not state it.
        own_network: Whether the run was trained with a network that was passed as an object, so that the settings do
            not describe the network.
        of_run: Whether the settings are those of a run, in which all automatic choices have been made.
    """

    source: Path
    values: Mapping[str, Any]
    dtype: str | None = None
    own_network: bool = False
    of_run: bool = False

    @property
    def config(self) -> TrainConfig:
        """The settings as a configuration whose names all count as read from a file."""
        return TrainConfig(**self.values, typed=READ)


def read_settings(source: str | Path, *, edited: bool = False) -> Settings:
    """Read settings from a file or a run.

    Args:
        source: A TOML file (``.toml``), a JSON file such as the ``config.json`` of a run, a run folder, or the name of
            a run under ``runs/``.
        edited: Whether to accept a run whose files were changed after they were written.

    Raises:
        UsageError: If the file does not exist, or has an unknown setting or an invalid value. The message states the
            file, the setting and what to try.
        CheckpointError: If the file or the run cannot be read.
    """
    path = Path(source)
    if not os.path.isfile(path):
        if path.suffix in (".toml", ".json") and not os.path.isdir(path):
            raise UsageError(
                f"there is no file {path}; pass a TOML or JSON file of settings, or a run", parameter="config"
            )
        folder = find_run(source, edited=edited)
        return _of_run(folder, folder / "config.json", read_object(folder / "config.json"))
    stored = _parsed(path)
    if isinstance(stored.get("config"), dict):
        return _of_run(path.parent, path, stored)
    try:
        values, dtype = _flat(stored)
        found = Settings(path, values, dtype)
        found.config  # noqa: B018  # rejects invalid values
    except UsageError as error:
        raise type(error)(f"{path}: {error}") from None
    return found


def _parsed(path: Path) -> dict[str, Any]:
    """Read a TOML or JSON object, without the checksum of a file that a run has written."""
    try:
        text = read_bytes(path, LARGEST).decode("utf-8-sig")
        stored = tomllib.loads(text) if path.suffix == ".toml" else parse_json(text)
    except (OSError, ValueError, MemoryError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as settings: {reason(error)}; write them as TOML (.toml) or as JSON (.json)"
        ) from None
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} contains no settings; write them as TOML (.toml) or as a JSON object (.json)")
    stored.pop("checksum", None)
    return stored


def _of_run(folder: Path, file: Path, stored: Mapping[str, Any]) -> Settings:
    """Return the settings in the ``config.json`` of a run, with the current path of the data."""
    check_format(file, stored)
    if not isinstance(stored.get("config"), dict):
        raise CheckpointError(f"{file} contains no configuration; is the file damaged?")
    config = TrainConfig.from_dict(stored["config"])
    values, dtype = config.to_dict(), stored.get("dtype")
    own = False
    if file.name == "config.json":
        values["data"] = found(folder, config)
        model = folder / "model.json"
        own = os.path.lexists(model) and ModelSpec.read(model).network is None
    source = folder if file.name == "config.json" else file
    return Settings(source, values, dtype if dtype in DTYPES else None, own, of_run=True)


def _flat(stored: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Convert what a person has written to fields of the configuration and the precision."""
    values: dict[str, Any] = {}
    known = {f.name for f in stored_fields()}
    dtype = None
    for name, value in _entries(stored):
        group, _, option = name.rpartition(".")
        if name == "network.network" and not isinstance(value, str):
            raise UsageError(f"network is {value!r}; it must be a name")
        if group in PARTS:
            options = values.setdefault(f"{group}_options", {})
            if option in options:
                raise UsageError(f"{name} is stated twice; state it once")
            options[option] = _number(value)
        elif name == "dtype":
            if value not in DTYPES:
                raise UsageError(f"dtype is {value!r}; it must be one of {', '.join(DTYPES)}")
            dtype = str(value)
        elif name not in known:
            raise UsageError(f"unknown setting {name!r}; {_near(name, known)}")
        elif name in values:
            raise UsageError(f"{name} is stated twice; state it once")
        else:
            values[name] = _number(value)
    return values, dtype


def _entries(stored: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings one by one. Tables of options become dotted names such as ``sde.beta_max``."""
    for key, value in stored.items():
        name = key.replace("-", "_")
        group = name.removesuffix("_options")
        if group in PARTS and isinstance(value, Mapping):
            for option, inner in value.items():
                of_part = option == "name" and name == group
                yield from _named(group, inner) if of_part else [(f"{group}.{option.replace('-', '_')}", inner)]
        elif name == "network":
            yield from _named(name, value)
        else:
            yield name, value


def _named(group: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name of a part. That of a network is one of its options, because the preset usually determines it."""
    yield ("network.network" if group == "network" else group), value


def _number(value: Any) -> Any:
    """Return infinity for the text that stands for it, because JSON has no such number."""
    return float(value) if value in ("inf", "-inf") else value


def _near(name: str, known: set[str]) -> str:
    """Return a hint for an unknown name, which may be the option of a part without its group."""
    plain = name.rpartition(".")[2]
    owners = [group for group, table in PARTS.items() if any(plain in fields_of(resolve(k, table)) for k in table)]
    return f"did you mean {owners[0]}.{plain}?" if owners else closest(name, {*known, *PARTS})


# ------------------------------------------------------------------------------------------------------------- writing


def nested(config: TrainConfig, *, dtype: str | None = None, everything: bool = False) -> dict[str, Any]:
    """Return settings as plain values, in the form in which a person writes them.

    Args:
        config: The configuration.
        dtype: The precision of the training, which is stated if it is not float32.
        everything: Whether to state fields that have their default values.
    """
    stored = plain(config.to_dict())
    defaults = {f.name: f.default for f in stored_fields()}
    options = {group: stored.pop(f"{group}_options") for group in PARTS}
    names = {group: stored.get(group) for group in PARTS} | {"network": options["network"].pop("network", None)}
    found = {k: v for k, v in stored.items() if everything or k in ALWAYS or v != defaults[k]}
    for group, given in options.items():
        if given:
            found[group] = {k: v for k, v in {"name": names[group], **given}.items() if k != "name" or v is not None}
        elif names[group] is not None and group == "network":
            found[group] = names[group]
    if dtype is not None and (everything or dtype != "float32"):
        found["dtype"] = dtype
    return found


def settings_json(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of :func:`nested` with text in place of infinity, which JSON does not have."""
    return {k: settings_json(v) if isinstance(v, Mapping) else _text(v) for k, v in stated.items()}


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def settings_text(stated: Mapping[str, Any]) -> str:
    """Format the result of :func:`nested` as TOML.

    Raises:
        UsageError: If a value is none, which TOML cannot state.
    """
    plain = {name: value for name, value in stated.items() if not isinstance(value, Mapping)}
    lines = [f"{_key(name)} = {_toml(value, name)}" for name, value in plain.items()]
    for name, value in stated.items():
        if name not in plain:
            lines += ["", f"[{_key(name)}]", *(f"{_key(k)} = {_toml(v, f'{name}.{k}')}" for k, v in value.items())]
    return "\n".join(lines)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_toml(part, name) for part in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(k)} = {_toml(v, name)}' for k, v in value.items())}}}"
    raise UsageError(f"{name} is {value!r}, which TOML cannot state; use JSON", parameter="json")
