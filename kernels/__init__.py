"""The Triton kernels of mbv3fast: one module an op, each a device function and its launcher.

Everything is NHWC in memory. Launchers check nothing and allocate nothing: `mbv3fast.ops` is the door that does.
"""
