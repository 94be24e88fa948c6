"""mbv3fast: MobileNetV3 as a drop-in PyTorch module, with a fused inference path and exact weights from anywhere."""

from mbv3fast import weights
from mbv3fast._version import __version__
from mbv3fast.backend import BackendError
from mbv3fast.factory import large, load, small
from mbv3fast.preprocess import Preprocess
from mbv3fast.weights import WeightsError

__all__ = ["BackendError", "Preprocess", "WeightsError", "__version__", "large", "load", "small", "weights"]
