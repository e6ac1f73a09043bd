"""What a run computes on: the device, its types, its peak, and the other processes of the run."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyllama2c.errors import ArgumentError
from pyllama2c.train.config import TrainConfig

# Dense 16-bit tensor-core peaks in TFLOP/s, as the makers state them.
_GPU_PEAKS = {
    "V100": 125, "T4": 65, "A10": 125, "A100": 312, "L4": 121, "L40": 181, "RTX 3090": 71,
    "RTX 4090": 165, "RTX 5090": 210, "H100": 989, "H200": 989, "B200": 2250,
}  # fmt: skip


@dataclass(frozen=True)
class Device:
    """Where and how to compute.

    Args:
        device: the device itself.
        dtype: of the matrix products.
        rank: number of this process among ``world_size``.
        world_size: processes of the run, as `torchrun` started them.
    """

    device: torch.device
    dtype: torch.dtype
    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def autocast(self) -> Any:
        """Return the context in which matrix products run in ``dtype``."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def mean(self, value: Tensor) -> float:
        """Average a number over the processes."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world_size
        return float(value)

    def peak_flops(self) -> float:
        """Operations per second at best: the maker's figure, or else a measured matrix product."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
            for known in sorted(_GPU_PEAKS, key=len, reverse=True):
                if known in name:
                    return _GPU_PEAKS[known] * 1e12
        return _measured_peak(self.device, self.dtype)


def open_device(config: TrainConfig) -> Device:
    """Choose the device and join the other processes, if `torchrun` started several.

    Raises:
        ArgumentError: the device is not there.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    rank, world_size = _env("RANK", 0), _env("WORLD_SIZE", 1)
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world_size > 1:
        name = f"cuda:{_env('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"device is {config.device!r}, but: {reason}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Device(device, _dtype(config.dtype, device), rank, world_size)


def _env(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def close_device(device: Device) -> None:
    """Leave the other processes."""
    if device.world_size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        dtype = getattr(torch, name)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    size = 1024
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        float((a @ a)[0, 0])  # reading a number waits for the device
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
