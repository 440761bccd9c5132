"""Captions of images from 14 × 14 regions, S = 196: a hand-written decoder, fused, trained with scheduled sampling.

The images are made up, so that the right attention is known: two objects, each a shape in a colour, lie on a noisy
ground; the caption names them from left to right, "red square and blue ring". What stands for the features of a
convolutional network is a vector for each region: its colour's, its shape's, its place's, and noise.

    python -m rnnsearch.examples.captioning --plot captions.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnnsearch.examples.scheduled_sampling import Decoded, decode, print_progress, train
from rnnsearch.outputs import check_picture
from rnnsearch.plot import new_figure, save_figure
from rnnsearch_kernels import FusedBahdanauDecoder

COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("square", "ring", "cross", "star")
WORDS = ("<begin>", "<end>", "and", *COLOURS, *SHAPES)
BEGIN, END, AND, FIRST_COLOUR, FIRST_SHAPE = 0, 1, 2, 3, 3 + len(COLOURS)
GRID, OBJECT = 14, 3  # an object covers 3 × 3 regions
FEATURES, NOISE = 64, 0.3
ABOUT = (0, 0, None, 1, 1, None)  # which of the two objects each word of a caption is about


class Images(NamedTuple):
    regions: Tensor  # (B, 196, M)
    captions: Tensor  # (B, 6): colour, shape, and, colour, shape, end
    objects: Tensor  # (B, 2, 196) bool: where the first and the second object are


class Measures(NamedTuple):
    """Of captions that the model wrote by itself."""

    right: float  # the share of captions that are right, word for word
    on_object: float  # the share of colours and shapes that attended most to a region of their own object


class HandWrittenDecoder(nn.Module):
    """The decoder of many captioning repositories: additive attention, then a GRU cell over [word ; context]."""

    def __init__(self, input_size: int, hidden_size: int, memory_size: int, attention_size: int) -> None:
        super().__init__()
        self.encoder_att = nn.Linear(memory_size, attention_size)
        self.decoder_att = nn.Linear(hidden_size, attention_size)
        self.full_att = nn.Linear(attention_size, 1)
        self.decode_step = nn.GRUCell(input_size + memory_size, hidden_size)

    def step(self, word: Tensor, state: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.encoder_att(regions) + self.decoder_att(state)[:, None])
        weights = torch.softmax(self.full_att(hidden).squeeze(2), dim=1)
        context = (weights[:, :, None] * regions).sum(dim=1)
        return self.decode_step(torch.cat([word, context], dim=1), state), weights


class Captioner(nn.Module):
    """The hand-written decoder's weights in a fused one, with an embedding and a readout."""

    def __init__(self, theirs: HandWrittenDecoder, embedding_size: int) -> None:
        super().__init__()
        self.decoder = FusedBahdanauDecoder.from_modules(
            cell=theirs.decode_step, query=theirs.decoder_att, key=theirs.encoder_att, score=theirs.full_att
        )
        self.embedding = nn.Embedding(len(WORDS), embedding_size)
        self.readout = nn.Linear(self.decoder.hidden_size + self.decoder.memory_size, len(WORDS))

    def forward(self, regions: Tensor, captions: Tensor, *, own_share: float) -> Decoded:
        return decode(
            self.decoder, self.embedding, self.readout, regions, captions, begin_id=BEGIN, own_share=own_share
        )


def appearance(generator: torch.Generator) -> dict[str, Tensor]:
    """What a colour and a shape look like, and each place's own vector: fixed, as a frozen network's are."""
    sizes = {"colour": len(COLOURS), "shape": len(SHAPES), "place": 6}
    return {name: torch.randn(size, FEATURES, generator=generator) for name, size in sizes.items()}


