"""`python -m mbv3fast`."""

from mbv3fast.cli import main

main(prog_name="mbv3fast")
