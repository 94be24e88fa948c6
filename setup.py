"""Packaging that pyproject.toml can't say: which packages there are, and that the kernels lie beside ours."""

from setuptools import find_packages, setup

packages = {*find_packages(include=["mbv3fast", "mbv3fast.*"]), "mbv3fast.kernels"}
setup(packages=sorted(packages), package_dir={"mbv3fast.kernels": "kernels"})
