"""Which record gives the next big chunk: policies for ``LightDL(policy=...)``."""

from daskdmed.persistence.policy import (
    EachOnce,
    LabelBalanced,
    LeastVisitedFirst,
    OnePass,
    Policy,
    Sequential,
    Situation,
    Weighted,
)

__all__ = [
    "EachOnce",
    "LabelBalanced",
    "LeastVisitedFirst",
    "OnePass",
    "Policy",
    "Sequential",
    "Situation",
    "Weighted",
]
