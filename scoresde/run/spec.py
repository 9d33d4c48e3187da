"""The specification of a model, which is stored as ``model.json`` in the run folder.

A configuration (:mod:`scoresde.run.config`) states how a run was trained, and leaves many values to a preset or to the
data. A specification states the values that were used. It describes the SDE, the parametrisation, the network and the
codec, each by its registered name and with *all* of its options. Presets are read only when training starts, so a later
change to a preset does not affect existing runs. For runs made before specifications were introduced, the specification
is derived from the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..codec import Codec, Unbuilt, digest, from_dict, to_dict
from ..core.errors import CheckpointError, UsageError
from ..core.files import FORMAT, check_format, read_object
from ..core.registry import READ, Typed, build, construct, fields_of, moved, name_of, options_of, resolve
from ..core.tables import NETWORKS, PARAMETRIZATIONS, SDES
from ..model.network import ScoreModel
from ..model.parametrization import Parametrization
from ..sde.base import SDE
from ..sde.modified import Shifted

__all__ = ["ModelSpec", "Part", "make_path"]


@dataclass(frozen=True)
class Part:
    """A part of a model, described by its name and its options.

    Attributes:
        name: The registered name of the part, or ``module:Name``.
        options: All options of the part, as plain values.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, thing: Any, table: Mapping[str, str], options: Mapping[str, Any] | None = None) -> Part:
        """Describe an object by its name and its fields, and add any ``options`` that are not fields."""
        return cls(name_of(thing, table), {**(options or {}), **options_of(thing)})

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Part:
        """Read a part from plain values."""
        return cls(moved(str(stored["name"])), dict(stored["options"]))


