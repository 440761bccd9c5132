"""What others do with the package, each a module that runs: `python -m rnnsearch.examples.captioning` and
`.text_recognition` (decoders that people already have, over `FusedBahdanauDecoder`), `.ray_translate`."""
