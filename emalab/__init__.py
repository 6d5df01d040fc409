"""EM attention: the functional core, the network modules, and everything needed to train EMANet."""

from emalab.em import EMOutput, em_attention
from emalab.modules import EMAU, NonLocal2d

__all__ = ["EMAU", "EMOutput", "NonLocal2d", "em_attention"]
