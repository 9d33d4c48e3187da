"""Couplings of data and noise, the two ends of the path.

Training draws pairs (x_0, eps) and fits the network to them at  x_t = alpha x_0 + sigma eps.  For any joint
distribution of the pairs with the right marginals, the minimiser defines the velocity of a flow from noise to data
(Lipman et al. 2023, arXiv:2210.02747, thm. 1; Liu et al. 2023, arXiv:2209.03003, thm. 3.3). Couplings differ in how
often the paths of the training pairs cross, and therefore in how straight the trajectories of the flow are:

    ``independent``   The noise is drawn independently of the data. This gives the score-matching loss, and is the only
                      coupling whose models have a score.
    ``ot``            The noise of a batch is assigned to its data so that the sum of |x_0 - eps|^2 is smallest
                      (minibatch optimal transport; Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2024,
                      arXiv:2302.00482). If there are labels, noise is assigned within each class, because otherwise
                      it would reveal the class.
    ``reflow``        Each sample is paired with the noise from which a trained model generated it
                      (:mod:`scoresde.train.reflow`).

With coupled pairs, the score of p_t is no longer -E[eps | x_t] / sigma, because this formula assumes that x_t is
Gaussian given x_0. A model trained on coupled pairs is marked by ``coupled=True``, and everything that needs a score
raises an error for such a model.
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
    """A :class:`~scoresde.data.batch.Source` of data samples, each paired with its noise.

    Attributes:
        x0: Data in model units, shape ``(N, *event)``.
        eps: The noise of each sample, with unit variance and the same shape as ``x0``.
        condition: The condition of each sample, or ``None``.
    """

    x0: Tensor
    eps: Tensor
    condition: Condition | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def __call__(self, index: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Batch:
        """Return a batch of the pairs at the positions ``index``, an int64 tensor ``(B,)``."""
        known = None if self.condition is None else self.condition.rows(index)
        return Batch(self.x0[index].to(dtype), known, eps=self.eps[index].to(dtype))


def optimal_transport(x0: Tensor, eps: Tensor, labels: Tensor | None = None) -> Tensor:
    """Reorder the rows of the noise so that the sum of the squared distances between data and noise is smallest.

    Args:
        x0: Data in model units, shape ``(B, *event)``.
        eps: Standard normal noise, with the same shape as ``x0``.
        labels: The class of each row, int64 ``(B,)``, or ``None``. Noise is exchanged only within a class.

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
    """Check that a coupling is known and compatible with the weighting, the prediction and the SDE.

    Args:
        coupling: The name of the coupling.
        weighting: The name of the weighting.
        predict: The name of the prediction.
        nodes: Whether the SDE is a discrete chain.

    Raises:
        UsageError: If the coupling is unknown or incompatible. The message states the reason.
    """
    if coupling not in COUPLINGS:
        raise UsageError(f"unknown coupling {coupling!r}; choose from: {', '.join(COUPLINGS)}")
    if coupling == "independent":
        return
    why = f"a model trained with the {coupling!r} coupling has a flow but no score, so"
    if weighting in ("likelihood", "score"):
        raise UsageError(f"{why} the {weighting!r} weighting cannot be used; use 'native' or 'eps'")
    if predict == "score":
        raise UsageError(
            f"{why} it cannot predict a score; predict 'velocity', 'x0', 'v', 'eps' or 'edm' instead",
            parameter="predict",
            value="velocity",
        )
    if nodes:
        raise UsageError(f"{why} it cannot reverse a discrete chain; use a continuous SDE, such as 'vp' or 'flow'")
