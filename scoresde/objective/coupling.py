"""Couplings of data and noise, the two ends of the path.

Training draws a pair (x_0, eps) and regresses the network at  x_t = alpha x_0 + sigma eps.  For any joint distribution
of the pair with the right marginals, the minimiser is the velocity of a flow from noise to data (Lipman et al. 2023,
arXiv:2210.02747, thm. 1; Liu et al. 2023, arXiv:2209.03003, thm. 3.3). Couplings differ in how often the paths of
training pairs cross, and so in how straight the flow is:

    ``independent``   any noise with any data: the score-matching loss, and the only coupling that has a score
    ``ot``            the noise of a batch assigned to its data with the least sum of |x_0 - eps|^2: minibatch optimal
                      transport (Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2024, arXiv:2302.00482), within
                      each class if there are labels, because otherwise the noise would reveal the class
    ``reflow``        each sample with the noise from which a trained model generated it
                      (:mod:`scoresde.train.reflow`)

With a coupled pair the score of p_t is no longer -E[eps | x_t] / sigma, a formula that assumes that x_t given x_0 is
Gaussian. A coupled model is marked as such (``coupled=True``), and everything that needs a score rejects it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.condition import Condition
from ..core.errors import UsageError
from ..core.shapes import flat
from ..data.batch import Batch

__all__ = ["COUPLINGS", "Pairs", "check_coupling", "optimal_transport"]

COUPLINGS = ("independent", "ot", "reflow")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Data samples, each with the noise that it is paired with.

    Pairs are a :class:`~scoresde.data.batch.Source` of batches.

    Attributes:
        x0: Data in model units, shape ``(N, *event)``.
        eps: The noise of each sample, of unit variance, with the same shape as ``x0``.
        condition: The condition of each sample, or ``None``.
    """

    x0: Tensor
    eps: Tensor
    condition: Condition | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def __call__(self, index: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Batch:
        """Return the pairs with the indices ``index``, int64 ``(B,)``."""
        known = None if self.condition is None else self.condition.rows(index)
        return Batch(self.x0[index].to(dtype), known, eps=self.eps[index].to(dtype))


def optimal_transport(x0: Tensor, eps: Tensor, labels: Tensor | None = None) -> Tensor:
    """Assign noise to data by the permutation of the noise that has the least total squared distance.

    Args:
        x0: Data in model units, shape ``(B, *event)``.
        eps: Standard normal numbers, with the same shape as ``x0``.
        labels: Class of each row, int64 ``(B,)``, or ``None``. Noise is exchanged only within a class.

    Returns:
        The rows of ``eps`` in their new order, with the same shape as ``x0``.

    >>> x0, eps = torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [-1.0]])
    >>> optimal_transport(x0, eps).flatten().tolist()
    [-1.0, 1.0]
    """
    from scipy.optimize import linear_sum_assignment

    order = torch.arange(len(x0))
    classes = [order.clone()] if labels is None else [(labels == c).nonzero().flatten() for c in set(labels.tolist())]
    for rows in classes:
        # |x_0 - eps|^2 = |x_0|^2 + |eps|^2 - 2 x_0 . eps, and only the product depends on the assignment.
        gain = flat(x0[rows]).double() @ flat(eps[rows]).double().T
        _, best = linear_sum_assignment(gain.numpy(), maximize=True)
        order[rows] = rows[torch.as_tensor(best)]
    return eps[order]


def check_coupling(coupling: str, weighting: str, predict: str, nodes: bool) -> None:
    """Reject an unknown coupling, or a coupling that conflicts with the other choices.

    Raises:
        UsageError: If there is a conflict; the message states the reason.
    """
    if coupling not in COUPLINGS:
        raise UsageError(f"unknown coupling {coupling!r}; choose from: {', '.join(COUPLINGS)}")
    if coupling == "independent":
        return
    why = f"coupling {coupling}: a model of paired data and noise has a flow but no score, and"
    if weighting in ("likelihood", "score"):
        raise UsageError(f"{why} the weighting {weighting} weighs errors of the score; use native or eps")
    if predict == "score":
        raise UsageError(
            f"{why} cannot predict a score; use the prediction velocity, x0, v, eps or edm",
            parameter="predict",
            value="velocity",
        )
    if nodes:
        raise UsageError(f"{why} a discrete chain is reversed by the score; use a continuous SDE, such as vp or flow")
