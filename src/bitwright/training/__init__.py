"""Floor 7: training on Lightning's Trainer. `train` is one `Trainer.fit` per stage; `evaluate` is what judges.

Lightning, torchmetrics and TensorBoard are imported when a stage begins, not before.
"""

from bitwright.training.evaluate import Evaluation, evaluate
from bitwright.training.train import Result, Stopped, train

__all__ = ["Evaluation", "Result", "Stopped", "evaluate", "train"]
