"""Embedded Runge-Kutta methods, by name, for adaptive steps (:mod:`scoresde.ode.integrate`).

A method has nodes c_i, stage weights a_ij and two sets of weights b_i and b*_i. The weights b_i, of order q, give the
solution, and the differences b_i - b*_i give an estimate of the error (Hairer, Norsett and Wanner 1993, II.4). In all
methods here, the last stage is evaluated at the solution, so this stage is also the first stage of the next step
("first same as last"). After the first step, a step therefore costs six evaluations with the methods of order 5, and
three evaluations with the method of order 3.

The weights g of the second error estimate are our own. Differences between two sets of weights that satisfy the four
order conditions up to order 3 form a three-dimensional space, which contains b - b*. The direction of g in this space
was chosen to single out the steps that b - b* accepts even though their error exceeds ten times the tolerance. The size
of g was chosen so that the second estimate rejects only 2 % to 7 % of the good steps.

References:
    Dormand and Prince (1980), J. Comput. Appl. Math. 6:19-26.
    Bogacki and Shampine (1989), Appl. Math. Lett. 2:321-325.
    Tsitouras (2011), Computers & Mathematics with Applications 62(2):770-775.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TABLEAUS", "Tableau"]


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau whose last stage is the first of the next step (FSAL).

    Attributes:
        c: The nodes, as fractions of the step.
        a: The stage weights, one row for each stage. The last row contains the weights of the solution.
        e: The weights of the error estimate, ``b - b*``.
        order: The order of the solution.
        g: The weights of a second, cruder error estimate (``b`` minus weights of order 3), or empty if there is no
            second estimate.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    e: tuple[float, ...]
    order: int
    g: tuple[float, ...] = ()

    @property
    def passing(self) -> tuple[bool, ...]:
        """For each stage, whether its slope has no weight in the solution or in any error estimate."""
        b = (*self.a[-1], 1.0)  # the last stage is the first of the next step
        return tuple(not any(weights) for weights in zip(b, self.e, self.g or self.e, strict=True))


TABLEAUS = {
    # Tsitouras (2011), Computers & Mathematics with Applications 62(2), tab. 1.
    "tsit5": Tableau(
        c=(0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1),
        a=(
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
            (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
        ),
        e=(
            -0.00178001105222577714,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            1 / 66,
        ),
        order=5,
        g=(0.21345734517709114, -0.08975510054216008, -0.35386748264817063, 1, 0, -1 / 3, -0.4365014286534271),
    ),
    "bosh3": Tableau(
        c=(0, 1 / 2, 3 / 4, 1),
        a=((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        e=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        order=3,
    ),
    "dopri5": Tableau(
        c=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        e=(
            35 / 384 - 5179 / 57600,
            0,
            500 / 1113 - 7571 / 16695,
            125 / 192 - 393 / 640,
            -2187 / 6784 + 92097 / 339200,
            11 / 84 - 187 / 2100,
            -1 / 40,
        ),
        order=5,
        g=(95 / 486, 0, -772 / 1701, 3 / 4, -1 / 4, 0, -137 / 567),
    ),
}
