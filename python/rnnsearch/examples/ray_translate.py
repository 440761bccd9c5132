"""Translate lines of text with Ray Data: `Translator` is the class that map_batches takes, as it is.

    pip install 'ray[data]'
    python -m rnnsearch.examples.ray_translate run/best test.de translated --processes 4

writes JSON lines with the columns "text" and "translation" into the folder `translated`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rnnsearch.translator import Translator


def translated(dataset: Any, model: str, *, processes: int = 1, gpus: int = 0, **options: Any) -> Any:
    """``dataset`` (a Ray dataset with a column "text") with a column "translation"; the order is kept by Ray only if
    its context says so (``preserve_order``). Each process reads the model once."""
    return dataset.map_batches(
        Translator,
        fn_constructor_args=[model],
        fn_constructor_kwargs={"source_column": "text", **options},
        batch_size=256,
        concurrency=processes,
        num_gpus=gpus,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory that `rnnsearch train` wrote, such as run/best")
    parser.add_argument("input", help="a file with a text a line")
    parser.add_argument("output", help="a folder")
    parser.add_argument("--processes", type=int, default=1, help="processes that translate (1)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs for each of them (0)")
    given = parser.parse_args()
    import ray

    model, output = str(Path(given.model).resolve()), str(Path(given.output).resolve())
    dataset = ray.data.read_text(str(Path(given.input).resolve()))
    translated(dataset, model, processes=given.processes, gpus=given.gpus, beam_size=5).write_json(output)


if __name__ == "__main__":
    main()
