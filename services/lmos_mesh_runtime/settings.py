"""What an operator can set about the runtime."""

from pydantic import Field

from lmos_mesh.settings import Settings


class RuntimeSettings(Settings):
    """Settings of the runtime.

    Attributes:
        runtime_turn_timeout_s: How long a turn may take if the caller sets no deadline.
        runtime_idle_timeout_s: How long an agent may be silent in mid-answer.
        runtime_concurrency: How many turns one replica carries at a time.
        runtime_shadows: How many turns one replica mirrors at a time, where a rollout wants that.
        runtime_parts: How many requests of one message are answered; 1 takes none apart.
        runtime_handovers: How often one turn, or one of its parts, may be handed over.
        runtime_reports: Whether it is reported how each turn went; rollouts are judged by that.
    """

    runtime_turn_timeout_s: float = Field(default=300.0, gt=0)
    runtime_idle_timeout_s: float = Field(default=30.0, gt=0)
    runtime_concurrency: int = Field(default=1024, ge=1)
    runtime_shadows: int = Field(default=16, ge=0)
    runtime_parts: int = Field(default=4, ge=1)
    runtime_handovers: int = Field(default=4, ge=0)
    runtime_reports: bool = True
