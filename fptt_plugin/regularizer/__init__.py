"""FPTT's dynamic regularizer on any ``torch.optim`` optimizer: its updates, and a watch on the weights."""

from .dynamic import AVERAGE, DUAL, DynamicRegularizer, check_optimizer, check_regularizer_options

__all__ = ["AVERAGE", "DUAL", "DynamicRegularizer", "check_optimizer", "check_regularizer_options"]
