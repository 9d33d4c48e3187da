"""Random numbers that are pure functions of the seed, the sample index, the stream and the step.

With a sequential generator, each sample depends on its neighbours, so changing the batch size, dropping a finished row
or resuming at sample 40,000 changes every image. Here, each number is computed from its address,

    (seed, sample index, stream, step, position in the event)  ->  uniform bits  ->  N(0, 1),

with the counter-based generator Philox4x32-10 and the Box-Muller transform. Ten rounds of

    (hi0, lo0) = 0xD2511F53 c0,   (hi1, lo1) = 0xCD9E8D57 c2,
    c <- (hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0),   k <- k + (0x9E3779B9, 0xBB67AE85)

turn a 128-bit counter (c0, c1, c2, c3) and a 64-bit key (k0, k1) into four 32-bit words, where hi and lo are the upper
and lower halves of a 64-bit product. The integer arithmetic gives the same result on every device, so a row keeps its
noise when the rows are divided into batches or distributed over devices, and when finished rows are dropped.

Without ``brownian``, X steps gives another
sample. With ``brownian``, each sample has a Brownian path W on [0, 1], and the random numbers of a step are its scaled
increment. The path is refined where it is evaluated (Levy's midpoint construction),

    W((a + b)/2) = (W(a) + W(b))/2 + sqrt((b - a)/4) z,

where z is a standard normal number whose address depends on the midpoint. For a fixed seed, each sample then converges
to a single image as the number of steps grows.

References:
    Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, SC '11,
    https://doi.org/10.1145/2063384.2063405.
    Box and Muller (1958), A note on the generation of random normal deviates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UsageError
from .limits import SEED, WHOLE, check_number, checked, enough_memory
from .shapes import select

__all__ = ["Noise", "keyed", "philox"]

_MASK = 0xFFFFFFFF

# One stream for each purpose, so that extra draws for one purpose never change the draws for another.
STREAMS = {
    "prior": 0, "solver": 1, "corrector": 2, "probe": 3, "dequantise": 4, "user": 5, "path": 6, "elbo": 7, "augment": 8,
    "condition": 9, "task": 10, "particles": 11, "resample": 12, "velocity": 13,
}  # fmt: skip

# Number of refinements of the Brownian path, which is linear within a cell of length 2^-20.
_LEVELS = 20


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Apply Philox4x32-10 to four int64 tensors of 32-bit words.

    The shapes of the four tensors must broadcast against each other.

    Args:
        counter: The four words of the counter, the fastest-varying word first.
        key: The two words of the key.

    Returns:
        Four int64 tensors of independent uniform 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2^64, which leaves both 32-bit halves correct.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Noise:
    """The random numbers for a set of samples.

    Args:
        seed: Any integer from 0 to 2^64 - 1.
        indices: The sample index of each row, int64, shape ``(B,)``. The random numbers are generated on the device of
            this tensor.
        brownian: Whether :meth:`between` returns scaled increments of a Brownian path. The path does not depend on the
            number of steps.
        support: Which numbers of each row are real, bool ``(B, *event)`` or ``(1, *event)``, or ``None`` if all are.
            Normal numbers for an event are exactly 0 elsewhere. The other numbers do not depend on the support.

    >>> both, second = Noise.of(2, seed=7), Noise(7, torch.tensor([1]))
    >>> bool((both.normal((3,))[1] == second.normal((3,))[0]).all())
    True
    """

    seed: int
    indices: Tensor
    brownian: bool = False
    support: Tensor | None = None

    def __post_init__(self) -> None:
        check_number("seed", self.seed, SEED, "int")
        if self.indices.ndim != 1 or self.indices.dtype != torch.int64:
            raise UsageError("the indices of Noise must have dtype int64 and shape (B,), one index per row")

    @classmethod
    @checked(count=WHOLE, seed=SEED, start=WHOLE)
    def of(
        cls,
        count: int,
        seed: int = 0,
        start: int = 0,
        device: torch.device | str | None = None,
        *,
        brownian: bool = False,
    ) -> Noise:
        """Return the noise for samples ``start`` to ``start + count - 1``."""
        enough_memory(8 * count, f"the indices of {count:,} samples", "n")
        return cls(seed, torch.arange(start, start + count, device=device), brownian)

    def rows(self, index: Tensor) -> Noise:
        """Return the noise for the rows selected by ``index: (B',)``."""
        support = None if self.support is None else select(self.support, index)
        return Noise(self.seed, self.indices[index], self.brownian, support)

    def within(self, support: Tensor | None) -> Noise:
        """Return the noise restricted to ``support`` (see above), or the noise itself if ``support`` is ``None``."""
        return self if support is None else Noise(self.seed, self.indices, self.brownian, support)

    def _words(self, size: int, stream: str, step: int | Tensor) -> Tensor:
        """Return uniform 32-bit words, ``(B, n)``, where n is ``size`` rounded up to a multiple of 4."""
        if isinstance(step, int) and not 0 <= step < 2**32:
            raise UsageError(f"the step of a draw must be an integer >= 0 and < 2^32, got {step}")
        if stream not in STREAMS:
            raise UsageError(f"unknown noise stream {stream!r}; choose from: {', '.join(STREAMS)}")
        blocks = torch.arange(-(-size // 4), device=self.indices.device)[None]
        index = self.indices[:, None]
        words = philox(
            (
                blocks,
                step[:, None] if isinstance(step, Tensor) else torch.full_like(blocks, step),
                index & _MASK,
                ((index >> 32) & 0xFFFFFF) | (STREAMS[stream] << 24),
            ),
            (self.seed & _MASK, self.seed >> 32),
        )
        return torch.cat([w.expand(len(self.indices), blocks.shape[1]) for w in words], dim=1)

    def normal(
        self,
        shape: tuple[int, ...],
        step: int | Tensor = 0,
        stream: str = "solver",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return a tensor of shape ``(B, *shape)`` of independent samples from N(0, 1).

        ``step`` is one integer for all rows, or an int64 tensor of shape ``(B,)``.
        """
        size = max(1, math.prod(shape))
        u = (self._words(size + size % 2, stream, step).double() + 0.5) / 2**32
        half = u.shape[1] // 2
        radius, angle = torch.sqrt(-2 * torch.log(u[:, :half])), 2 * torch.pi * u[:, half:]
        z = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return self._kept(z[:, :size].reshape(-1, *shape).to(dtype))

    def _kept(self, z: Tensor) -> Tensor:
        """Set the numbers outside the support to 0 if ``z: (B, ..., *event)`` contains events."""
        support = self.support
        if support is None or z.ndim < support.ndim or z.shape[z.ndim - support.ndim + 1 :] != support.shape[1:]:
            return z
        more = [1] * (z.ndim - support.ndim)  # for example the particles of a row
        return torch.where(support.to(z.device).reshape(len(support), *more, *support.shape[1:]), z, 0)

    def between(
        self, t: float, s: float, shape: tuple[int, ...], step: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return standard normal numbers ``(B, *shape)`` for a solver step from time ``t`` to time ``s``.

        Without ``brownian``, the numbers depend on the step index ``step`` but not on the times, and the numbers of
        different steps are independent. With ``brownian``, the numbers are ``(W(s) - W(t)) / sqrt(|s - t|)``,
        where W is the Brownian path, and the times must be in [0, 1].
        """
        if not self.brownian:
            return self.normal(shape, step, "solver", dtype)
        self.check(torch.tensor([t, s], dtype=torch.float64))
        increment = self.path(s, shape) - self.path(t, shape)
        return (increment / math.sqrt(abs(s - t))).to(dtype)

    def check(self, times: Tensor) -> None:
        """Reject a time grid ``times: (n + 1,)`` if a step is not within [0, 1] or is too short for the Brownian path.

        Raises:
            UsageError: If the grid has such a step. The message quotes the first one.
        """
        inside = (times[:-1].clamp(0, 1) == times[:-1]) & (times[1:].clamp(0, 1) == times[1:])
        wrong = (((times[1:] - times[:-1]).abs() < 4 / 2**_LEVELS) | ~inside).nonzero().flatten()
        if len(wrong):
            t, s = float(times[wrong[0]]), float(times[wrong[0] + 1])
            raise UsageError(
                f"the Brownian path is defined on [0, 1] and resolves steps of at least 4e-6, but the grid has a step "
                f"from {t:.6g} to {s:.6g}; use fewer steps, another grid, or independent noise"
            )

    def path(self, t: float | Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return a float64 tensor of shape ``(B, *shape)`` with the value W(t) of the Brownian path of each sample.

        ``t`` is a time in [0, 1]: one number for all rows, or a tensor of shape ``(B,)``.
        """
        device, count = self.indices.device, len(self.indices)
        t = torch.as_tensor(t, dtype=torch.float64, device=device).expand(count)

        def draw(node: int | Tensor) -> Tensor:
            return self.normal(shape, node, "path", torch.float64)

        def rows(choice: Tensor) -> Tensor:
            return choice.reshape(-1, *[1] * len(shape))

        left, right = torch.zeros(count, *shape, dtype=torch.float64, device=device), draw(0)
        low, width, node = torch.zeros_like(t), 1.0, torch.ones_like(self.indices)
        for _ in range(_LEVELS):
            if bool(((t == low) | (t == low + width)).all()):
                break
            middle = (left + right) / 2 + math.sqrt(width / 4) * draw(node)
            width /= 2
            lower = t < low + width
            left, right = torch.where(rows(lower), left, middle), torch.where(rows(lower), middle, right)
            low, node = torch.where(lower, low, low + width), 2 * node + (~lower)
        return left + rows((t - low) / width) * (right - left)

    def uniform(
        self,
        shape: tuple[int, ...],
        step: int | Tensor = 0,
        stream: str = "dequantise",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return a tensor of shape ``(B, *shape)`` that contains independent uniform numbers in [0, 1).

        Each number has 24 random bits, so that rounding to float32 never gives 1. ``step`` is one integer for all
        rows, or an int64 tensor of shape ``(B,)``.
        """
        size = max(1, math.prod(shape))
        words = self._words(size, stream, step)[:, :size] >> 8
        return (words.double() / 2**24).reshape(-1, *shape).to(dtype)

    def rademacher(
        self,
        shape: tuple[int, ...],
        step: int | Tensor = 0,
        stream: str = "probe",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return a tensor of shape ``(B, *shape)`` that contains independent random signs, each -1 or 1.

        ``step`` is one integer for all rows, or an int64 tensor of shape ``(B,)``.
        """
        size = max(1, math.prod(shape))
        words = self._words(size, stream, step)[:, :size]
        return (1 - 2 * (words & 1)).reshape(-1, *shape).to(dtype)


# The purposes for which training draws random numbers.
_PURPOSES = {"step": 0, "epoch": 1, "dropout": 2, "augment": 3, "validation": 4, "rank": 5}


def keyed(seed: int, n: int, purpose: str = "step") -> torch.Generator:
    """Return the random generator that training uses for ``purpose`` in step or epoch ``n``.

    The seed of the generator is a hash of ``seed``, ``n`` and ``purpose``, computed with the finaliser of SplitMix64.
    """
    key = (seed * 0x9E3779B97F4A7C15 + (n + 2) * 0xBF58476D1CE4E5B9 + _PURPOSES[purpose]) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key = (key ^ (key >> shift)) * factor % 2**64
    return torch.Generator().manual_seed((key ^ (key >> 31)) % 2**63)
