"""The fitted solvers of a run, in its file ``tuned.json``.

A fitted solver (:mod:`scoresde.solvers.tuned`) is correct only for the model to which it was fitted. The file therefore
states what that model was: the digest of its weights, the path, the ends, which parts of a condition were bound, and
the guidance. All of that is compared with the run before a fitted solver is used, and any difference is an error. With
another guidance scale, for example, half of the fitted solvers were worse than a solver that was never fitted.

The file holds numbers of six significant digits in compact JSON with a checksum. No code is loaded from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.condition import SLOTS
from ..core.errors import CheckpointError, UsageError
from ..core.files import FORMAT, check_format, read_object, was_changed, write_json
from ..core.parts import OPAQUE, digest
from ..guidance.classifier_free import ALL
from ..sde.base import SDE
from ..solvers.tuned import Tuned
from .identity import identity, outline, tensors

if TYPE_CHECKING:
    from .steering import Steerable

__all__ = ["Fit", "Fits", "bindings", "six_digits"]

FILE = "tuned.json"
_TOLD = {
    "step": "the weights of step", "weights": "weights with the digest", "path": "the path", "ends": "the times",
    "condition": "the condition", "guidance": "the guidance scale",
}  # fmt: skip


def six_digits(value: float) -> float:
    """Round a number to six significant digits.

    >>> six_digits(0.123456789)
    0.123457
    """
    return float(f"{value:.6g}")


def bindings(run: Steerable) -> dict[str, Any]:
    """Return what a fitted solver of a run depends on, as plain JSON values."""
    domain, known = run.model.domain, run.condition
    low, high = domain.interval("sample")
    path = repr(domain.sde)
    slots = [] if known is None else [name for name in SLOTS if getattr(known, name) is not None]
    found: dict[str, Any] = {
        "step": run.step, "weights": _weights(run.base),
        "path": path if len(path) <= 80 else f"{type(domain.sde).__name__} {_short(identity(domain.sde))}",
        "ends": [high, low], "condition": "+".join(slots) or "none", "guidance": run.scale,
    }  # fmt: skip
    if run.scale != 1.0 and run.against is not None:
        found["against"] = _short(identity(run._against()))
    if tuple(run.interval) != ALL:
        found["interval"] = [str(end) for end in run.interval]
    if run.potential is not None:
        found["steering"] = _short(identity(run.potential))
    if run.measurement is not None:
        found["measurement"] = f"{run.measurement.operator}, {outline(run.rule)}"
    for name in ("rescale", "threshold"):
        if getattr(run, name):
            found[name] = getattr(run, name)
    return found


def _weights(base: object) -> str:
    """Return a digest of the weights in float32, which does not depend on the precision of the computation."""
    if not isinstance(base, nn.Module):
        return _short(identity(base))

    def plain(value: Tensor) -> Tensor:
        return value.float() if value.is_floating_point() else value

    return _short(digest(*map(plain, tensors(base))))


def _short(text: str) -> str:
    return text.removeprefix(OPAQUE)[:16]


@dataclass(frozen=True)
class Fit:
    """A fitted solver, with its errors and those of the best fixed solver on rows that were kept apart from the fit.

    Attributes:
        solver: The solver.
        grid: The log-SNR at each node between the ends of the best time grid for this number of steps, found by dynamic
            programming (:mod:`scoresde.study.shortest`), n - 1 numbers.
        rms, median: Root mean square, and median over rows, of the distance to the exact end per dimension.
        fixed: The best fixed solver.
        fixed_rms, fixed_median: The same errors of that solver.
        rows: Number of rows that were fitted.
        seed: The seed of the fit.
    """

    solver: Tuned
    grid: tuple[float, ...]
    rms: float
    median: float
    fixed: str
    fixed_rms: float
    fixed_median: float
    rows: int
    seed: int

    def times(self, sde: SDE) -> tuple[float, ...]:
        """Return the n + 1 times of the grid on the path to which it was fitted."""
        first, last = self.solver.ends
        inside = sde.t_of_log_snr(torch.tensor(self.grid, dtype=torch.float64)).clamp(
            min(first, last), max(first, last)
        )
        return (first, *inside.tolist(), last)

    def to_dict(self) -> dict[str, Any]:
        """Return the fit as plain JSON values."""
        own = {name: getattr(self.solver, name) for name in ("steps", "log_snr", "keep", "weights")}
        fixed = [self.fixed, self.fixed_rms, self.fixed_median]
        about = {"rows": self.rows, "seed": self.seed, "error": [self.rms, self.median], "fixed": fixed}
        return {**own, "grid": self.grid, **about}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], ends: tuple[float, float]) -> Fit:
        """Read a fit from plain JSON values."""
        weights = tuple(tuple(map(float, row)) for row in stored["weights"])
        log_snr, keep, grid = (tuple(map(float, stored[name])) for name in ("log_snr", "keep", "grid"))
        (rms, median), (fixed, *errors) = stored["error"], stored["fixed"]
        solver = Tuned(stored["steps"], log_snr, keep, weights, ends)
        if not solver.fitted or len(grid) != solver.steps - 1:
            raise ValueError(f"{len(grid)} nodes of the grid for {solver.steps} steps")
        best = str(fixed), float(errors[0]), float(errors[1])
        return cls(solver, grid, float(rms), float(median), *best, int(stored["rows"]), int(stored["seed"]))


@dataclass(frozen=True)
class Fits:
    """The fitted solvers of a run.

    Attributes:
        known: What they were fitted for (:func:`bindings`).
        fits: The fits, in ascending order of their steps.
    """

    known: Mapping[str, Any]
    fits: tuple[Fit, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of steps that were fitted."""
        return tuple(fit.solver.steps for fit in self.fits)

    def at(self, steps: int) -> Fit:
        """Return the fit with ``steps`` steps.

        Raises:
            UsageError: If there is none.
        """
        for fit in self.fits:
            if fit.solver.steps == steps:
                return fit
        raise UsageError(
            f"no solver was fitted to this run for {steps} steps, but for {', '.join(map(str, self.steps))}; use one "
            "of these, or fit another one with tune",
            parameter="steps",
            value=min(self.steps, key=lambda n: abs(n - steps)),
        )

    def joined(self, earlier: Fits) -> Fits:
        """Return these fits together with earlier ones for other numbers of steps, if both are for the same model."""
        others = [fit for fit in earlier.fits if fit.solver.steps not in self.steps]
        fits = sorted((*self.fits, *(others if earlier.known == self.known else ())), key=lambda fit: fit.solver.steps)
        return Fits(self.known, tuple(fits))

    def check(self, run: Steerable) -> None:
        """Check that a run is what the solvers were fitted for.

        Raises:
            UsageError: If it differs. The message states the first difference.
        """
        now = bindings(run)
        for name in dict.fromkeys((*self.known, *now)):
            if self.known.get(name) != now.get(name):
                then, found = (json.dumps(of.get(name, "none")).replace('"', "") for of in (self.known, now))
                raise UsageError(
                    f"the solvers in {run.folder or 'this run'} were fitted for {_TOLD.get(name, name)} {then}, but "
                    f"this run has {found}; fit it again with tune, or use 'multistep'",
                    parameter="solver",
                    value="multistep",
                )

    def write(self, folder: Path) -> Path:
        """Write the file of the run in ``folder``."""
        fits = [fit.to_dict() for fit in self.fits]
        content = {"format": FORMAT, **self.known, "fits": fits}
        return write_json(folder / FILE, content, signed=True, compact=True)

    @classmethod
    def read(cls, folder: Path | None) -> Fits:
        """Read the file of the run in ``folder``.

        Raises:
            UsageError: If there is no such file.
            CheckpointError: If the file is damaged, was changed or has an unknown format.
        """
        path = None if folder is None else folder / FILE
        if path is None or not os.path.lexists(path):
            raise UsageError(
                f"no solver was fitted to {folder or 'this run, because it has no folder'}; fit one with tune, or use "
                "'multistep'",
                parameter="solver",
                value="multistep",
            )
        if was_changed(path):
            raise CheckpointError(f"{path} was changed after it was written; write it again with tune")
        stored = read_object(path)
        check_format(path, stored)
        try:
            del stored["format"]
            fits = stored.pop("fits")
            first, last = map(float, stored["ends"])
            found = tuple(Fit.from_dict(fit, (first, last)) for fit in fits)
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
        ) as error:  # a UsageError is a ValueError
            raise CheckpointError(f"{path} is damaged ({error}); write it again with tune") from None
        if not found:
            raise CheckpointError(f"{path} has no fits; write it again with tune")
        return cls(stored, found)
