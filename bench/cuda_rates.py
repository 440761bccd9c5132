"""The rates that the CUDA planner's costs rest on, measured on the GPU that is here, and what the costs should become.

    python bench/cuda_rates.py

How long the blocks of a grid and of a cluster take to meet, how fast a block reads from L2 and from its shared memory,
what a load takes that nothing hides, and what a tanh costs in its three forms. The kernels, ``cuda_rates.cu``, are made
of the parts that the scans are made of; every result is checked before it is timed, and a time is what more rounds in
one launch take. Needs nvcc.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from machine import ROOT, header
from workloads import WORKLOADS

SOURCE = Path(__file__).resolve().with_name("cuda_rates.cu")
THREADS = 384  # of a block of decoder_scan


def command(compiler: Sequence[str], program: Path) -> list[str]:
    return [*compiler, "-I", str(ROOT / "csrc" / "cuda"), str(SOURCE), "-o", str(program)]


def measured(lines: str) -> dict[str, float]:
    """By name, of what the program prints: name, number, unit."""
    return {name: float(number) for name, number, _ in (line.split(None, 2) for line in lines.splitlines())}


def constants(rates: Mapping[str, float]) -> Iterator[str]:
    """What stands in csrc/cuda/planner, in its unit: bytes that a block could have read from outside meanwhile."""

    def bytes_in(us: float) -> str:
        return f"{us * rates['read_outside']:.0f}"

    yield f"common.h   kMeeting           {bytes_in(rates['grid_meeting_with_value'])}"
    clusters = [rates[name] for name in rates if name.startswith("cluster_meeting") and name.endswith("_with_value")]
    if clusters:
        yield f"common.h   kClusterMeeting    {bytes_in(max(clusters))}"
    yield f"decoder.cpp kPart             {bytes_in(rates['load_outside'] / 1000)}"
    yield f"decoder.cpp kClusterPart      {bytes_in(rates['load_shared'] / 1000)}"
    faster = rates["read_shared"] / rates["read_outside"]
    yield f"cost()     shared memory is {faster:.2f} times as fast as L2; taken for 2"


def tanh_of_a_step(rates: Mapping[str, float], processors: int) -> Iterator[str]:
    """The floor that the scores of a step have, by the form of their tanh."""
    for name, w in WORKLOADS.items():
        count = w.batch * w.source_length * w.attention_size
        times = (
            f"{form.removeprefix('tanh_')} {count / (rate * processors):.2f}"
            for form, rate in rates.items()
            if form.startswith("tanh_")
        )
        yield f"{name:<10} {count / 1e6:>6.2f} M tanh a step, in us: {', '.join(times)}"


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="cuda_rates.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=2000, metavar="N", help="of a launch; the longer one's are three times as many"
    )
    options = parser.parse_args(given)
    if options.rounds < 1:
        parser.error(f"--rounds must be 1 or more; got {options.rounds}")
    if not torch.cuda.is_available():
        print(f"nothing was measured: this torch ({torch.__version__}) sees no CUDA device", file=sys.stderr)
        return 2
    if (nvcc := shutil.which("nvcc")) is None:
        print("nothing was measured: nvcc is not there", file=sys.stderr)
        return 2
    properties = torch.cuda.get_device_properties(0)
    processors = properties.multi_processor_count
    print("\n".join(header(torch.device("cuda"), torch.get_num_threads())))
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "cuda_rates"
        target = f"-arch=sm_{properties.major}{properties.minor}"
        subprocess.run(command([nvcc, "-O3", "-std=c++17", target], program), check=True)
        sizes = map(str, (processors, THREADS, options.rounds))
        ran = subprocess.run([program, *sizes], stdout=subprocess.PIPE, text=True)
    print(ran.stdout)
    if ran.returncode != 0:
        return 1
    rates = measured(ran.stdout)
    print("What the planner's constants should become\n", *constants(rates), sep="\n")
    print("\nWhat the tanh alone take\n", *tanh_of_a_step(rates, processors), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
