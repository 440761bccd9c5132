"""Decoders that people already have, over `FusedBahdanauDecoder`: `python -m rnnsearch.examples.captioning`,
`python -m rnnsearch.examples.text_recognition`."""
