"""The checker against the zoo of wrong kernels: every one is detected, and nearly every one is called by its name."""

import numpy as np
import pytest
from mistakes import all_mistakes

from minires.gradcheck import check_kernel
from minires.gradcheck.codes import SENTENCES

SINGLES, DOUBLES = all_mistakes()


def report_of(mistake):
    with np.errstate(all="ignore"):
        return check_kernel(
            mistake.forward, mistake.backward, mistake.inputs, kind=mistake.kind, options=mistake.options
        )


def is_named(mistake, report):
    """Its codes and no other; a code that is accepted instead counts."""
    accepted = mistake.codes | mistake.also
    return report.codes == mistake.codes or (
        len(mistake.codes) == 1 and len(report.codes) == 1 and report.codes <= accepted
    )


@pytest.fixture(scope="module")
def reports():
    return {mistake.name: report_of(mistake) for mistake in SINGLES + DOUBLES}


def test_the_zoo_is_large():
    assert len(SINGLES) >= 90 and len(DOUBLES) >= 30
    assert len({mistake.name for mistake in SINGLES + DOUBLES}) == len(SINGLES) + len(DOUBLES)
    kinds = {mistake.kind for mistake in SINGLES}
    assert len(kinds) == 11  # every kind, and operations of one's own
    assert set().union(*(m.codes for m in SINGLES + DOUBLES)) == set(SENTENCES)  # each name is given at least once


@pytest.mark.slow
def test_every_mistake_is_detected(reports):
    missed = [name for name, report in reports.items() if report.ok]
    assert not missed


@pytest.mark.slow
@pytest.mark.parametrize("mistakes, share", [(SINGLES, 0.95), (DOUBLES, 0.70)], ids=["singles", "doubles"])
def test_mistakes_are_named(mistakes, share, reports, capsys):
    named = [mistake for mistake in mistakes if is_named(mistake, reports[mistake.name])]
    with capsys.disabled():
        kind = "single" if mistakes is SINGLES else "double"
        print(f"\n{kind} mistakes: {len(mistakes)} detected, {len(named)} named ({len(named) / len(mistakes):.0%})")
        for mistake in mistakes:
            if mistake not in named:
                print(f"  {mistake.name}: {set(mistake.codes)}, was called {reports[mistake.name].codes}")
    assert len(named) >= share * len(mistakes)


def test_what_is_reported_lies_where_the_mistake_is(reports):
    for mistake in SINGLES:
        for finding in reports[mistake.name].findings:
            assert finding.gradient in (*mistake.gradient, "forward", "backward"), mistake.name
            assert finding.sentence == SENTENCES[finding.code]
            assert finding.residual is None or finding.residual < 1e-5
