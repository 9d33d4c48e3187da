r"""Fit the times and weights of a :class:`~scoresde.solvers.tuned.Tuned` solver through its whole solve.

Let theta contain the P numbers of a solver, y_b(theta) its result for row b and y*_b the exact end of the flow. The fit
minimises the robust loss

    L(theta) = sum_b c^2/2 log(1 + e_b^2/c^2),      e_b^2 = |y_b - y*_b|^2 / D,                                  (1)

in which a row that is far off, because it passes a border between two modes of the data, counts for little. The scale c
is three times the median of e_b. The method of Levenberg and Marquardt takes steps

    (H + mu diag H) delta = -g,      g = sum_b w_b J_b^T r_b,      H = sum_b w_b J_b^T J_b,                      (2)

with r_b = (y_b - y*_b)/sqrt(D), J_b = dr_b/dtheta and w_b = 1/(1 + e_b^2/c^2). The D x P matrices J_b are never
formed. Each row gets its own copy of theta, so that one backward pass returns J_b^T v_b for all rows at once. With
v = r this is g. With v of random signs,

    E[(J^T v)(J^T v)^T] = J^T E[v v^T] J = J^T J,                                                                (3)

so a few more backward passes give an unbiased estimate of H. A step is taken only if it lowers L, which is computed for
the real solver, so that the noise of H can make a step shorter, but never worse.

The times are fitted as log-SNRs. Where the path is left by dt/d(log-SNR) times a small change, the derivative is exact,
and no inverse of the log-SNR has to be differentiated.

References:
    Marquardt (1963), An algorithm for least-squares estimation of nonlinear parameters.
    Hutchinson (1990): probes of random signs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.noise import Noise
from ..core.shapes import expand
from ..model.estimate import Denoiser
from ..solvers.tuned import Tuned

__all__ = ["Rows", "levenberg", "normal_equations", "numbers", "squares", "with_numbers"]

DAMPING = 1e-2  # mu at the start
ROBUST = 3  # the scale c over the median of e_b
ATTEMPTS = 5  # with ever larger mu, before the probes are drawn anew
ENOUGH = 4e-3  # a fit ends after two rounds in a row that each lower the loss by less than this share


@dataclass(frozen=True)
class Rows:
    """The problems to which a solver is fitted.

    Args:
        model: The model, with one row for each problem or one for all.
        x: The states from which the solver starts, ``(B, *event)``.
        target: The exact ends of the flow from these states, ``(B, *event)``.
        batch: Number of rows to differentiate at once.
    """

    model: Denoiser
    x: Tensor
    target: Tensor
    batch: int = 64

    def __len__(self) -> int:
        return len(self.x)

    def part(self, first: int, last: int) -> Rows:
        """Return the rows from ``first`` to ``last - 1``."""
        index = torch.arange(first, last, device=self.x.device)
        return replace(self, model=self.model.rows(index), x=self.x[index], target=self.target[index])

    def pieces(self) -> list[Rows]:
        """Return the rows in batches."""
        return [self.part(i, min(i + self.batch, len(self))) for i in range(0, len(self), self.batch)]


def numbers(solver: Tuned, times: bool) -> Tensor:
    """Return the numbers of a solver that are fitted, float64 ``(P,)``: the log-SNRs if ``times``, then the factors."""
    factors = (*solver.keep, *(w for row in solver.weights for w in row))
    return torch.tensor([*(solver.log_snr if times else ()), *factors], dtype=torch.float64)


def with_numbers(solver: Tuned, theta: Tensor, times: bool) -> Tuned:
    """Return the solver with the numbers ``theta: (P,)`` in the order of :func:`numbers`."""
    n, found = solver.steps, theta.tolist()
    log_snr = tuple(found[: n - 1]) if times else solver.log_snr
    rest = found[n - 1 :] if times else found
    rows, at = [], n
    for i in range(n):
        rows.append(tuple(rest[at : at + i + 1]))
        at += i + 1
    return replace(solver, log_snr=log_snr, keep=tuple(rest[:n]), weights=tuple(rows))


def squares(solver: Tuned, rows: Rows) -> Tensor:
    """Return ``e_b^2``, the mean square distance of each row from its exact end, float64 ``(B,)``."""
    ends = [solver(part.model, part.x, t0=solver.ends[0], t1=solver.ends[1]).x for part in rows.pieces()]
    return (torch.cat(ends).double() - rows.target.double()).square().flatten(1).mean(1).cpu()


def _solve(solver: Tuned, rows: Rows, theta: Tensor, times: bool) -> Tensor:
    """Return the ends of rows whose solvers have the numbers ``theta: (B, P)``, which can be differentiated."""
    sde, n, x = rows.model.domain.sde, solver.steps, rows.x
    at = solver.times(rows.model.domain).to(x.device)
    scales = sde.scale(at)
    moved = theta[:, : n - 1] - theta[:, : n - 1].detach() if times else None  # zeros with a derivative
    factors = (theta[:, n - 1 :] if times else theta).to(x.dtype)
    z, values, first = x / float(scales[0]), list[Tensor](), n
    state = z
    for i in range(n):
        t = at[i]
        if moved is not None and i > 0:
            (alpha, sigma), (d_alpha, d_sigma) = sde.coefficients(t), sde.rates(t)
            t = t + moved[:, i - 1] / (2 * (d_alpha / alpha - d_sigma / sigma))  # dt = d(log-SNR) / (d log-SNR/dt)
            x = expand(sde.scale(t), z) * state
        elif i > 0:
            x = float(scales[i]) * state
        estimate = rows.model(x, t)
        values.append(estimate.eps - estimate.x0)
        state = expand(factors[:, i], z) * z
        for j, value in enumerate(values):
            state = state + expand(factors[:, first + j], z) * value
        first += i + 1
    return float(scales[-1]) * state


def normal_equations(
    solver: Tuned, rows: Rows, weights: Tensor, probes: int, noise: Noise, times: bool
) -> tuple[Tensor, Tensor]:
    """Return ``g: (P,)`` and an unbiased estimate of ``H: (P, P)`` of equation (2), in float64.

    Args:
        solver: The solver at which the loss is expanded.
        rows: The problems.
        weights: The weight of each row, ``(B,)``.
        probes: Number of probes for each row.
        noise: The source of the probes.
        times: Whether the times are among the numbers.
    """
    theta = numbers(solver, times)
    g, h = torch.zeros_like(theta), torch.zeros(len(theta), len(theta), dtype=torch.float64)
    for first, part in zip(range(0, len(rows), rows.batch), rows.pieces(), strict=True):
        index = torch.arange(first, first + len(part))
        with torch.enable_grad():
            copies = theta.to(part.x.device).expand(len(part), -1).clone().requires_grad_()
            end = _solve(solver, part, copies, times)
        root = end[0].numel() ** 0.5
        signs = noise.rows(index.to(noise.indices.device)).normal(
            (probes, *end.shape[1:]), stream="probe", dtype=end.dtype
        )
        for k in range(probes + 1):
            v = (end.detach() - part.target) / root if k == 0 else signs[:, k - 1].sign()
            back = torch.autograd.grad(end, copies, v / root, retain_graph=k < probes)[0].double().cpu()
            if k == 0:
                g += weights[index] @ back
            else:
                h += back.mT @ (weights[index, None] * back) / probes
    return g, h


def levenberg(solver: Tuned, rows: Rows, rounds: int, *, times: bool = True, seed: int = 0, probes: int = 2) -> Tuned:
    """Return the solver with the numbers to which at most ``rounds`` rounds of equation (2) lead.

    Args:
        solver: The solver with which the fit starts.
        rows: The problems.
        rounds: Maximum number of rounds, each with new probes and at most one step.
        times: Whether to fit the times. On a chain, whose times are nodes, only the factors are fitted.
        seed: Seed of the probes.
        probes: Number of probes for each row.
    """
    mu, idle, e2, curve = DAMPING, 0, squares(solver, rows), None
    for number in range(rounds):
        c2 = ROBUST**2 * float(e2.median())

        def loss(e2: Tensor, c2: float = c2) -> float:
            return float((c2 / 2 * torch.log1p(e2 / c2)).sum())

        noise = Noise.of(len(rows), seed, start=number * len(rows), device=rows.x.device)
        g, h = normal_equations(solver, rows, 1 / (1 + e2 / c2), probes, noise, times)
        # J changes little, so that the probes of earlier rounds still tell of it.
        h = h if curve is None else (h + curve) / 2
        before, curve = loss(e2), h
        for _ in range(ATTEMPTS):
            damped = h + torch.diag(mu * h.diagonal() + 1e-12 * h.diagonal().max())
            theta = numbers(solver, times) - torch.linalg.solve(damped, g)
            if _usable(theta, solver, times):
                other = with_numbers(solver, theta, times)
                found = squares(other, rows)
                if loss(found) < before:
                    break
            mu *= 5
        else:  # the noise of H can hide the way down, and other probes show it
            other, found = solver, e2
        solver, e2, mu = other, found, max(mu / 5, 1e-8)
        idle = idle + 1 if loss(e2) > (1 - ENOUGH) * before else 0
        if idle == 2:
            break
    return solver


def _usable(theta: Tensor, solver: Tuned, times: bool) -> bool:
    """Return whether all numbers are finite, and the log-SNRs ascend and stay near those of the solver."""
    if not bool(theta.isfinite().all()):
        return False
    at = theta[: solver.steps - 1] if times else theta[:0]
    return bool((at.diff() > 0).all()) and bool(
        ((at - torch.tensor(solver.log_snr[: len(at)]).double()).abs() < 3).all()
    )
