"""Operators against their matrices: adjoint, pseudo-inverse, the systems of a measurement, what a network is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoresde.core.errors import UsageError
from scoresde.core.noise import Noise
from scoresde.core.tables import OPERATORS
from scoresde.operators import (
    JPEG,
    AddedNoise,
    Blur,
    Cells,
    Crop,
    Grey,
    Half,
    Hole,
    Linear,
    Mask,
    OneOf,
    Operator,
    Pool,
    conjugate_gradients,
    parse,
)

F64 = torch.float64


@dataclass(frozen=True, eq=False)
class Fourier(Linear):
    """An operator of a user's own, with nothing but a call."""

    keep: int = 3

    def __call__(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.rfft2(x)[..., : self.keep, : self.keep])


@dataclass(frozen=True, eq=False)
class Twice(Linear):
    """Measures the sum of the two first values, twice, and nothing else: A A^T is singular."""

    def __call__(self, x: Tensor) -> Tensor:
        total = x.flatten(1)[:, :2].sum(1, keepdim=True)
        return torch.cat([total, total, 2 * total], 1)


def cases() -> list[tuple[Linear, tuple[int, ...]]]:
    g = torch.Generator().manual_seed(3)
    found: list[tuple[Linear, tuple[int, ...]]] = [
        (Mask(torch.rand(1, 5, 7, generator=g) < 0.5), (2, 5, 7)),
        (Mask(torch.rand(6, generator=g) < 0.5), (6,)),
        (Hole(), (3, 7, 8)), (Hole(2), (1, 9)), (Hole(), (1, 5, 4, 6)),
        (Half(), (1, 5, 6)), (Half("left"), (2, 5, 7)), (Half("upper"), (2, 9)), (Half("right"), (1, 3, 4, 5)),
        (Cells(), (9,)), (Cells(0.3), (2, 6)), (Cells(), (3, 5, 4)),
        (Pool(2), (3, 6, 4)), (Pool(3), (2, 9)), (Pool(2), (1, 4, 2, 6)),
        (Grey(), (3, 5, 4)), (Grey(), (3, 6)),
        (Crop(), (2, 7, 6)), (Crop(3), (1, 8)), (Crop(2), (1, 5, 4, 6)),
        (Blur(0.7), (2, 6, 5)), (Blur(2.0), (1, 9)), (Blur(1.0), (1, 4, 3, 5)), (Blur(30.0), (1, 8, 8)),
        (Fourier(), (2, 6, 5)), (Twice(), (4,)),
    ]  # fmt: skip
    return found


CASES = [pytest.param(a, event, id=f"{type(a).__name__}-{'x'.join(map(str, event))}") for a, event in cases()]
CLOSED = 1e-12
ITERATED = 1e-8


def exactness(operator: Linear) -> float:
    return ITERATED if type(operator).solve is Linear.solve else CLOSED


def bound(operator: Linear, event: tuple[int, ...], rows: int = 3) -> Linear:
    found = operator.on(event).drawn(Noise.of(rows, 5))
    assert isinstance(found, Linear)
    return found


def matrices(operator: Linear, event: tuple[int, ...], rows: int = 3) -> Tensor:
    """The matrix of each row, ``(rows, measured, dims)``."""
    dims = math.prod(event)
    columns = [operator(e.reshape(1, *event).expand(rows, *event)).flatten(1) for e in torch.eye(dims, dtype=F64)]
    return torch.stack(columns, 2)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= tolerance * scale


@pytest.mark.parametrize(("operator", "event"), CASES)
def test_adjoint_and_pseudo_inverse(operator: Linear, event: tuple[int, ...]) -> None:
    a = bound(operator, event)
    x = Noise.of(3, 1).normal(event, dtype=F64)
    y = Noise.of(3, 2).normal(a.measured, dtype=F64)
    assert a(x).shape == y.shape and a.transpose(y).shape == x.shape
    close((a(x) * y).flatten(1).sum(1), (x * a.transpose(y)).flatten(1).sum(1), CLOSED)
    tolerance = exactness(operator)
    close(a(a.pinv(a(x))), a(x), tolerance)
    back = a.pinv(y)  # a y that no x gives, too
    close(a.pinv(a(back)), back, 1e-6 if isinstance(operator, Blur) and operator.sigma > 1 else tolerance)


