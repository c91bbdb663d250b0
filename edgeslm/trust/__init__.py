"""What a device trusts: signed releases, signed assignments, and the time by which both are judged.

Decisions are made in memory (:mod:`edgeslm.trust.decisions`, :mod:`edgeslm.trust.assignment`,
:mod:`edgeslm.trust.clock`, :mod:`edgeslm.trust.versions`); storage and transport are at the rim. The agent runs a
check in a short-lived child process (:mod:`edgeslm.trust.child`), so that the libraries it takes do not stay in
memory beside a model.
"""
