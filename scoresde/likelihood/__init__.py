"""Log-likelihoods under the probability flow, in nats and in bits/dim, with error estimates.

In the straight frame  y = x/s,  s = alpha + sigma,  r = sigma/s,  the probability flow is  dy/dr = eps_hat - x0_hat.
Along the flow, the log density falls at a rate equal to the divergence of this slope (Chen et al. 2018,
arXiv:1806.07366, thm. 1; Song et al. 2021, arXiv:2011.13456, eq. 39), so that

    log p(x) = log p_prior(z) + int_r0^r1 div(eps_hat - x0_hat) dr + D log( s(t_max) / s(t_min) ),              (1)

where z is the latent at t_max and D is the number of dimensions. The prior is the one from which the solvers sample.
Equation 1 gives the model's density at ``t_min``. If the model was converted to another probability path, the density
is expressed in the units of the original path (``data_scale``), so its value does not depend on the conversion.

Bits per dimension. Let the data x be stored as discrete levels with spacing b in data units (b = 1 for the levels 0 to
255). The data are dequantised to x + b u, where u is uniform on [0, 1). An affine map, with ``scale`` data units per
model unit, then converts them to model units. The probability of a level x is the integral of the density over the cell
of all values x + b u. By Jensen's inequality (Theis et al. 2016, arXiv:1511.01844, sec. 3.1), the expectation over u of

    bits/dim = -( log p(x) / D + log(b / scale) ) / log 2                                                       (2)

is an upper bound on the negative log probability of the data, in bits per dimension. For 256 levels mapped to
[-1, 1), b/scale = 2/256 and -log2(b/scale) = 7. This constant is derived from the data and is not a setting.

Densities in model units are computed by the modules ``clock`` (the integration variable), ``problem`` (the flow in the
straight frame), ``divergence`` (the divergence and its probes), ``quadrature`` (the integral along a solved
trajectory), ``coupled`` (the trajectory and the integral as one system) and ``memory`` (the memory that these
computations need). Other modules cover dequantisation (``dequantise``), likelihoods in data units (``data``), the
options and the convergence check (``method``), a mean to a stated error (``mean``, with ``adams``, ``control`` and
``telescope``), and the variational bounds in continuous time (``elbo``) and for a chain (``chain``).
"""

from __future__ import annotations

from .data import Scores
from .elbo import Elbo, elbo
from .mean import MeanLikelihood
from .method import Likelihood, log_likelihood
from .result import LogLikelihood, bits_per_dim

__all__ = ["Elbo", "Likelihood", "LogLikelihood", "MeanLikelihood", "Scores", "bits_per_dim", "elbo", "log_likelihood"]
