"""What a user is told when something is wrong: one sentence that says what, where and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend. The command line prints its one sentence, without a traceback, and exits with 1."""


class Interrupted(Exception):
    """A run that was asked to stop and has saved itself. The process exits with 128 + `signum` (130, 143)."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


class Lost(Exception):
    """Another process of the run has ended, and has said why: this one has nothing to add, and exits with 1."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The nearest of `names` as the end of a sentence, "; did you mean 'vgg16'?", or nothing."""

    def likeness(candidate: str) -> float:
        # a name that was cut short is near to one that begins like it
        whole, start = (
            difflib.SequenceMatcher(None, name, text).ratio() for text in (candidate, candidate[: len(name)])
        )
        return max(whole, 0.99 * start)

    near = max(names, key=likeness, default="")
    return f"; did you mean '{near}'?" if near and likeness(near) >= 0.6 else ""
