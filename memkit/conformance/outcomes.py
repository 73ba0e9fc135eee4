"""The exceptions by which a case ends other than by passing."""

from enum import StrEnum


class Symptom(StrEnum):
    """What a failed case observed; failures with the same symptom can have the same cause."""

    NO_EXPIRY = "no_expiry"
    EARLY_EXPIRY = "early_expiry"
    LOST = "lost"
    EMPTY = "empty"
    NOT_STORED = "not_stored"
    ERROR_HIDDEN = "error_hidden"
    REFUSAL_HIDDEN = "refusal_hidden"
    FOREIGN = "foreign"
    OTHER = "other"


class CaseFailed(Exception):
    """The store gave a wrong answer.

    ``symptom`` is a Symptom, or ``raised`` and the type of an error. ``kept`` is the number of messages that were read
    if they are the newest of those that were appended, and the negative number if they are the oldest.
    """

    def __init__(self, message: str, *, symptom: str = Symptom.OTHER, kept: int | None = None) -> None:
        super().__init__(message)
        self.symptom = symptom
        self.kept = kept


class CaseSkipped(Exception):
    """The store declares, or the server cannot provide, what this case needs; the text is the reason."""


class Inconclusive(Exception):
    """A scheduling delay made the observation worthless; the case is run again."""
