from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tw_seg.errors import InputError
from tw_seg.lrp.seeds import SEEDS, clrp1_seed, contrastive_seed, create_seed, logit_seed, softmax_gradient_seed

STABILIZER = 1e-6
CONTRASTIVE = [name for name in SEEDS if name not in ("logit", "clrp2")]


def logits_of(samples: int = 3, classes: int = 4) -> Tensor:
    """Logits of both signs, none near 0."""
    values = torch.randn(samples, classes, dtype=torch.float64)
    return values + values.sign()


def stable(z: float) -> float:
    return z - STABILIZER if z < 0 else z + STABILIZER


def logit_entry(z: list[float], k: int, j: int) -> float:
    return float(j == k)


def contrastive_entry(z: list[float], k: int, j: int) -> float:
    return 1.0 if j == k else -1 / (len(z) - 1)


def clrp1_entry(z: list[float], k: int, j: int) -> float:
    return 1.0 if j == k else -z[k] / (len(z) - 1) / stable(z[j])


def softmax_gradient_entry(z: list[float], k: int, j: int) -> float:
    logits = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(logits.softmax(0)[k], logits)
    return float(gradient[j]) / stable(z[j])


CLOSED_FORMS: dict[str, Callable[[list[float], int, int], float]] = {
    "logit": logit_entry,
    "contrastive": contrastive_entry,
    "clrp1": clrp1_entry,
    "clrp2": logit_entry,
    "softmax_gradient": softmax_gradient_entry,
}


def by_loops(name: str, logits: Tensor, classes: list[int]) -> Tensor:
    """Row k*S + s, one entry after the other."""
    rows = [[CLOSED_FORMS[name](z, k, j) for j in range(len(z))] for k in classes for z in logits.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [2, 0], [3], [1, 1]])
def test_equals_the_closed_form(name: str, classes: list[int]) -> None:
    logits = logits_of()
    expected = by_loops(name, logits, classes)
    for given_as in (classes, tuple(classes), torch.tensor(classes), torch.tensor(classes, dtype=torch.uint8)):
        found = SEEDS[name](logits, given_as)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", SEEDS)