@dataclass(frozen=True)
class ModelSpec:
    """The parts from which a :class:`~scoresde.ScoreModel` is built.

    Attributes:
        path: The SDE.
        shift: Factor by which the SDE's sigma/alpha is multiplied.
        parametrization: The parametrisation of the network's output.
        network: The network, or ``None`` if it was passed as an object.
        codec: The map from data units to model units.
        classes: Number of classes, or 0 for a model without labels.
        coupled: Whether data and noise were coupled in training (``coupling`` other than ``independent``).
        learn_variance: Whether the network also learns the variance of the reverse steps of a chain.
    """

    path: Part
    shift: float
    parametrization: Part
    network: Part | None
    codec: Codec
    classes: int = 0
    coupled: bool = False
    learn_variance: bool = False

    def build(
        self,
        sde: SDE | type[SDE] | None = None,
        network: nn.Module | Callable[..., nn.Module] | None = None,
        parametrization: Parametrization | Callable[..., Parametrization] | None = None,
        *,
        typed: Typed = READ,
    ) -> ScoreModel:
        """Build the model with untrained weights.

        Args:
            sde, network, parametrization: Parts that are not built in, as objects, or as classes to call with the
                options in the specification.
            typed: Which names come from the user rather than from a file (:mod:`scoresde.core.registry`).

        Raises:
            UsageError: If a part is unknown or has invalid options.
            CheckpointError: If a name that was read from a file is not built in.
        """
        for part in self.codec.space.parts:
            if isinstance(part, Unbuilt):
                raise part.missing()
        path = make_path(self.path, self.shift, sde, typed=typed)
        meaning = _made(self.parametrization, parametrization, PARAMETRIZATIONS, "prediction", Parametrization, typed)
        if network is None and self.network is None:
            told = "the run was trained with a network of your own; pass that network"
            raise CheckpointError(told, parameter="network")
        net = _made(self.network, network, NETWORKS, "network", nn.Module, typed)
        return ScoreModel(net, path, meaning, self.classes, self.coupled, self.learn_variance, self.codec)

    def resolved(self, model: ScoreModel, typed: Typed) -> ModelSpec:
        """Return a copy of the specification with all options filled in, given the ``model`` that it describes."""
        sde = model.sde.path if isinstance(model.sde, Shifted) else model.sde
        network = self.network
        if network is not None:
            known = fields_of(resolve(network.name, NETWORKS, "network", typed=typed))
            defaults = {name: f.default for name, f in known.items() if f.default is not f.empty}
            network = Part(network.name, {**defaults, **network.options})
        return replace(
            self,
            path=Part.of(sde, SDES, self.path.options),
            parametrization=Part.of(model.parametrization, PARAMETRIZATIONS, self.parametrization.options),
            network=network,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as plain JSON values."""
        parts = {name: getattr(self, name) for name in ("path", "parametrization", "network")}
        return {
            "format": FORMAT,
            **{n: None if p is None else {"name": p.name, "options": dict(p.options)} for n, p in parts.items()},
            **{name: getattr(self, name) for name in ("shift", "classes", "coupled", "learn_variance")},
            "codec": to_dict(self.codec),
            "codec_digest": digest(self.codec),
        }

    @classmethod
    def read(cls, file: Path) -> ModelSpec:
        """Read a specification from a file that contains the output of :meth:`to_dict`.

        Raises:
            CheckpointError: If the file is malformed, or the codec does not match its digest.
        """
        stored = read_object(file)
        check_format(file, stored)
        try:
            path, parametrization = (Part.read(stored[name]) for name in ("path", "parametrization"))
            codec = from_dict(stored["codec"], unbuilt=True)
            if digest(codec) != stored["codec_digest"]:
                raise CheckpointError(
                    f"{file}: the codec does not match its digest {stored['codec_digest']!r}; is the file damaged?"
                )
            return cls(
                path=path,
                shift=float(stored["shift"]),
                parametrization=parametrization,
                network=None if stored["network"] is None else Part.read(stored["network"]),
                codec=codec,
                classes=_count(stored, "classes"),
                coupled=_flag(stored, "coupled"),
                learn_variance=_flag(stored, "learn_variance"),
            )
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{file} is not a valid model specification: {error!r}") from None


def make_path(part: Part, shift: float = 1.0, given: SDE | type[SDE] | None = None, *, typed: Typed = READ) -> SDE:
    """Build the SDE of a model.

    Args:
        part: The name and the options of the SDE.
        shift: Factor by which sigma/alpha is multiplied.
        given: The SDE itself, or its class, if the SDE is not built in.
        typed: Which names come from the user rather than from a file (:mod:`scoresde.core.registry`).

    Raises:
        UsageError: If the name is unknown or does not name an SDE, or if ``given`` is not the SDE of the run.
        CheckpointError: If a name that was read from a file is not built in.
    """
    name = part.name if given is None else name_of(given, SDES)
    _check_same(part.name, name, given, SDES, "SDE")
    if given is None:
        sde: Any = build(part.name, SDES, "SDE", part.options, typed=typed)
    elif isinstance(given, type):
        sde = construct(given, "SDE", given.__name__, part.options, typed=typed)
    else:
        sde = given
    if not isinstance(sde, SDE):
        raise UsageError(
            f"{part.name!r} is not an SDE; it must be a frozen dataclass that subclasses scoresde.SDE and defines "
            "alpha and sigma"
        )
    sde.check()
    return sde if shift == 1 else Shifted(sde, shift)


def _count(stored: Mapping[str, Any], name: str) -> int:
    if isinstance(stored[name], bool) or int(stored[name]) != stored[name] or stored[name] < 0:
        raise ValueError(f"{name} must be an integer >= 0, got {stored[name]!r}")
    return int(stored[name])


def _flag(stored: Mapping[str, Any], name: str) -> bool:
    if not isinstance(stored[name], bool):
        raise ValueError(f"{name} must be true or false, got {stored[name]!r}")
    return bool(stored[name])


def _check_same(trained: str, name: str, given: Any, table: Mapping[str, str], what: str) -> None:
    """Reject a class other than the one that a run was trained with.

    A class of the user may have moved to another module, but it must have kept its own name. An instance is accepted
    under any name, and so is a network, because another network does not fit the weights.
    """
    if name == trained:
        return
    own, its = (text.rpartition(":")[2].rpartition(".")[2] for text in (name, trained))
    other = isinstance(given, type) and what != "network" and own != its
    if table.keys() & {name, trained} or other:
        raise UsageError(f"the run was trained with the {trained!r} {what}, not with {name!r}")


def _made(part: Part | None, given: Any, table: Mapping[str, str], what: str, kind: type, typed: Typed) -> Any:
    """Build a part from the class ``given``, or from the class that ``part`` names if ``given`` is ``None``.

    If ``given`` is an instance of ``kind``, it is returned unchanged.
    """
    if isinstance(given, kind):
        return given
    if part is None:  # an object was passed in training, so its options are unknown
        part = Part(name_of(given, table))
    if given is None:
        given, name = resolve(part.name, table, what, typed=typed), part.name
    else:
        name = name_of(given, table)
        _check_same(part.name, name, given, table, what)
    made = construct(given, what, name, _tuples(part.options, given), table, typed=typed)
    if not isinstance(made, kind):
        raise UsageError(
            f"{what} {name!r} returns an object of type {type(made).__name__}, which is not a {kind.__name__}"
        )
    return made


def _tuples(options: Mapping[str, Any], factory: Any) -> dict[str, Any]:
    """Convert the lists in the options of a part to tuples."""
    fields = fields_of(factory)
    found = {}
    for key, value in options.items():
        several = key in fields and isinstance(fields[key].default, tuple)  # then a single value becomes a tuple too
        found[key] = tuple(value) if isinstance(value, list | tuple) else (value,) if several else value
    return found
