"""CUDA C++: device code, a library of it with a C API, and what builds that library."""
