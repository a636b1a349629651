"""How far the index is, as the router's status tells it."""

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """How far the index is.

    Attributes:
        version: Rises with everything that is swapped in.
        trainings: How often something was learned.
        recalled: How often it was not, because it was kept.
        training_s: How long that took the last time.
        trained_at: When, as Unix time.
        training: Whether something is being learned now.
        failed: Why the last training failed; empty if it did not.
        embedded: How many texts of agents this process had to embed.
        kept: How many it had not to, because their vectors were kept.
        frozen: How often an approximate index was made.
        freezing_s: How long that took the last time.
        recall: The share of the nearest that it names.
    """

    version: int = 0
    trainings: int = 0
    recalled: int = 0
    training_s: float = 0.0
    trained_at: float = 0.0
    training: bool = False
    failed: str = ""
    embedded: int = 0
    kept: int = 0
    frozen: int = 0
    freezing_s: float = 0.0
    recall: float = 1.0
