"""Every launch configuration, in one place to tune: by what a kernel does, GPU family and size class.

Nothing here has been measured: there was no GPU. The numbers are chosen so that nothing spills and two programs fit
a multiprocessor of sm_80, sm_90 and sm_100 (tests/test_triton_compile.py holds this). No choice depends on the number
of rows or steps: a row's order of summation is its own.
"""

from __future__ import annotations

Config = dict[str, int]
