"""How a case ends other than by passing: exceptions that a case raises."""

from __future__ import annotations


class Forgot(Exception):
    """The store gave a wrong answer; the text says what was seen."""


class NotAsked(Exception):
    """The store says, or the server cannot show, what this case asks for; the text is the reason."""


class Stalled(Exception):
    """The machine stood still at the wrong moment, so what was seen proves nothing; ask again."""
