"""Contenders side by side: what is timed, by whom, each in a process of its own."""