@pytest.mark.parametrize(("operator", "event"), CASES)
@pytest.mark.parametrize("prior", ["number", "event", "channel", "row"])
@pytest.mark.parametrize("b", [0.0, 0.3, 1e-3])
def test_solve_is_the_inverse_of_the_matrix(operator: Linear, event: tuple[int, ...], prior: str, b: float) -> None:
    a = bound(operator, event)
    matrix = matrices(a, event)
    spread = {
        "number": 0.7,
        "event": 0.5 + torch.rand(event, dtype=F64, generator=torch.Generator().manual_seed(0)),
        "channel": torch.linspace(0.5, 2.0, event[0], dtype=F64).reshape(-1, *[1] * (len(event) - 1)),
        "row": torch.linspace(0.5, 2.0, 3, dtype=F64).reshape(-1, *[1] * len(event)),
    }[prior]
    variance = torch.as_tensor(spread, dtype=F64).expand(3, *event).flatten(1)
    full = matrix @ (variance[:, :, None] * matrix.transpose(1, 2))
    r = Noise.of(3, 2).normal(a.measured, dtype=F64)
    if b == 0:
        r = a(Noise.of(3, 4).normal(event, dtype=F64))
    u = a.solve(r, spread, b)
    assert u.shape == r.shape
    system = full + b * torch.eye(full.shape[1], dtype=F64)
    blurred = isinstance(operator, Blur)
    product = (system @ u.flatten(1)[:, :, None])[:, :, 0]
    tolerance = ITERATED if exactness(operator) == ITERATED or (blurred and prior == "event") else CLOSED
    # The error of the product is relative to its largest term, because u is large where a blur leaves almost nothing.
    close(product, r.flatten(1), tolerance * max(1.0, float(system.abs().amax() * u.abs().max())))
    if not blurred or b:
        expected = (torch.linalg.pinv(system, rtol=1e-12) @ r.flatten(1)[:, :, None])[:, :, 0]
        close(u.flatten(1), expected, tolerance if b else max(tolerance, 1e-11))


def test_a_singular_system_has_the_shortest_solution_also_for_an_impossible_measurement() -> None:
    a = bound(Twice(), (4,))
    matrix = matrices(a, (4,))
    r = Noise.of(3, 2).normal((3,), dtype=F64)
    expected = (torch.linalg.pinv(matrix @ matrix.transpose(1, 2)) @ r[:, :, None])[:, :, 0]
    close(a.solve(r, 1.0, 0.0), expected, ITERATED)
    close(a.pinv(r), (torch.linalg.pinv(matrix) @ r[:, :, None])[:, :, 0], ITERATED)


def test_a_row_does_not_depend_on_the_others() -> None:
    a = Fourier(event=(1, 6, 5))
    r = Noise.of(3, 2).normal(a.measured, dtype=F64) * torch.tensor([1.0, 1e8, 0.0], dtype=F64).reshape(3, 1, 1, 1, 1)
    together = a.solve(r, 1.0, 0.1)
    for i in range(3):
        close(a.solve(r[i : i + 1], 1.0, 0.1), together[i : i + 1], 1e-13)
    assert float(together[2].abs().max()) == 0


def test_conjugate_gradients_solve_a_dense_system() -> None:
    root = Noise.of(1, 0).normal((9, 9), dtype=F64)[0]
    matrix = root @ root.T + torch.eye(9, dtype=F64)
    r = Noise.of(4, 1).normal((9,), dtype=F64)
    close(conjugate_gradients(lambda u: u @ matrix, r), torch.linalg.solve(matrix, r.T).T, 1e-11)


def test_rows_keep_their_own_masks() -> None:
    a = bound(Cells(), (9,), rows=5)
    x = Noise.of(5, 1).normal((9,))
    index = torch.tensor([4, 0])
    torch.testing.assert_close(a.rows(index)(x[index]), a(x)[index])
    assert not torch.equal(a(torch.ones(5, 9))[0], a(torch.ones(5, 9))[1])
    noisy = AddedNoise(0.5).on((9,)).drawn(Noise.of(5, 5))
    torch.testing.assert_close(noisy.rows(index)(x[index]), noisy(x)[index])
    either = OneOf((Hole(2), AddedNoise(0.5))).on((1, 9)).drawn(Noise.of(5, 5))
    x = x[:, None]
    torch.testing.assert_close(either.rows(index).degrade(x[index]), either.degrade(x)[index], equal_nan=True)


def test_every_number_of_missing_cells_is_as_likely() -> None:
    drawn = Cells().on((4,)).drawn(Noise.of(50_000, 1))
    counts = drawn.known((4,)).sum(1).bincount(minlength=5).double() / 50_000
    torch.testing.assert_close(counts, torch.full((5,), 0.2, dtype=F64), atol=0.01, rtol=0)
    share = Cells(0.3).on((4,)).drawn(Noise.of(50_000, 1)).known((4,)).double().mean()
    assert float(share) == pytest.approx(0.7, abs=0.01)
    picture = Cells().on((3, 4, 5)).drawn(Noise.of(2, 1))
    assert picture.known((3, 4, 5)).shape == (2, 1, 4, 5)  # all channels of a pixel


