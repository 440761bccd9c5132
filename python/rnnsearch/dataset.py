"""Parallel text in a Hugging Face dataset, memory-mapped by that library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rnnsearch.corpus import Corpus, CorpusError, Skips, Unusable


class DatasetText(Corpus):
    """Pairs of a split of a dataset.

    Args:
        name: on the hub, a folder that ``load_dataset`` reads, or one that ``save_to_disk`` wrote.
        config: which of the dataset's configurations, where it has several.
        keys: of the two sides; a dot leads into a column of columns, as in ``translation.de``.

    Raises:
        RuntimeError: datasets is not installed.
        CorpusError: there is no such dataset, split or column, ``config`` is given for a folder of ``save_to_disk``;
            or as :class:`Corpus`.
    """

    def __init__(
        self, name: str, split: str, skips: Skips, *, config: str | None = None, keys: tuple[str, str]
    ) -> None:
        self._name, self._keys = f"{name}[{split}]", [key.split(".") for key in keys]
        self._rows = _load(name, config, split)
        for key, (column, *_) in zip(keys, self._keys, strict=True):
            if column not in self._rows.column_names:
                names = ", ".join(self._rows.column_names)
                raise CorpusError(f"{self._name} has no column for the key {key!r}: it has {names}")
        super().__init__(self._name, range(len(self._rows)), skips)

    def _where(self, place: int, side: int = 0) -> str:
        return f"{self._name}, row {place + 1}, {'.'.join(self._keys[side])}"

    def _read(self, place: int) -> tuple[str, str]:
        row = self._rows[place]
        source, target = (self._side(row, place, side) for side in (0, 1))
        return source, target

    def _side(self, row: Any, place: int, side: int) -> Any:
        for key in self._keys[side]:
            if not isinstance(row, dict) or key not in row:
                raise Unusable(self._where(place, side), f"no key {key!r}")
            row = row[key]
        return row


def _load(name: str, config: str | None, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise RuntimeError("a dataset needs datasets: pip install 'rnnsearch-kernels[datasets]'") from error
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            if config is not None:
                raise CorpusError(
                    f"{name} is a folder of save_to_disk, which holds one configuration: leave `data.dataset_config` "
                    f"({config!r}) out"
                )
            return datasets.load_from_disk(name)[split]
        if (Path(name) / "state.json").is_file():
            raise CorpusError(f"{name} holds one split by itself: save a DatasetDict, with training and dev text")
        return datasets.load_dataset(name, config, split=split)
    except CorpusError:
        raise
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise CorpusError(f"the dataset {name!r} has no split {split!r} that can be read ({error})") from error
