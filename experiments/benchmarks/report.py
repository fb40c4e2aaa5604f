"""A result as Markdown: the targets, one table for each case, exponents, profiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.benchmarks.case import Case
from experiments.benchmarks.summary import AXES, Record, Spread, curves, ratio, spread, turn_values
from experiments.benchmarks.targets import measured

GIB = 2**30


def markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    records = results["cases"]
    blocks = [
        "# Benchmarks",
        _machine(results),
        _targets(records),
        *(_case(record) for record in records),
        *_exponents(records),
        *(_profile(one) for one in results["profiles"]),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def describe(record: Record) -> str:
    """A case in one line."""
    return Case(**record["case"]).describe()


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    device = f", {machine['device']} (CUDA {machine['cuda']})" if machine["device"] else ""
    means = sorted({c["measure"] for r in results["cases"] for c in r["contenders"].values() if "measure" in c})
    return (
        f"Suite `{results['suite']}` on {machine['cpu']}, {machine['cores']} cores, {machine['memory']}{device}; "
        f"torch {machine['torch']}, Python {machine['python']}; {machine['date']}.\n\n"
        "Each contender has its own process and all cores; they compute in turn. Times are medians (smallest to "
        "largest) over turns, ratios medians over the ratios within turns. Memory is the peak above the model, its "
        f"gradients and AdamW's state: {'; '.join(means) or 'not measured'}."
    )


def _targets(records: Sequence[Record]) -> str:
    found = measured(records)
    if not found:
        return ""
    rows = ["## Targets", "", "| what | target | measured | met |", "|---|---|---|---|"]
    for target, value, device in found:
        bound = f"{'>=' if target.at_least else '<='} {target.bounds[device]:.3g}"
        verdict = "yes" if target.met(value.median, device) else "no"
        rows.append(f"| {target.what} | {bound} | {_ratio(value)} | {verdict} |")
    return "\n".join(rows)


def _case(record: Record) -> str:
    training = record["case"]["part"] == "training"
    title = record["case"]["name"]
    rows = [f"## {title[0].upper()}{title[1:]}", "", describe(record), ""]
    if training:
        rows += [f"1 + K * labelled share = {record['roofline']:.2f}", ""]
    last = "of the roofline | " if training else ""
    rows.append(
        f"| contender | seconds | relative to ours | relative to the classifier | {last}memory, GiB | relative to ours "
        "| model, GiB | heatmaps against ours |"
    )
    rows.append("|---" * (9 if training else 8) + "|")
    rows += [_row(record, name, training) for name in record["contenders"]]
    return "\n".join(rows)


def _row(record: Record, name: str, training: bool) -> str:
    contender = record["contenders"][name]
    if contender["failure"]:
        return f"| {name} | {contender['failure'].replace('|', '/')} |" + " |" * (7 if training else 6)
    roofline = ratio(record, name, "classifier", factor=record["roofline"])
    cells = [
        _value(spread(list(turn_values(record, name, "seconds").values()))),
        _ratio(ratio(record, name, "ours")),
        _ratio(ratio(record, name, "classifier")),
        *([_ratio(roofline)] if training else []),
        _value(spread(list(turn_values(record, name, "peak_bytes").values())), GIB),
        _ratio(ratio(record, name, "ours", key="peak_bytes")),
        f"{contender['model_bytes'] / GIB:.2f}",
        _agreement(contender),
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def _agreement(contender: dict[str, Any]) -> str:
    found = contender.get("heatmaps")
    if found is None:
        return ""
    return f"deviation {found['deviation']:.1e}, cosine {found['cosine']:.4f}"


def _value(found: Spread | None, unit: float = 1.0) -> str:
    if found is None:
        return ""
    return f"{_digits(found.median / unit)} ({_digits(found.low / unit)} to {_digits(found.high / unit)})"


def _ratio(found: Spread | None) -> str:
    return "" if found is None else f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _exponents(records: Sequence[Record]) -> Iterator[str]:
    axes = [axis for axis in AXES if any(record.get("axis") == axis for record in records)]
    if not axes:
        return
    rows = ["## Scaling", "", "Exponents p of x^p, fitted by least squares to the logarithms.", ""]
    rows += ["| along | contender | from to | time | memory |", "|---|---|---|---|---|"]
    for axis in axes:
        times, memories = curves(records, axis, "seconds"), curves(records, axis, "peak_bytes")
        for time, memory in zip(times, memories, strict=True):
            if time.x:
                span = f"{time.x[0]:g} to {time.x[-1]:g}"
                rows.append(
                    f"| {AXES[axis]} | {time.name} | {span} | {_power(time.exponent)} | {_power(memory.exponent)} |"
                )
    yield "\n".join(rows)


def _power(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _profile(one: dict[str, Any]) -> str:
    head = f"## Profile: {one['contender']}\n\n{describe(one)}\n\n"
    if one["failure"]:
        return head + one["failure"]
    rows = ["| operation | calls | self time, ms | share |", "|---|---|---|---|"]
    rows += [f"| `{r['name']}` | {r['calls']} | {r['self_ms']:.1f} | {r['share']:.1%} |" for r in one["rows"]]
    return head + "\n".join(rows)
