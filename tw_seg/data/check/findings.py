"""Findings: what is wrong with a data set, or worth knowing, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
ImageName = tuple[str, str]
"""The split of an image and its name."""


class Kind(NamedTuple):
    """A kind of finding: how bad it is, and what it is called in reports."""

    severity: Severity
    title: str


KINDS = {
    "list": Kind("error", "lists and tables"),
    "image": Kind("error", "images that cannot be read"),
    "mask": Kind("error", "masks that cannot be read"),
    "size": Kind("error", "masks of another size than their image"),
    "id": Kind("error", "masks with values that are no class ids"),
    "refused": Kind("error", "masks that contradict the labels throughout"),
    "denied": Kind("error", "masks with pixels of a class that the labels deny"),
    "group": Kind("error", "groups that are in several splits"),
    "duplicates": Kind("warning", "near-duplicates in several splits"),
    "missing": Kind("warning", "masks without a pixel of a class that the labels name"),
    "turned": Kind("warning", "images that are turned by a tag, with a mask"),
    "files": Kind("warning", "files"),
    "balance": Kind("warning", "classes and splits"),
    "channels": Kind("warning", "channels"),
    "ignored": Kind("note", "masks that ignore all that the labels name"),
    "repeated": Kind("note", "near-duplicates within a split"),
}
"""Every kind of finding, the worst first. `tw-seg fit` would refuse what is an error, but knows of no groups."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: A name in `KINDS`.
        text: What it is, where, and what to do.
        images: The images that it concerns.
    """

    kind: str
    text: str
    images: tuple[ImageName, ...] = ()

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return KINDS[self.kind].severity


def sort_findings(findings: list[Finding]) -> list[Finding]:
    """The same findings by kind, the worst first; of two with the same text only one."""
    order = list(KINDS)
    once = {finding.text: finding for finding in reversed(findings)}
    return sorted(once.values(), key=lambda finding: (order.index(finding.kind), finding.text))