def test_zero_logits_take_the_positive_stabilizer(name: str) -> None:
    logits = torch.tensor([[0.0, -0.0, 1.5], [0.0, 0.0, 0.0], [-1.0, 0.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(SEEDS[name](logits, [0, 2]), by_loops(name, logits, [0, 2]), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", SEEDS)
def test_classes_are_outermost(name: str) -> None:
    logits = logits_of(3, 5)
    together = SEEDS[name](logits, [4, 1]).view(2, 3, 5)
    for k, chosen in enumerate([4, 1]):
        for s in range(3):
            assert torch.equal(together[k, s], SEEDS[name](logits[s : s + 1], [chosen])[0])


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize(("samples", "classes"), [(0, [1, 2]), (2, []), (0, [])])
def test_nothing_to_decode(name: str, samples: int, classes: list[int]) -> None:
    for given_as in (classes, torch.tensor(classes, dtype=torch.int64)):
        assert SEEDS[name](torch.randn(samples, 4), given_as).shape == (0, 4)


def test_logit_relevance_is_the_logit() -> None:
    logits = logits_of()
    relevance = logit_seed(logits, [2, 0]) * logits.repeat(2, 1)
    assert torch.equal(relevance.sum(1), torch.cat([logits[:, 2], logits[:, 0]]))


def test_contrastive_coefficients_sum_to_zero() -> None:
    # A constant added to every logit is no evidence for a class.
    assert contrastive_seed(logits_of(2, 7), range(7)).sum(1).abs().max() < 1e-15


def test_clrp1_relevance() -> None:
    logits = logits_of(3, 5)
    relevance = clrp1_seed(logits, range(5), stabilizer=1e-14) * logits.repeat(5, 1)
    own = relevance.view(5, 3, 5).diagonal(dim1=0, dim2=2)
    assert torch.equal(own, logits)
    torch.testing.assert_close(relevance.sum(1), torch.zeros(15, dtype=torch.float64), rtol=0, atol=1e-12)


def test_softmax_gradient_relevance() -> None:
    logits = logits_of(3, 5)
    relevance = softmax_gradient_seed(logits, range(5), stabilizer=1e-14) * logits.repeat(5, 1)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: z.softmax(0)))(logits)
    torch.testing.assert_close(relevance.view(5, 3, 5).transpose(0, 1), jacobian, rtol=1e-11, atol=1e-15)
    torch.testing.assert_close(relevance.sum(1), torch.zeros(15, dtype=torch.float64), rtol=0, atol=1e-14)


def test_softmax_gradient_keeps_its_digits_where_the_probability_is_nearly_one() -> None:
    logits = torch.tensor([[17.0, 1.0, -1.0]])
    found, expected = (softmax_gradient_seed(z, [0]) for z in (logits, logits.double()))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["clrp1", "softmax_gradient"])
def test_one_row_is_the_difference_of_the_two_maps_of_the_papers(name: str) -> None:
    """The papers propagate the target's and the other classes' relevance apart, with the z+ rule at the head."""
    head = nn.Linear(6, 4, bias=False, dtype=torch.float64)
    a = torch.rand(6, dtype=torch.float64)
    z, positive = head.weight @ a, head.weight.clamp(min=0)
    p = z.softmax(0)
    for k in range(4):
        others = torch.tensor([j != k for j in range(4)])
        if name == "clrp1":
            target, dual = z[k] * ~others, z[k] / 3 * others
        else:
            target, dual = p[k] * (1 - p[k]) * ~others, p[k] * p * others
        maps = [a * (positive.T @ (relevance / (positive @ a))) for relevance in (target, dual)]
        c = SEEDS[name](z[None], [k])[0]
        found = a * (positive.T @ (c * z / (positive @ a)))
        torch.testing.assert_close(found, maps[0] - maps[1], rtol=1e-3, atol=1e-5)


# -------------------------------------------------------------------------------------------- gradients, numbers


@pytest.mark.parametrize("name", ["clrp1", "softmax_gradient"])
@pytest.mark.parametrize("classes", [[0, 1, 2], [2, 0]])
def test_differentiable(name: str, classes: list[int]) -> None:
    logits = logits_of(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: SEEDS[name](z, classes), logits)
    assert torch.autograd.gradgradcheck(lambda z: SEEDS[name](z, classes), logits)


@pytest.mark.parametrize("name", ["logit", "contrastive"])
def test_constant(name: str) -> None:
    logits = logits_of().requires_grad_()
    found = SEEDS[name](logits, [1, 0])
    assert not found.requires_grad
    assert torch.equal(found, SEEDS[name](-3 * logits, [1, 0]))


EXTREMES = {torch.float32: 3.4e38, torch.bfloat16: 3.38e38, torch.float16: 65504.0}


@pytest.mark.parametrize("dtype", EXTREMES)
@given(data=st.data())
def test_finite_for_extreme_logits(dtype: torch.dtype, data: st.DataObject) -> None:
    bound = EXTREMES[dtype]
    value = st.one_of(st.floats(-bound, bound), st.floats(-1e-4, 1e-4), st.sampled_from([0.0, -0.0, bound, -bound]))
    rows = data.draw(st.lists(st.tuples(value, value, value), min_size=1, max_size=3))
    logits = torch.tensor(rows, dtype=torch.float64).to(dtype)
    for seed in SEEDS.values():
        found = seed(logits, [0, 2])
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert (found * logits.repeat(2, 1)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(values=st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3))
def test_finite_gradients(dtype: torch.dtype, values: list[float]) -> None:
    logits = torch.tensor([values], dtype=dtype, requires_grad=True)
    for name in ("clrp1", "softmax_gradient"):
        (gradient,) = torch.autograd.grad(SEEDS[name](logits, [0, 1, 2]).sum(), logits)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", SEEDS)
def test_half_precision_is_the_rounded_single(name: str) -> None:
    logits = logits_of().bfloat16()
    assert torch.equal(SEEDS[name](logits, [0, 3]), SEEDS[name](logits.float(), [0, 3]).bfloat16())


# ----------------------------------------------------------------------------------------------- compile, export


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("classes", [[2, 0], torch.tensor([2, 0])])
def test_compiles_whole(name: str, classes) -> None:
    seed = torch.compile(SEEDS[name], fullgraph=True, backend="eager", dynamic=True)
    for samples in (3, 2):
        logits = logits_of(samples)
        torch.testing.assert_close(seed(logits, classes), SEEDS[name](logits, classes), rtol=1e-14, atol=0)


class Seeds(nn.Module):
    """All seeds at once, as an exported program needs a module."""

    def forward(self, logits: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
        return tuple(seed(logits, classes) for seed in SEEDS.values())


def test_exports_with_a_dynamic_batch_and_choice() -> None:
    shapes = {"logits": {0: torch.export.Dim("batch", max=64)}, "classes": {0: torch.export.Dim("choice", max=64)}}
    program = torch.export.export(Seeds(), (logits_of(3), torch.tensor([2, 0])), dynamic_shapes=shapes)
    for samples, classes in ((1, [3]), (5, [1, 2, 0]), (4, [0, 1, 2, 3, 3])):
        arguments = logits_of(samples), torch.tensor(classes)
        for found, expected in zip(program.module()(*arguments), Seeds()(*arguments), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", SEEDS)
def test_nothing_waits_for_the_device(name: str) -> None:
    # A meta tensor has no values: whatever would read one raises.
    logits, classes = torch.empty(3, 4, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    assert SEEDS[name](logits, classes).shape == (6, 4)


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_one_class_has_no_contrast(name: str) -> None:
    with pytest.raises(InputError, match="at least 2 classes, the classifier has 1: use the seed 'logit'"):
        SEEDS[name](torch.ones(2, 1), [0])


@pytest.mark.parametrize("seed", [clrp1_seed, softmax_gradient_seed])
@pytest.mark.parametrize("stabilizer", [0.0, -1.0, float("nan")])
def test_stabilizer_must_be_positive(seed: Callable[..., Tensor], stabilizer: float) -> None:
    with pytest.raises(InputError, match=f"stabilizer must be a number > 0.*{stabilizer}"):
        seed(torch.ones(2, 3), [0], stabilizer=stabilizer)


def test_by_name() -> None:
    assert {name: create_seed(name) for name in SEEDS} == SEEDS
    choices = "logit, contrastive, clrp1, clrp2, softmax_gradient"
    with pytest.raises(InputError, match=f"unknown seed 'clrp3'; there are {choices}"):
        create_seed("clrp3")