def test_what_a_network_is_shown() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    nan = math.nan
    hole = Hole(2).on((1, 4, 4)).degrade(x)[0, 0]
    expected = torch.tensor([[0, 1, 2, 3], [4, nan, nan, 7], [8, nan, nan, 11], [12, 13, 14, 15]])
    torch.testing.assert_close(hole, expected, equal_nan=True)
    lower = Half().on((1, 4, 4)).degrade(x)[0, 0]
    assert bool(lower[2:].isnan().all()) and torch.equal(lower[:2], x[0, 0, :2])
    left = Half("left").on((1, 4, 4)).degrade(x)[0, 0]
    assert bool(left[:, :2].isnan().all()) and torch.equal(left[:, 2:], x[0, 0, :, 2:])
    end = Half("right").on((1, 4)).degrade(x[:, 0, :1])[0, 0]
    torch.testing.assert_close(end, torch.tensor([0, 1, nan, nan]), equal_nan=True)
    window = Crop(2).on((1, 4, 4)).degrade(x)[0, 0]
    assert int(window.isnan().sum()) == 12 and torch.equal(window[1:3, 1:3], x[0, 0, 1:3, 1:3])
    coarse = Pool(2).on((1, 4, 4)).degrade(x)[0, 0]
    torch.testing.assert_close(coarse[:2], torch.tensor([[2.5, 2.5, 4.5, 4.5]] * 2))


def test_the_hole_is_in_the_centre_and_has_three_sevenths_of_the_side() -> None:
    for side, hole in ((28, 12), (8, 4), (7, 3), (32, 14), (3, 1)):
        missing = ~Hole().known((1, side, side))[0, 0]
        assert int(missing.any(0).sum()) == hole
        assert torch.equal(missing, missing.flip(0)) and torch.equal(missing, missing.flip(1))


def test_grey_is_the_luminance() -> None:
    x = torch.tensor([10.0, 20.0, 30.0]).reshape(1, 3, 1, 1)
    assert float(Grey()(x)) == pytest.approx(0.299 * 10 + 0.587 * 20 + 0.114 * 30)


def test_blur_keeps_the_mean_and_agrees_with_the_convolution() -> None:
    x = Noise.of(1, 1).normal((1, 64), dtype=F64)
    found = Blur(2.0)(x)
    i = torch.arange(-16, 17, dtype=F64)
    kernel = torch.exp(-((i / 2) ** 2) / 2)
    mirrored = torch.cat([x.flip(2)[..., -16:], x, x.flip(2)[..., :16]], 2)
    expected = torch.nn.functional.conv1d(mirrored, (kernel / kernel.sum()).reshape(1, 1, -1))
    close(found, expected, 1e-6)
    close(found.mean(), x.mean(), 1e-14)


def test_noise_has_its_standard_deviation_and_its_address() -> None:
    a = AddedNoise(0.5).on((1000,)).drawn(Noise.of(4, 5), step=3)
    x = torch.zeros(4, 1000)
    assert float(a(x).std()) == pytest.approx(0.5, rel=0.05) and not a.linear
    again = AddedNoise(0.5).on((1000,)).drawn(Noise.of(4, 5).rows(torch.tensor([2])), step=3)
    assert torch.equal(again(x[:1])[0], a(x)[2])
    assert not torch.equal(AddedNoise(0.5).on((1000,)).drawn(Noise.of(4, 5), step=4)(x), a(x))


def test_jpeg_is_that_of_pillow_in_the_range_of_the_data() -> None:
    x = torch.linspace(0, 16, 64).reshape(1, 1, 8, 8).expand(2, 3, 8, 8).contiguous()
    rough, fine = (JPEG(q).on((3, 8, 8), 0, 16)(x) for q in (5, 100))
    assert float((fine - x).abs().max()) < 0.2 < float((rough - x).abs().max())
    assert rough.min() >= 0 and rough.max() <= 16 and torch.equal(rough[0], rough[1])
    grey = JPEG(100).on((1, 8, 8), -1, 1)(x[:, :1] / 8 - 1)
    assert float((grey - (x[:, :1] / 8 - 1)).abs().max()) < 0.03


# -------------------------------------------------------------------------------------------------------------- choice


def test_each_row_has_one_of_the_operators() -> None:
    either = OneOf((Hole(2), Pool(2), AddedNoise(1e-3))).on((1, 4, 4)).drawn(Noise.of(3000, 1))
    assert isinstance(either, OneOf) and either.which is not None
    counts = either.which.bincount(minlength=3)
    assert counts.min() > 900
    x = torch.arange(16.0).reshape(1, 1, 4, 4).expand(3000, 1, 4, 4)
    shown = either.degrade(x)
    assert torch.equal(shown.isnan().any(3).any(2).any(1), either.which == 0)
    torch.testing.assert_close(shown[either.which == 1], Pool(2).degrade(x[either.which == 1]))
    with pytest.raises(UsageError, match=r"choice of several operators.*one of them, such as hole:2"):
        either(x)


