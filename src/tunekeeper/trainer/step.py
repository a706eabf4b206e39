"""What a training step reports: numbers only, so that jobs and the diagnosis read it without torch."""

from dataclasses import dataclass, field

from tunekeeper.types import Json


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One optimizer step and what was measured at it.

    A supervised loss is the mean over predicted tokens, in nats; a preference loss the mean over pairs; that of
    reinforcement is the surrogate whose gradient is the policy's, near 0 whatever is learned.
    """

    step: int
    total_steps: int
    epoch: float
    train_loss: float
    train_mean_token_accuracy: float
    learning_rate: float
    grad_norm: float
    tokens: int
    """Tokens trained on since the run began, prompts included."""
    seconds: float
    """Wall time of this step."""
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    epoch_end: bool = False
    stop_reason: str | None = None
    """Why the run ends before its last step, in words; None while it goes on."""
    details: Json = field(default_factory=dict)
    """What only this method measures, under the names of the metrics event."""
    samples: Json | None = None
    """The best and the worst answers of an evaluation, for people to read."""
