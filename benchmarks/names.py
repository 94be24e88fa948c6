"""Words that who measures and who reports must spell alike."""

OURS = "mbv3fast"
GPU_ONLY = "needs a CUDA device"
