"""dpo_smac.py: the divergence of two policies and its root, to the last digits that float32 has."""

from __future__ import annotations

import pytest
import torch

import dpo_smac
from dpo_smac import categorical_kl, masked_log_softmax
from tests.scripts.learning import A, random_mask


def policies(kl: float, rows: int = 200, seed: int = 0):
    """Logits of pi_old and pi, float32, with KL(pi_old || pi) about `kl`, and random masks."""
    generator = torch.Generator().manual_seed(seed)
    old, direction = torch.randn(2, rows, A, generator=generator).double()
    mask = random_mask(rows, A, generator=generator)
    scale = torch.full((rows, 1), 1e-9).double()
    while kl > 0:  # the KL grows with the step along `direction`
        larger = exact_kl(old, old + 1.1 * scale * direction, mask) < kl
        if not (larger & (scale[:, 0] < 60)).any():
            break
        scale[larger] *= 1.1
    return old.float(), (old + (kl > 0) * scale * direction).float(), mask


def exact_kl(old: torch.Tensor, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL from the logits in float64; expm1(x) - x loses 1e-16 |x| there, the textbook form 1e-16."""
    log = [x.double().masked_fill(~mask, -1e300).log_softmax(-1) for x in (old, new)]
    x = (log[1] - log[0]).masked_fill(~mask, 0.0)
    return (log[0].exp() * mask * (torch.expm1(x) - x)).sum(-1)


SIZES = [0.0, 1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0, 10.0]


@pytest.mark.parametrize("size", SIZES)
def test_kl_and_its_root_agree_with_float64(size):
    """A wrong KL would steer the betas, and with them every step's size, to something else than d_target.

    Logits are float32, so log-probabilities carry an error of about 5e-7: KL one of that times sqrt(KL), its
    gradient one of the same size, and the root's gradient the same divided by sqrt(KL + 1e-12).
    """
    old, new, mask = policies(size)
    new.requires_grad_()
    kl = categorical_kl(masked_log_softmax(old, mask), masked_log_softmax(new, mask))
    exact_new = new.detach().double().requires_grad_()
    exact = exact_kl(old, exact_new, mask)
    assert (kl >= 0).all() and kl.isfinite().all()
    error = (kl.double() - exact).abs()
    assert (error <= 3e-6 * exact.sqrt() + 1e-12 + 1e-6 * exact).all()
    root, exact_root = (kl + 1e-12).sqrt(), (exact + 1e-12).sqrt()
    assert ((root.double() - exact_root).abs() <= 2e-6 + 1e-6 * exact_root).all()

    grad, exact_grad = (
        torch.autograd.grad(x.sum(), at, retain_graph=True)[0] for x, at in ((kl, new), (exact, exact_new))
    )
    assert (grad.double() - exact_grad).abs().max() <= 1e-6
    grad = torch.autograd.grad(root.sum(), new)[0]
    exact_grad = torch.autograd.grad(exact_root.sum(), exact_new)[0]
    tolerance = 5e-7 / exact_root.detach().clamp(min=1e-6)
    assert grad.isfinite().all()
    assert ((grad.double() - exact_grad).abs() <= tolerance[:, None]).all()
    if size >= 1e-2:  # where float64 has digits to spare, the textbook form is the same number
        p, q = (x.double().masked_fill(~mask, -1e300).log_softmax(-1) for x in (old, new.detach()))
        assert torch.allclose(exact, (p.exp() * (p - q).masked_fill(~mask, 0)).sum(-1), rtol=1e-9)


def test_root_of_kl_is_safe_at_the_first_gradient_step_where_the_textbook_form_is_not():
    """At pi = pi_old the textbook form gives NaN at once, and the run is lost at its first gradient step."""
    old, _, mask = policies(0.0, rows=2000)
    same = (old + 3.7).requires_grad_()  # the same policies, rounded otherwise
    old_logp, logp = masked_log_softmax(old, mask), masked_log_softmax(same, mask)
    textbook = (old_logp.exp() * (old_logp - logp)).sum(-1)
    assert (textbook < 0).any() and textbook.sqrt().isnan().any()
    at_zero = old.clone().requires_grad_()
    x = masked_log_softmax(at_zero, mask)
    (old_logp.exp() * (old_logp - x)).sum(-1).sqrt().sum().backward()
    assert at_zero.grad.isnan().any()

    for logits, bound in ((at_zero.detach().clone().requires_grad_(), 0.0), (same, 0.5)):
        root = (categorical_kl(old_logp, masked_log_softmax(logits, mask)) + 1e-12).sqrt()
        root.sum().backward()
        assert (root >= 1e-6).all() and (root < 2e-6).all()
        assert logits.grad.abs().max() <= bound


def test_kl_stays_finite_and_non_negative_for_sharp_policies():
    """Late in training policies are nearly deterministic; one infinite KL would end the run.

    From a ratio of exp(80) on, up to 1 of a KL of about 80 or more is missing.
    """
    generator = torch.Generator().manual_seed(3)
    for scale in (1.0, 5.0, 20.0, 200.0):
        old, new = scale * torch.randn(2, 5000, A, generator=generator).clamp(-2, 2)
        mask = random_mask(5000, A, generator=generator)
        new.requires_grad_()
        kl = categorical_kl(masked_log_softmax(old, mask), masked_log_softmax(new, mask))
        kl.add(1e-12).sqrt().sum().backward()
        assert kl.isfinite().all() and (kl >= 0).all() and new.grad.isfinite().all()
        if scale < 20:
            assert torch.allclose(kl.double(), exact_kl(old, new, mask), rtol=1e-4, atol=1e-6)


def test_the_terms_of_the_kl_are_never_negative_and_keep_their_digits_near_zero():
    """A negative KL has no root; and the size of the first steps hangs on the gradient near 0."""
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    for scale in (1e-12, 1e-9, 1e-7, 1e-4, 1.0):
        at = (scale * x).requires_grad_()
        term = dpo_smac.exp_minus_linear(at)
        term.sum().backward()
        assert (term >= 0).all()
        assert torch.allclose(at.grad.double(), at.detach().double().expm1(), rtol=1e-6, atol=0)
