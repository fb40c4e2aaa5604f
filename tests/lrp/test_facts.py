"""What is known of an operation or a rule stands in its declaration or class, read from the source with ``ast``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LRP = Path(__file__).resolve().parents[2] / "tw_seg/lrp"


def facts_elsewhere(text: str) -> Iterator[str]:
    """Comparisons of a kind with names written out, and of a rule with a rule of the package."""
    rules = set(concrete_rules())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            inside = [part for side in sides for part in ast.walk(side)]
            words = any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in inside)
            if any(isinstance(side, ast.Attribute) and side.attr == "kind" for side in sides) and words:
                yield f"line {node.lineno}: compares a kind with {ast.unparse(node)!r}: declare it in the Op"
            if any(isinstance(part, ast.Call) and ast.unparse(part.func).split(".")[-1] in rules for part in inside):
                yield f"line {node.lineno}: compares a rule: give the rule a method"
        elif isinstance(node, ast.Match) and ast.unparse(node.subject).endswith(".kind"):
            yield f"line {node.lineno}: matches a kind: declare it in the Op"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            named = {ast.unparse(part).split(".")[-1] for part in ast.walk(node.args[1])}
            if named & rules:
                yield f"line {node.lineno}: asks for {', '.join(named & rules)}: give the rule a method"


def concrete_rules() -> list[str]:
    """The rules that `tw_seg/lrp/rules.py` defines."""
    tree = ast.parse((LRP / "rules.py").read_text())
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


@pytest.mark.parametrize("path", sorted(str(path.relative_to(LRP)) for path in LRP.rglob("*.py")))
def test_facts_stand_in_one_place(path: str) -> None:
    found = list(facts_elsewhere((LRP / path).read_text()))
    if path.startswith("ops/"):  # a family's file may tell its own kinds apart
        found = [text for text in found if "kind" not in text]
    assert found == [] or path == "rules.py"


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ('call.kind == "conv"', True),
        ('self.call.op.kind in ("conv", "linear")', True),
        ('"conv" != call.kind', True),
        ('call.kind in {"conv": 1}', True),
        ("match call.kind:\n    case _: pass", True),
        ("call.kind in self.able", False),
        ('call.fx_op == "call_module"', False),
        ("rule == Epsilon(0.0)", True),
        ("str(rule) in (str(Deconvnet()), str(Guided()))", True),
        ("isinstance(rule, (Deconvnet, rules.Guided))", True),
        ("isinstance(rule, LinearRule)", False),
        ("rule.is_plain", False),
    ],
)
def test_the_test_sees_facts_elsewhere(text: str, caught: bool) -> None:
    assert bool(list(facts_elsewhere(text))) == caught
