"""What kind of GPU a device is: what tables of configurations and of trust go by."""

from __future__ import annotations

from functools import cache

import torch


@cache
def family_of(device: torch.device) -> str:
    """``sm_90``, or AMD's ``gfx942``; another device's type."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
