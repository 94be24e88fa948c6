"""`mbv3fast demo`: the main job on real images, with nothing to download."""

from __future__ import annotations

import statistics
from pathlib import Path

import click
import torch
from PIL import Image, ImageDraw, ImageFont

from mbv3fast.assets import DIGITS_SAMPLE
from mbv3fast.cli.options import check_out, load_model
from mbv3fast.timing import latency_seconds, waiter

TURNS, RUNS = 5, 10  # the two that are timed take turns
TILE = 8  # pixels of a digit in the sheet, whose column k shows the digit k


@click.command(short_help="Read handwritten digits, with nothing to download.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo.png"), show_default=True)
@click.option("--device", default="auto", show_default=True)
def demo(out: Path, device: str) -> None:
    """Classify handwritten digits with the checkpoint that the package carries; save a picture of the answers.

    The network is a full-width MobileNetV3-Small, trained by examples/train_digits.py; the images are real
    handwriting that it has never seen.
    """
    check_out(out, [".png"])
    model = load_model("digits", "small", None, device, "float32", "auto")
    place = next(model.parameters()).device
    tiles, truth = read_sheet()
    preprocess = model.transforms()
    x = torch.stack([preprocess(tile) for tile in tiles]).to(place)
    with torch.inference_mode():
        logits, reference = model(x), model.reference_forward(x)
        fast: list[float] = []
        plain: list[float] = []
        for _ in range(TURNS):
            fast += latency_seconds(lambda: model(x[:1]), waiter(place), RUNS)
            plain += latency_seconds(lambda: model.reference_forward(x[:1]), waiter(place), RUNS)
        decision = model.explain(x)
    probabilities, predicted = logits.softmax(1).max(1)
    answers = [int(p) for p in predicted]
    draw(tiles, answers, probabilities.tolist(), truth).save(out)
    columns = max(truth) + 1
    click.echo("written   " + " ".join(map(str, truth[:columns])))
    for start in range(0, len(answers), columns):
        click.echo(f"read      {' '.join(map(str, answers[start : start + columns]))}")
    right = sum(a == t for a, t in zip(answers, truth, strict=True))
    click.echo(f"right     {right} of {len(truth)}; see {out}")
    click.echo(f"served by {'the fused engine' if decision.fused else 'PyTorch, module by module'}: {decision.reason}")
    ours, theirs = (f"{statistics.median(taken) * 1e3:.2f} ms" for taken in (fast, plain))
    click.echo(f"latency   {ours} an image at 64x64 on {place}, batch 1 (module by module: {theirs})")
    click.echo(f"agreement largest difference from the reference's logits: {(logits - reference).abs().max():.1e}")


def read_sheet() -> tuple[list[Image.Image], list[int]]:
    """The sample digits and what they are."""
    with Image.open(DIGITS_SAMPLE) as sheet:
        columns, rows = sheet.width // TILE, sheet.height // TILE
        boxes = [(c * TILE, r * TILE, (c + 1) * TILE, (r + 1) * TILE) for r in range(rows) for c in range(columns)]
        return [sheet.crop(box) for box in boxes], [index % columns for index in range(len(boxes))]


def draw(tiles: list[Image.Image], answers: list[int], probabilities: list[float], truth: list[int]) -> Image.Image:
    """Each image above the model's answer and its probability, wrong answers in red."""
    cell, caption, columns = 72, 20, max(truth) + 1
    rows = -(-len(tiles) // columns)
    picture = Image.new("RGB", (columns * cell, rows * (cell + caption)), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    for index, tile in enumerate(tiles):
        left, top = index % columns * cell, index // columns * (cell + caption)
        enlarged = tile.convert("RGB").resize((cell - 8, cell - 8), Image.Resampling.NEAREST)
        picture.paste(enlarged, (left + 4, top + 4))
        colour = "darkgreen" if answers[index] == truth[index] else "red"
        text = f"{answers[index]}  {probabilities[index]:.0%}"
        pen.text((left + cell // 2, top + cell + caption // 2 - 2), text, fill=colour, font=font, anchor="mm")
    return picture
