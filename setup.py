"""Packaging that pyproject.toml can't say: which packages there are."""

from setuptools import find_packages, setup

setup(packages=find_packages(include=["mbv3fast", "mbv3fast.*"]))