def draw(count: int, looks: dict[str, Tensor], generator: torch.Generator) -> Images:
    def integers(high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=generator)

    last = GRID - OBJECT
    row, colour, shape = integers(last + 1, count, 2), integers(len(COLOURS), count, 2), integers(len(SHAPES), count, 2)
    first = integers(last - OBJECT + 1, count)
    second = first + OBJECT + (torch.rand(count, generator=generator) * (last - OBJECT + 1 - first)).long()
    column = torch.stack([first, second], dim=1)  # the second lies to the right of the first
    line = torch.arange(GRID)
    inside = [(line >= start[..., None]) & (line < start[..., None] + OBJECT) for start in (row, column)]
    objects = (inside[0][..., :, None] & inside[1][..., None, :]).flatten(2)
    there = objects.float()
    painted = torch.einsum("bos,bom->bsm", there, looks["colour"][colour] + looks["shape"][shape])
    x = torch.linspace(-1, 1, GRID)
    waves = torch.stack([x, (torch.pi * x).sin(), (torch.pi * x).cos()], dim=1)
    places = torch.cat([waves.repeat(GRID, 1), waves.repeat_interleave(GRID, 0)], dim=1) @ looks["place"]
    noise = torch.randn(count, GRID * GRID, FEATURES, generator=generator) * NOISE
    captions = torch.stack(
        [
            colour[:, 0] + FIRST_COLOUR,
            shape[:, 0] + FIRST_SHAPE,
            torch.full((count,), AND),
            colour[:, 1] + FIRST_COLOUR,
            shape[:, 1] + FIRST_SHAPE,
            torch.full((count,), END),
        ],
        dim=1,
    )
    return Images(painted + 0.5 * places + noise, captions, objects)


def new_model() -> Captioner:
    return Captioner(HandWrittenDecoder(input_size=32, hidden_size=64, memory_size=FEATURES, attention_size=64), 32)


@torch.no_grad()
def measure(model: Captioner, images: Images) -> Measures:
    decoded = model(images.regions, images.captions, own_share=1.0)
    right = (decoded.logits.argmax(dim=2) == images.captions).all(dim=1)
    attended = decoded.attn_weights.argmax(dim=2)
    words = [(t, thing) for t, thing in enumerate(ABOUT) if thing is not None]
    hits = [images.objects[:, thing].gather(1, attended[:, t, None]) for t, thing in words]
    return Measures(float(right.float().mean()), float(torch.cat(hits).float().mean()))


def plot(path: Path, model: Captioner, images: Images) -> None:
    """Two images, a row each: their objects, then what each word attended to."""
    with torch.no_grad():
        decoded = model(images.regions[:2], images.captions[:2], own_share=1.0)
    figure = new_figure(path, (11, 3.6))
    axes = figure.subplots(2, len(ABOUT) + 1)
    for row in range(2):
        said = [WORDS[word] for word in decoded.logits[row].argmax(dim=1).tolist()]
        pictures = [images.objects[row].any(dim=0).float(), *decoded.attn_weights[row]]
        for place, (picture, title) in enumerate(zip(pictures, ["objects", *said], strict=True)):
            axes[row, place].imshow(picture.reshape(GRID, GRID).numpy(), cmap="gray", vmin=0)
            axes[row, place].set_title(title, fontsize=10)
            axes[row, place].set_axis_off()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn to caption made-up images.", allow_abbrev=False)
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="what each word attended to, in two images")
    options = parser.parse_args()
    if options.plot is not None:
        check_picture("--plot", options.plot)
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    looks, model = appearance(generator), new_model()

    def batch() -> tuple[Tensor, Tensor]:
        images = draw(32, looks, generator)
        return images.regions, images.captions

    train(model, batch, updates=options.updates, learning_rate=3e-3, report=print_progress)
    images = draw(200, looks, generator)
    found = measure(model, images)
    print(
        f"of 200 new images {found.right:.1%} have the right caption; {found.on_object:.1%} of the colours and shapes"
    )
    print("attended most to their own object")
    if options.plot is not None:
        plot(options.plot, model, images)


if __name__ == "__main__":
    main()
