"""mbv3fast: MobileNetV3 as a drop-in PyTorch module, with a fused inference path and exact weights from anywhere."""

from mbv3fast import _checkout, weights  # noqa: F401 # the first finds what the others import
from mbv3fast._version import __version__
from mbv3fast.acceleration import AccelerationError, accelerate
from mbv3fast.backend import BackendError
from mbv3fast.deploy import ExportError, export
from mbv3fast.factory import large, load, small
from mbv3fast.fold import UnsupportedError
from mbv3fast.foreign import UnknownModuleError
from mbv3fast.preprocess import Preprocess
from mbv3fast.segmentation import lraspp_large
from mbv3fast.weights import WeightsError

__all__ = [
    "AccelerationError",
    "BackendError",
    "ExportError",
    "Preprocess",
    "UnknownModuleError",
    "UnsupportedError",
    "WeightsError",
    "__version__",
    "accelerate",
    "export",
    "large",
    "load",
    "lraspp_large",
    "small",
    "weights",
]
