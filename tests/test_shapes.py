"""The only broadcasting code."""

from __future__ import annotations

import pytest
import torch

from scoresde.errors import UsageError
from scoresde.shapes import as_time, expand, flat, mean_flat, rms_flat, select, sum_flat


def test_expand():
    x = torch.zeros(3, 4, 5)
    assert expand(torch.tensor(2.0, dtype=torch.float64), x).shape == () and expand(torch.ones(3), x).shape == (3, 1, 1)
    assert expand(torch.ones(1), x).shape == (1, 1, 1)
    assert expand(torch.ones(3, dtype=torch.float64), x).dtype == torch.float32
    for wrong in (torch.ones(4), torch.ones(3, 1)):
        with pytest.raises(UsageError, match=r"\(3, 4, 5\)"):
            expand(wrong, x)


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
