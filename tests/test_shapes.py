"""The only broadcasting code."""

from __future__ import annotations

import pytest
import torch

from scoresde.core.errors import UsageError
from scoresde.core.shapes import align, all_rows, as_time, at, expand, flat, mean_flat, rms_flat, select, sum_flat


def test_expand():
    x = torch.zeros(3, 4, 5)
    assert expand(torch.tensor(2.0, dtype=torch.float64), x).shape == () and expand(torch.ones(3), x).shape == (3, 1, 1)
    assert expand(torch.ones(1), x).shape == (1, 1, 1)
    assert expand(torch.ones(3, dtype=torch.float64), x).dtype == torch.float32
    for wrong in (torch.ones(4), torch.ones(3, 1), torch.ones(3, 2, 5), torch.ones(3, 4, 5, 1)):
        with pytest.raises(UsageError, match=r"\(3, 4, 5\)"):
            expand(wrong, x)


def test_a_coefficient_may_differ_over_an_event():
    x = torch.zeros(3, 4, 5)
    for shape in ((3, 4, 5), (1, 4, 1), (3, 1, 5)):
        a = torch.rand(shape, dtype=torch.float64)
        assert expand(a, x).shape == shape and torch.equal(expand(a, x), a.float())
    bands, row = torch.rand(3, 4, 5), torch.rand(3)
    assert align(row, bands).shape == (3, 1, 1) and align(bands, bands) is bands
    assert align(torch.tensor(2.0), bands).shape == ()
    scalars = torch.zeros(3)  # events of shape ()
    assert expand(torch.ones(3), scalars).shape == expand(torch.ones(1), scalars).expand(3).shape == (3,)


def test_rows_of_a_table_keep_their_axis():
    table = torch.arange(6.0).reshape(3, 2)
    assert at(table, 1).tolist() == [[2, 3]] and at(table[:, 0], 2).tolist() == [4]
    assert expand(at(table[:, 0], 2), torch.zeros(7, 2)).shape == (1, 1)
    assert all_rows(table == torch.tensor([[0, 1], [2, 0], [4, 5]])) == [True, False, True]
    assert all_rows(table[:, 0] == 2) == [False, True, False]


def test_a_time_is_one_number_for_a_row():
    x = torch.zeros(3, 4)
    for t in (torch.tensor(0.5), torch.ones(3), torch.ones(1)):
        assert as_time(t, x) is t
    for wrong in (torch.ones(3, 4), torch.ones(3, 1), torch.ones(2)):
        words = r"a time must have shape \(\) or \(B,\), got .* for a batch of shape \(3, 4\)"
        with pytest.raises(UsageError, match=words):
            as_time(wrong, x)


def test_reductions_keep_rows():
    x = torch.arange(6.0).reshape(2, 3, 1)
    assert sum_flat(x).tolist() == [3, 12] and mean_flat(x).tolist() == [1, 4]
    assert rms_flat(x)[0] == pytest.approx((5 / 3) ** 0.5)
    scalars = torch.tensor([3.0, -4.0])  # events of shape ()
    assert flat(scalars).shape == (2, 1) and sum_flat(scalars).tolist() == [3, -4]
    assert rms_flat(scalars).tolist() == [3, 4]


def test_select_keeps_what_is_the_same_for_all():
    index = torch.tensor([2, 0])
    assert select(torch.tensor([1, 2, 3]), index).tolist() == [3, 1]
    assert select(torch.tensor([7]), index).tolist() == [7]


def test_times_are_float64():
    assert as_time(0.1, torch.zeros(2)).dtype == torch.float64 and float(as_time(0.1, torch.zeros(2))) == 0.1
