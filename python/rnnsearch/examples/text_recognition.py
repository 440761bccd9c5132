"""Text recognition from an image of one line, 64 columns, S = 64: a hand-written decoder, fused, trained with scheduled
sampling.

The images are made up, so that the right attention is known: 3 to 6 digits of a 5 × 7 font, at uneven distances and
heights, in noise. Convolutions see 9 columns around each one, so what is known of a digit stands where the digit is;
each column knows its place besides.

    python -m rnnsearch.examples.text_recognition --plot lines.png
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnnsearch.examples.scheduled_sampling import Decoded, decode, print_progress, train
from rnnsearch.outputs import check_picture
from rnnsearch.plot import new_figure, save_figure
from rnnsearch_kernels import FusedBahdanauDecoder

COLUMNS, ROWS = 64, 10
SHORTEST, LONGEST = 3, 6
END = BEGIN = 10  # after the ten digits
NOISE = 0.3
PLACES = 16  # features of a column's place
LOUDNESS = 3  # of the place beside what is seen: it is what leads to the next digit
# fmt: off
FONT = (
    "01110 00100 01110 11111 00010 11111 00110 11111 01110 01110",
    "10001 01100 10001 00010 00110 10000 01000 00001 10001 10001",
    "10011 00100 00001 00100 01010 11110 10000 00010 10001 10001",
    "10101 00100 00010 00010 10010 00001 11110 00100 01110 01111",
    "11001 00100 00100 00001 11111 00001 10001 01000 10001 00001",
    "10001 00100 01000 10001 00010 10001 10001 01000 10001 00010",
    "01110 01110 11111 01110 00010 01110 01110 01000 01110 01100",
)
# fmt: on
GLYPHS = torch.tensor([[[int(dot) for dot in row.split()[digit]] for row in FONT] for digit in range(10)]).float()
WIDTH, HEIGHT = 5, 7


class Lines(NamedTuple):
    images: Tensor  # (B, 10, 64), ink is 1
    digits: Tensor  # (B, 7): the digits, then ends
    inside: Tensor  # (B, 7, 64) bool: the columns of each digit; none of an end


class Measures(NamedTuple):
    """Of lines that the model read by itself."""

    right: float  # the share of digits that are right
    on_digit: float  # the share of digits that attended most to a column of their own


class HandWrittenDecoder(nn.Module):
    """The attention cell of several text recognisers: no bias on keys or score, GRU cell over [context ; character]."""

    def __init__(self, input_size: int, hidden_size: int, memory_size: int) -> None:
        super().__init__()
        self.i2h = nn.Linear(memory_size, hidden_size, bias=False)
        self.h2h = nn.Linear(hidden_size, hidden_size)
        self.score = nn.Linear(hidden_size, 1, bias=False)
        self.rnn = nn.GRUCell(memory_size + input_size, hidden_size)

    def step(self, character: Tensor, state: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.score(torch.tanh(self.i2h(columns) + self.h2h(state).unsqueeze(1)))
        weights = torch.softmax(scores, dim=1).transpose(1, 2)
        context = torch.bmm(weights, columns).squeeze(1)
        return self.rnn(torch.cat([context, character], dim=1), state), weights.squeeze(1)


class Recogniser(nn.Module):
    """Convolutions over the columns, and the hand-written decoder's weights in a fused one."""

    def __init__(self, theirs: HandWrittenDecoder, *, channels: int = 48) -> None:
        super().__init__()
        self.decoder = FusedBahdanauDecoder.from_modules(
            cell=theirs.rnn, query=theirs.h2h, key=theirs.i2h, score=theirs.score, input_order="context_input"
        )
        memory_size = self.decoder.memory_size
        self.columns = nn.Sequential(
            nn.Conv1d(ROWS, channels, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(channels, memory_size - PLACES, 5, padding=2),
            nn.ReLU(),
        )
        self.embedding = nn.Embedding(END + 1, self.decoder.input_size)
        self.readout = nn.Linear(self.decoder.hidden_size + memory_size, END + 1)

    def forward(self, images: Tensor, digits: Tensor, *, own_share: float) -> Decoded:
        seen = self.columns(images).transpose(1, 2)
        memory = torch.cat([seen, places().expand(len(images), -1, -1)], dim=2)
        return decode(self.decoder, self.embedding, self.readout, memory, digits, begin_id=BEGIN, own_share=own_share)


def places() -> Tensor:
    """(64, 16): sines and cosines of each column's place, of wavelengths from 4 columns to twice the line."""
    wavelengths = 4 * (2 * COLUMNS / 4) ** torch.linspace(0, 1, PLACES // 2)
    angles = 2 * torch.pi * torch.arange(COLUMNS)[:, None] / wavelengths
    return LOUDNESS * torch.cat([angles.sin(), angles.cos()], dim=1)


def draw(count: int, generator: random.Random) -> Lines:
    noise = torch.Generator().manual_seed(generator.getrandbits(40))
    images = torch.randn(count, ROWS, COLUMNS, generator=noise) * NOISE
    digits = torch.full((count, LONGEST + 1), END)
    inside = torch.zeros(count, LONGEST + 1, COLUMNS, dtype=torch.bool)
    for line in range(count):
        column = generator.randint(0, 4)
        for place in range(generator.randint(SHORTEST, LONGEST)):
            digit, row = generator.randrange(10), generator.randint(0, ROWS - HEIGHT)
            images[line, row : row + HEIGHT, column : column + WIDTH] += GLYPHS[digit]
            digits[line, place] = digit
            inside[line, place, column : column + WIDTH] = True
            column += WIDTH + generator.randint(2, 5)
    return Lines(images, digits, inside)


def new_model() -> Recogniser:
    return Recogniser(HandWrittenDecoder(input_size=32, hidden_size=96, memory_size=64))


@torch.no_grad()
def measure(model: Recogniser, lines: Lines) -> Measures:
    decoded = model(lines.images, lines.digits, own_share=1.0)
    is_digit = lines.digits != END
    right = (decoded.logits.argmax(dim=2) == lines.digits)[is_digit]
    attended = decoded.attn_weights.argmax(dim=2, keepdim=True)
    on_digit = lines.inside.gather(2, attended)[..., 0][is_digit]
    return Measures(float(right.float().mean()), float(on_digit.float().mean()))


def plot(path: Path, model: Recogniser, lines: Lines) -> None:
    """Three lines, each over what every digit that was read in it attended to."""
    with torch.no_grad():
        decoded = model(lines.images[:3], lines.digits[:3], own_share=1.0)
    figure = new_figure(path, (7, 8))
    axes = figure.subplots(6, 1, sharex=True)
    for line in range(3):
        read = decoded.logits[line].argmax(dim=1).tolist()
        axes[2 * line].imshow(lines.images[line].numpy(), cmap="gray_r", aspect="auto")
        axes[2 * line + 1].imshow(decoded.attn_weights[line].numpy(), cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes[2 * line].set_yticks([])
        axes[2 * line + 1].set_yticks(range(len(read)), ["end" if digit == END else str(digit) for digit in read])
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn to read made-up lines of digits.", allow_abbrev=False)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="what each digit attended to, in three lines")
    options = parser.parse_args()
    if options.plot is not None:
        check_picture("--plot", options.plot)
    torch.manual_seed(0)
    generator, model = random.Random(1), new_model()

    def batch() -> tuple[Tensor, Tensor]:
        lines = draw(64, generator)
        return lines.images, lines.digits

    train(model, batch, updates=options.updates, learning_rate=0.02, report=print_progress)
    lines = draw(200, generator)
    found = measure(model, lines)
    print(
        f"of the digits of 200 new lines {found.right:.1%} are right; {found.on_digit:.1%} attended most to themselves"
    )
    if options.plot is not None:
        plot(options.plot, model, lines)


if __name__ == "__main__":
    main()
