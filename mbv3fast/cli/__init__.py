"""The command line: `mbv3fast --help`."""

from __future__ import annotations

import click

from mbv3fast._version import __version__
from mbv3fast.cli import classify, demo, doctor, embed, plan


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `mbv3fast demo`, then `mbv3fast classify photo.jpg`. Every command has its own --help.",
)
@click.version_option(__version__, package_name="mbv3fast")
def main() -> None:
    """MobileNetV3, fast: classify and embed images, see what runs where and why."""


for command in (demo.demo, classify.classify, embed.embed, plan.plan, doctor.doctor):
    main.add_command(command)
