"""What the results of a run depend on, so that finished parts are only reused for the same request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import UsageError
from ..core.parts import Parts, digest, plain_request
from ..core.registry import name_of, options_of
from ..core.tables import SOLVERS
from ..guidance.classifier_free import ALL
from ..likelihood import Likelihood
from ..model.network import ScoreModel
from ..solvers import Solver
from .identity import identity, outline, tensors
from .steering import Steerable

__all__ = ["Kept"]


class Kept(Steerable):
    """A run whose results can be kept in parts."""

    def request(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return what results depend on, as plain JSON values.

        This includes the model, the settings bound to it, and the settings in ``asked``, but no condition with several
        rows.
        """
        known = self.condition
        one = None if known is None or len(known) > 1 else digest(*tensors(known))
        label = None if known is None or one is None or known.label is None else known.label.tolist()
        try:
            spec = self.spec if isinstance(self.base, ScoreModel) else None
            made_of = outline(self.base) if spec is None else json.dumps(spec.to_dict(), sort_keys=True)
        except UsageError:  # a user-defined codec has no name
            made_of = repr(self.base)
        facts = {
            "step": self.step, "model": digest(made_of, repr(self.codec)), "weights": digest(*tensors(self.base)),
            "label": label, "condition": one, "guidance": self.scale, "path": None if self.path is None else self.path,
            "dtype": str(self.dtype).removeprefix("torch."), "device": self.device.type,
        }  # fmt: skip
        if isinstance(self.base, ScoreModel) and (told := self.base.execution.told):
            facts["execution"] = told
        if self.scale != 1.0 and self.against is not None:
            facts["against"] = identity(self._against())
        if tuple(self.interval) != ALL:
            facts["interval"] = [str(end) for end in self.interval]
        if self.potential is not None:
            facts |= {"potential": identity(self.potential), "strength": self.strength}
        if self.rescale:
            facts["rescale"] = self.rescale
        if self.threshold is not None:
            facts["threshold"] = self.threshold
        if self.measurement is not None:
            facts |= {"measured": str(self.measurement.operator), "noise": self.noise, "rule": outline(self.rule)}
            facts["y"] = digest(*tensors(self.measurement)) if len(self.measurement) == 1 else None
        if self.begin is not None:
            facts |= {"at": self.at, "begin": digest(self.begin) if len(self.begin) == 1 else None}
        return plain_request({**facts, **asked})

    def sample_request(self, solver: Solver, **asked: Any) -> dict[str, Any]:
        """Return what samples depend on, in the form of :meth:`request`."""
        options = {f"solver.{name}": value for name, value in options_of(solver).items()}
        name = name_of(solver, SOLVERS)
        name = name.rpartition(":")[2] if name.startswith("scoresde.") else name
        return self.request({"solver": name, **options, **asked})

    def score_request(self, likelihood: Likelihood, **asked: Any) -> dict[str, Any]:
        """Return what likelihoods depend on, in the form of :meth:`request`."""
        return self.request({**asdict(likelihood), **asked})

    @property
    def told_digest(self) -> str | None:
        """A digest of the bound condition, including all of its rows, or ``None`` if no condition is bound."""
        return None if self.condition is None else digest(*tensors(self.condition))

    def _known_of(self, index: Tensor) -> list[Tensor]:
        """Return the conditions and measurements of the rows at ``index``, except those that all rows share."""
        known = [] if self.condition is None or len(self.condition) == 1 else tensors(self.condition.rows(index))
        if self.measurement is not None and len(self.measurement) > 1:
            known += tensors(self.measurement.rows(index))
        if self.begin is not None and len(self.begin) > 1:
            known += [self.begin[index]]
        return known

    def _parts_of(self, x: Tensor, keep: str | Path | None, asked: dict[str, Any], start: int) -> Parts | None:
        """Return the store for results computed from ``x``, or ``None`` if ``keep`` is ``None``."""
        if keep is None:
            return None

        def inputs(index: Tensor) -> list[Tensor]:
            return [x[(index - start).cpu()], *self._known_of(index - start)]

        return Parts(Path(keep), asked, inputs)
