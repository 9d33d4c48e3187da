"""Third-party integrators (torchdiffeq and SciPy) behind a common interface.

These integrators are useful for cross-checks, for methods that this package does not implement (such as dopri8, Radau
and LSODA), and for users who trust these libraries more. Both libraries advance the whole batch with one step size. The
result for a sample therefore varies with the rest of the batch (by about the tolerance), and the number of evaluations
is the same for all samples. By default, torchdiffeq steps beyond the end of the interval, to times where the model is
not defined, and averages the error over the batch. Here, torchdiffeq is configured to stop at the end of the interval
and to control the error of the worst sample.

References:
    Chen (2018), torchdiffeq, https://github.com/rtqichen/torchdiffeq.
    Virtanen et al. (2020), SciPy 1.0, https://doi.org/10.1038/s41592-019-0686-2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.errors import NumericalError, UsageError
from ..core.shapes import rms_flat, time_dtype

__all__ = [
    "ENGINES",
]

Slope = Callable[[float, Tensor], Tensor]  # (r, y) -> dy/dr of the whole batch


def torchdiffeq(f: Slope, y: Tensor, r0: float, r1: float, rtol: float, atol: float, method: str) -> Tensor:
    """Solve ``dy/dr = f(r, y)`` from ``r0`` to ``r1`` with torchdiffeq (the method ``auto`` means dopri5).

    The result has the same shape as ``y``.
    """
    from torchdiffeq import odeint
    from torchdiffeq._impl.odeint import SOLVERS

    method = "dopri5" if method == "auto" else method
    adaptive = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
    if method not in adaptive:
        others = ", ".join(m for m in SOLVERS if m in adaptive)
        raise UsageError(f"torchdiffeq has no adaptive method {method!r}; choose from: {others}")
    low, high = min(r0, r1), max(r0, r1)
    ends = torch.tensor([r0, r1], dtype=time_dtype(y.device), device=y.device)
    options = {
        "step_t": ends[1:],  # step exactly to the end instead of interpolating back from beyond it
        "first_step": 0.01 * (high - low),  # torchdiffeq's own choice of first step may leave the interval
        "norm": lambda e: rms_flat(e).max(),  # the error of the worst sample, not the mean over the batch
    }
    try:
        solved = odeint(
            lambda r, s: f(min(max(float(r), low), high), s),
            y,
            ends,
            rtol=rtol,
            atol=atol,
            method=method,
            options=options,
        )
    except AssertionError as error:
        raise NumericalError(
            f"torchdiffeq failed: {error}; try a larger rtol, or the 'own' engine", parameter="engine", value="own"
        ) from None
    out: Tensor = solved[-1]
    return out


def scipy(f: Slope, y: Tensor, r0: float, r1: float, rtol: float, atol: float, method: str) -> Tensor:
    """Solve ``dy/dr = f(r, y)`` from ``r0`` to ``r1`` with ``scipy.integrate.solve_ivp``.

    The method ``auto`` means RK45. The solver runs on the CPU in float64. The result has the same shape as ``y``.
    """
    from scipy.integrate import solve_ivp

    method = "RK45" if method == "auto" else method
    known = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
    if method not in known:
        raise UsageError(f"SciPy has no method {method!r}; choose from: {', '.join(known)}")

    def slope(r: float, flat: object) -> object:
        state = torch.as_tensor(flat).reshape(y.shape).to(y)
        return f(r, state).flatten().double().cpu().numpy()

    solved = solve_ivp(slope, (r0, r1), y.flatten().double().cpu().numpy(), method, rtol=rtol, atol=atol)
    if not solved.success:
        raise NumericalError(
            f"SciPy failed: {solved.message}; try a larger rtol, or the 'own' engine", parameter="engine", value="own"
        )
    return torch.as_tensor(solved.y[:, -1]).reshape(y.shape).to(y)


ENGINES = {"torchdiffeq": torchdiffeq, "scipy": scipy}
