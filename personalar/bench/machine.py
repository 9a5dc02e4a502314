"""What the numbers of a measurement depend on besides the program."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

QUERY = ["nvidia-smi", "--query-gpu=uuid,driver_version,power.limit", "--format=csv,noheader,nounits"]


def processor() -> str:
    """Return the name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """Return {"driver", "power_limit_w"} of a GPU as nvidia-smi tells them; what it cannot tell is left out.

    The limit is of the whole card, so it is not told of a part of one (MIG), whose uuid is another.
    """
    try:
        told = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return {}  # another maker's, or a container without the tool
    cards = [[cell.strip() for cell in line.split(",")] for line in told.splitlines() if line.count(",") == 2]
    own = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    facts: dict[str, Any] = {"driver": cards[0][1]} if cards else {}
    limits = [limit for uuid, _, limit in cards if uuid == own and limit.replace(".", "", 1).isdigit()]
    return facts | ({"power_limit_w": float(limits[0])} if limits else {})


def machine(device: torch.device) -> dict[str, Any]:
    """Return the device's name, versions, date and load; of a GPU its driver and power limit too."""
    cuda, load = device.type == "cuda", Path("/proc/loadavg")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        **(gpu_facts(device) if cuda else {}),
        "threads": torch.get_num_threads(),
        "load_average": load.read_text().split()[0] if load.exists() else "",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def told(facts: dict[str, Any]) -> str:
    """Return in one line what `machine` found, for people."""
    parts = [facts["device"], f"{facts['threads']} threads"]
    parts += [f"driver {facts['driver']}"] if "driver" in facts else []
    parts += [f"power limit {facts['power_limit_w']:.0f} W"] if "power_limit_w" in facts else []
    return f"{', '.join(parts)}; torch {facts['torch']}"
