"""Continual-learning methods: one short file for each family, one name for each method."""

from .agem import AGEM
from .averaging import ModelAveraging
from .base import Batch, Method
from .distill import DistilledReplay
from .finetune import Finetune
from .fisher import EWC, MAS, Rank1EWC
from .generative_distillation import GenerativeDistillation
from .joint import Joint
from .lora import LoRA
from .lwf import LwF
from .rank1_distillation import Rank1Distillation
from .regularize import L2
from .replay import GenerativeReplay, Replay
from .self_tuned import SelfTunedReplay
from .separate import Separate
from .si import SI
from .timesteps import TimestepReplay

METHODS: dict[str, type[Method]] = {
    "finetune": Finetune,
    "l2": L2,
    "replay": Replay,
    "generative": GenerativeReplay,
    "distilled": DistilledReplay,
    "timesteps": TimestepReplay,
    "self_tuned": SelfTunedReplay,
    "generative_distillation": GenerativeDistillation,
    "rank1_distillation": Rank1Distillation,
    "lwf": LwF,
    "agem": AGEM,
    "ewc": EWC,
    "rank1": Rank1EWC,
    "mas": MAS,
    "si": SI,
    "averaging": ModelAveraging,
    "lora": LoRA,
    "separate": Separate,
    "joint": Joint,
}
