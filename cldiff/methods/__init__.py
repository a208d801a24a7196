"""Continual-learning methods: one short file for each family, one name for each method."""

from .base import Batch, Method
from .distill import DistilledReplay
from .finetune import Finetune
from .regularize import L2
from .replay import GenerativeReplay, Replay
from .self_tuned import SelfTunedReplay
from .timesteps import TimestepReplay

METHODS: dict[str, type[Method]] = {
    "finetune": Finetune,
    "l2": L2,
    "replay": Replay,
    "generative": GenerativeReplay,
    "distilled": DistilledReplay,
    "timesteps": TimestepReplay,
    "self_tuned": SelfTunedReplay,
}
