"""The CUDA kernels of csrc/ from Python: the library that holds them, a launcher for each, and their tiles.

Launchers take what their kernels read, contiguous [N, H, W, C] tensors; `mbv3fast.ops` is the door for all others.
"""
