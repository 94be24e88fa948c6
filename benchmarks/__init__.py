"""Timing and tuning from a checkout, which needs no installation."""
