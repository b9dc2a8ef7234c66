"""What a check says: to people as text, to programs as plain dicts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from minires.gradcheck.codes import SENTENCES


@dataclass(frozen=True)
class Gradient:
    """One gradient beside its numeric value, at the entry where they differ most."""

    name: str  # such as "dx"
    ok: bool
    index: tuple[int, ...] | None = None
    yours: float | None = None
    numeric: float | None = None
    error: float | None = None  # the difference there, relative to the gradient's largest entry


@dataclass(frozen=True)
class Finding:
    """A mistake: its name, what it means, and what shows it."""

    gradient: str  # "dx", or "forward", or "backward" where no single gradient is to blame
    code: str
    sentence: str
    evidence: str
    residual: float | None = None  # how far the named mistake is from reproducing the gradient; None: it was not tried


@dataclass(frozen=True)
class Report:
    """The result of a check. ``print(report)`` is for people, ``report.to_dict()`` for programs."""

    gradients: list[Gradient] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings and all(gradient.ok for gradient in self.gradients)

    @property
    def codes(self) -> set[str]:
        """The names of all mistakes that were found."""
        return {finding.code for finding in self.findings}

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, text and numbers."""
        return {
            "ok": self.ok,
            "gradients": [asdict(gradient) for gradient in self.gradients],
            "findings": [asdict(finding) for finding in self.findings],
        }

    def __str__(self) -> str:
        lines = []
        for gradient in self.gradients:
            line = f"{gradient.name:<8} {'pass' if gradient.ok else 'FAIL'}"
            if gradient.error is not None and not gradient.ok:
                place = f"[{', '.join(map(str, gradient.index))}]" if gradient.index else ""
                line += (
                    f"   worst at {gradient.name}{place}: yours {gradient.yours:.6g}, numeric {gradient.numeric:.6g}"
                )
            lines.append(line)
        for finding in self.findings:
            lines.append(f"{finding.gradient}: {finding.code}: {finding.sentence}")
            words = [finding.evidence] if finding.evidence else []
            if finding.residual is not None:
                words.append(f"this mistake gives your gradient to {finding.residual:.0e}")
            if words:
                lines.append("    " + "; ".join(words))
        return "\n".join(lines)


def broken(gradient: str, evidence: str) -> Finding:
    """A Finding of something that keeps the numbers from being checked at all."""
    return Finding(gradient, "unexplained", "It breaks the rules of a kernel, and cannot be checked yet.", evidence)


def finding(gradient: str, code: str, evidence: str = "", residual: float | None = None) -> Finding:
    """A Finding with its code's sentence."""
    return Finding(gradient, code, SENTENCES[code], evidence, residual)