@pytest.mark.parametrize("name", [n for n in OPERATORS if n != "mask"])
def test_text_is_read_and_written(name: str) -> None:
    operator = parse(name)
    again = parse(str(operator))
    assert type(again) is type(operator) and str(again) == str(operator)
    assert operator.title and "\n" not in operator.title


def test_options_and_classes_in_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse("pool:4").size == 4 and parse("half:left").which == "left" and parse("noise:0.25").sigma == 0.25
    assert [type(c) for c in parse("grey/hole/pool:4/jpeg:10").choices] == [Grey, Hole, Pool, JPEG]
    assert str(parse("grey/hole:3/pool:4/jpeg:10")) == "grey/hole:3/pool:4/jpeg:10"
    monkeypatch.chdir(tmp_path)
    Path("own_operator_a.py").write_text(
        "from dataclasses import dataclass\nfrom scoresde.operators import Linear\n\n@dataclass(frozen=True)\n"
        "class First(Linear):\n    def __call__(self, x):\n        return x[:, :1]\n"
    )
    own = parse("own_operator_a:First").on((3,))
    torch.testing.assert_close(own.pinv(torch.tensor([[2.0]])), torch.tensor([[2.0, 0, 0]]))
    assert str(own) == "own_operator_a:First"
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert parse("mask:a/b.png", read_mask=lambda path: mask).file == "a/b.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("poool:2", "unknown operator 'poool'; did you mean 'pool'"),
        ("pool:two", "size is 'two'; it must be an integer"),
        ("pool:1", "size is 1; it must be an integer >= 2"),
        ("grey:3", "operator 'grey' has no options"),
        ("half:top", "unknown half 'top'"),
        ("noise:-1", "sigma is -1"),
        ("mask", "needs a file, as in mask:FILE"),
        ("scoresde:VPSDE", "derive that class from scoresde.operators.Linear"),
        ("jpeg:101", "quality is 101"),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("operator", "event", "message"),
    [
        (Pool(2), (1, 7, 8), "sides that are divisible by 2, but the samples are 7 x 8"),
        (Pool(2), (6,), "needs pictures, signals or volumes, but the samples are vectors"),
        (Grey(), (1, 8, 8), "needs pictures with 3 channels, but the number of channels is 1"),
        (Hole(9), (1, 8, 8), "hole:9 needs sides longer than 9 px"),
        (Crop(8), (1, 8, 8), "crop:8 needs sides longer than 8 px, but the samples are 8 x 8 px"),
        (JPEG(), (1, 8), "pictures with 1 or 3 channels"),
        (JPEG(), (2, 8, 8), "pictures with 1 or 3 channels"),
        (Blur(), (8,), "vectors"),
        (Mask(torch.ones(1, 5, 5, dtype=torch.bool)), (1, 8, 8), "5 x 5 pixels, but the samples have 8 x 8 pixels"),
    ],
)  # fmt: skip
def test_samples_that_an_operator_does_not_apply_to(operator: Operator, event: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        operator.on(event)


def test_what_is_missing_before_a_call_is_named() -> None:
    for operator, message in ((Cells(), "drawn"), (AddedNoise(), "drawn"), (OneOf((Hole(),)), "drawn")):
        with pytest.raises(UsageError, match=message):
            operator.degrade(torch.zeros(2, 1, 4, 4))
    with pytest.raises(UsageError, match=r"Fourier needs the shape of the samples; call operator\.on"):
        Fourier().transpose(torch.zeros(1, 1, 3, 3, 2))
    with pytest.raises(UsageError, match="boolean tensor"):
        Mask(torch.ones(3))


@pytest.mark.parametrize(
    "operator",
    [Hole(2), Half("left"), Cells(0.5), Crop(), Mask(torch.tensor([[True, False], [False, True]]).repeat(2, 3)),
     Pool(2), Grey(), Blur(), AddedNoise(0.5), JPEG(20)],
    ids=str,
)  # fmt: skip
def test_what_a_measurement_leaves_open(operator: Operator) -> None:
    """Hidden values are those that the network is shown as NaN, or all of them if no value is shown as it is."""
    x = torch.rand(3, 3, 4, 6, dtype=F64)
    operator = operator.on((3, 4, 6)).drawn(Noise.of(3, 0))
    hidden, shown = operator.hidden((3, 4, 6)).expand(x.shape), operator.degrade(x)
    assert hidden.dtype == torch.bool and bool(hidden.any())
    if isinstance(operator, Pool | Grey | Blur | AddedNoise | JPEG):
        assert bool(hidden.all()) and not bool(shown.isnan().any())
    else:
        torch.testing.assert_close(hidden, shown.isnan())
        assert bool((shown == x)[~hidden].all()) and not bool(hidden.all())
