"""The foreach update against its readable twin in the paper's letters."""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fptt_plugin.functional import add_regularizer_gradient_, update_averages_

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def largest(tensors, others):
    return max(
        (one - other).abs().max().item() if one.numel() else 0.0 for one, other in zip(tensors, others, strict=True)
    )


def descend(shapes, dtype, updates, alpha, beta, rho):
    """The same SGD updates by both implementations; yields both sides after each."""
    weights = [torch.randn(shape, dtype=dtype) for shape in shapes]
    averages, duals = [w.clone() for w in weights], [torch.zeros_like(w) for w in weights]
    twins = [w.clone() for w in weights]
    bars, lams = [w.clone() for w in weights], [torch.zeros_like(w) for w in weights]
    for _ in range(updates):
        losses = [torch.randn_like(w) for w in weights]
        grads = [g.clone() for g in losses]
        add_regularizer_gradient_(grads, weights, averages, duals, alpha=alpha, dual_weight=1 - rho)
        torch._foreach_add_(weights, grads, alpha=-0.1)
        update_averages_(weights, averages, duals, beta=beta)
        for i, g in enumerate(losses):
            twins[i] = twins[i] - 0.1 * reference.regularized_gradient(g, twins[i], bars[i], lams[i], alpha, rho)
            lams[i] = reference.dual_update(lams[i], twins[i], bars[i], alpha)
            bars[i] = reference.average_update(bars[i], twins[i], lams[i], alpha, beta)
        yield (weights, averages, [alpha * d for d in duals]), (twins, bars, lams)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("alpha", "beta", "rho"), [(0.1, 0.5, 0.0), (1.0, 0.5, 0.0), (0.3, 0.2, 0.4), (0.1, 1.0, 1.0)])
def test_equals_the_twin_over_many_updates(dtype, alpha, beta, rho):
    for mine, theirs in descend([(3, 4), (4,), ()], dtype, 30, alpha, beta, rho):
        assert [largest(*pair) for pair in zip(mine, theirs, strict=True)] == pytest.approx(
            [0] * 3, abs=TOLERANCE[dtype]
        )
    weights, averages, duals = mine
    assert largest(weights, averages) > 1e-3
    assert max(dual.abs().max() for dual in duals) > 1e-3


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=4),
    dtype=st.sampled_from(list(TOLERANCE)),
    alpha=st.floats(1e-3, 2.0),
    beta=st.floats(0.01, 1.0),
    rho=st.floats(0.0, 1.0),
)
def test_equals_the_twin_for_any_shapes(shapes, dtype, alpha, beta, rho):
    *_, (mine, theirs) = descend(shapes, dtype, 3, alpha, beta, rho)
    for pair in zip(mine, theirs, strict=True):
        assert largest(*pair) <= 20 * TOLERANCE[dtype]


@pytest.mark.parametrize(("knob", "values"), [("alpha", (0.1, 0.2)), ("beta", (0.5, 0.4)), ("rho", (0.0, 0.5))])
def test_each_knob_changes_the_weights(knob, values):
    def final(value):
        torch.manual_seed(1)
        options = {"alpha": 0.1, "beta": 0.5, "rho": 0.0, knob: value}
        *_, ((weights, *_), _) = descend([(5,)], torch.float64, 3, **options)
        return weights[0]

    assert not torch.allclose(final(values[0]), final(values[1]))


def test_without_regularizer_the_gradient_stays_bit_for_bit():
    grads, weights, averages, duals = ([torch.randn(4)] for _ in range(4))
    before = grads[0].clone()
    add_regularizer_gradient_(grads, weights, averages, duals, alpha=0.0)
    assert torch.equal(grads[0], before)


def test_gradient_is_that_of_the_written_regularizer():
    """alpha / 2 |W - W_bar|^2 - (1 - rho) <lam, W> by autograd, and Algorithm 2's form with half the dual."""
    alpha, rho = 0.3, 0.25
    W, W_bar, lam = torch.randn(3, 6, dtype=torch.float64)
    leaf = W.clone().requires_grad_()
    dual_form = alpha / 2 * (leaf - W_bar).square().sum() - (1 - rho) * (lam * leaf).sum()
    printed_form = alpha / 2 * (leaf - W_bar - lam / (2 * alpha)).square().sum()
    zero = torch.zeros_like(W)
    for form, weight, twin in (
        (dual_form, 1 - rho, reference.regularized_gradient(zero, W, W_bar, lam, alpha, rho)),
        (printed_form, 0.5, reference.algorithm2_gradient(zero, W, W_bar, lam, alpha)),
    ):
        (expected,) = torch.autograd.grad(form, leaf)
        grads = [torch.zeros_like(W)]
        add_regularizer_gradient_(grads, [W], [W_bar], [lam / alpha], alpha=alpha, dual_weight=weight)
        assert torch.allclose(grads[0], expected)
        assert torch.allclose(twin, expected)
        assert expected.abs().max() > 0


def test_at_beta_one_half_the_average_is_the_weight_minus_half_the_old_dual():
    W, W_bar, dual = torch.randn(3, 6, dtype=torch.float64)
    expected = W - dual / 2
    update_averages_([W], [W_bar], [dual], beta=0.5)
    assert torch.allclose(W_bar, expected, atol=1e-14)


def test_a_given_dual_replaces_the_old_one_without_aliasing_it():
    W, W_bar, dual, new = torch.randn(4, 6, dtype=torch.float64)
    expected = 0.7 * W_bar + 0.3 * W - 0.3 * new
    update_averages_([W], [W_bar], [dual], beta=0.3, new_duals=[new])
    assert torch.equal(dual, new)
    assert dual.data_ptr() != new.data_ptr()
    assert torch.allclose(W_bar, expected)


def test_weights_that_require_gradients_leave_no_graph():
    weights = [torch.nn.Parameter(torch.ones(3))]
    averages, duals, grads = ([torch.zeros(3)] for _ in range(3))
    add_regularizer_gradient_(grads, weights, averages, duals, alpha=0.1)
    update_averages_(weights, averages, duals, beta=0.5)
    assert not any(tensor.requires_grad for tensor in (*grads, *averages, *duals))


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clip_equals_torch(max_norm):
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (4,))]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    clipped = reference.clip([parameter.grad.clone() for parameter in parameters], max_norm)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    assert largest(clipped, [parameter.grad for parameter in parameters]) < 1e-6
