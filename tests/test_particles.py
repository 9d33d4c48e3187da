"""Twisted sequential Monte Carlo, with particles of their own for each row."""

from __future__ import annotations

import pytest
import torch
from models import F64, normals, ring, small_network

from scoresde import VPSDE, FlowMatching, GaussianMixture, Measured, Noise, Particles, Solution, convert, sample
from scoresde.core.errors import UsageError
from scoresde.operators import Mask

MASK = Mask(torch.tensor([[True, False, True]])).on((3,))


def measured(rows=21):
    y = normals(7, 3).repeat_interleave(rows // 7, 0)
    return Measured(small_network(classes=3).given(torch.arange(rows) % 3), MASK, MASK(y), 0.2)


def test_answers_do_not_depend_on_the_batch():
    model, solver = measured(), Particles(6, particles=3)

    def draw(order, batch):
        return sample(model.rows(order), solver, (3,), Noise(0, order), batch=batch, dtype=F64)

    everyone = torch.arange(21)
    whole = draw(everyone, 21)
    for batch in (1, 5):
        other = draw(everyone, batch)
        torch.testing.assert_close(other.x, whole.x, rtol=0, atol=1e-10)
        torch.testing.assert_close(other.ess, whole.ess, rtol=1e-6, atol=0)
    mixed = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draw(mixed, 21).x, whole.x[mixed], rtol=0, atol=1e-10)


def test_with_one_particle_the_path_is_an_ancestral_one():
    from scoresde.solvers import Ancestral

    mean = torch.zeros(1, 1, dtype=F64)
    model = GaussianMixture(VPSDE(), mean, torch.ones(1, dtype=F64))
    mask = Mask(torch.tensor([[True]])).on((1,))
    steered = Measured(model, mask, torch.tensor([[0.5]], dtype=F64), 0.5)
    one = sample(steered, Particles(50, particles=1), (1,), Noise.of(1000), dtype=F64).x
    other = sample(steered, Ancestral(50), (1,), Noise.of(1000, 1), dtype=F64).x
    truth = model.seen(mask, torch.tensor([0.5], dtype=F64), 0.5)
    for x in (one, other):
        assert abs(float(x.mean() - truth.means)) < 0.06
        assert abs(float(x.std()) - float(truth.covariances.sqrt())) < 0.06


def test_weights_undo_a_wrong_rule():
    # A rule that pulls ten times too hard: the particles come back to the posterior, a single path does not.
    model = GaussianMixture(VPSDE(), torch.zeros(1, 1, dtype=F64), torch.ones(1, dtype=F64))
    mask, y = Mask(torch.tensor([[True]])).on((1,)), torch.tensor([[1.0]], dtype=F64)

    def eager(problem):
        from scoresde.guidance.measured import pseudoinverse

        return 1.5 * pseudoinverse(problem)

    truth = model.seen(mask, y[0], 1.0)
    steered = Measured(model, mask, y, 1.0, eager)
    far, near = (
        float(sample(steered, Particles(30, particles=p), (1,), Noise.of(800), dtype=F64).x.mean()) for p in (1, 24)
    )
    right = float(truth.means)
    assert abs(near - right) < 0.08 < abs(far - right)


def test_what_particles_need():
    with pytest.raises(UsageError, match=r"neither; bind one with run\.measured or run\.steered"):
        sample(ring(VPSDE()), Particles(3), (2,), Noise.of(2))
    with pytest.raises(UsageError, match="particles have no Brownian path"):
        sample(measured(7), Particles(3), (3,), Noise.of(7, brownian=True), dtype=F64)
    with pytest.raises(UsageError, match="particles"):
        Particles(3, particles=0)
    assert Particles(100, particles=16).within(336).steps == 20 and Particles(9, particles=16).within(20) is None


def test_a_solution_keeps_its_particles():
    found = sample(convert(measured(7), FlowMatching()), Particles(4, particles=2), (3,), Noise.of(7), dtype=F64)
    assert found.ess.shape == (7,) and bool((found.ess >= 1).all())
    tensors, _ = found.pack()
    again = Solution.unpack(tensors, VPSDE(), torch.device("cpu"))
    assert torch.equal(again.ess, found.ess) and Solution.join([again, found]).ess.shape == (14,)
    assert found.nfe.tolist() == [5 * 2 + 1] * 7
