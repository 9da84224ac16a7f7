"""Accelerators for which JAX can compile without a device.

The peak rates of dense bfloat16 matrix products and the memory bandwidths are from the
manufacturers' data sheets: cloud.google.com/tpu/docs for the TPU v4, v5e, v5p and v6e,
and nvidia.com for the A100 SXM with 80 GB, the H100 SXM and the H200 SXM.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from resnet_jax.errors import ConfigError

GB = 1e9
_PLUGINS = {
    "tpu": ("libtpu",),
    "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin"),
}


@dataclass(frozen=True)
class Chip:
    """An accelerator, as described to XLA's compilers."""

    platform: str  # tpu | cuda
    topology: str  # passed to the compiler; {} is the number of GPUs
    flops: float  # bfloat16 FLOPs per second
    bandwidth: float  # bytes per second
    memory: float  # bytes
    kinds: tuple[str, ...]  # values of JAX's device_kind for this chip
    config: str | None = None  # chip_config_name (TPUs) or GpuTargetConfigProto (GPUs)


_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {per_core} threads_per_core_limit: 2048
  core_count: {cores} fpus_per_core: {units} block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth}
  l2_cache_size: {cache} clock_rate_ghz: {clock} device_memory_size: {memory}
  shared_memory_per_block_optin: {optin} registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""
_HOPPER = {
    **{"per_core": 233472, "optin": 232448, "units": 128, "clock": 1.98, "major": 9},
    **{"cores": 132, "cache": 52428800},
}
_AMPERE = {
    **{"per_core": 167936, "optin": 166912, "units": 64, "clock": 1.41, "major": 8},
    **{"cores": 108, "cache": 41943040},
}


def _gpu(
    name: str, flops: float, bandwidth: float, memory: int, made: dict[str, Any]
) -> Chip:
    described = {"name": name, "bandwidth": int(bandwidth), "memory": memory, **made}
    config = _GPU.format(**described)
    return Chip("cuda", "1x1x{}", flops, bandwidth, memory, (name,), config)


CHIPS = {
    # The two cores of a v4 chip form one device, as in JAX.
    "v4": Chip("tpu", "2x2x1", 275e12, 1228 * GB, 32 * 2**30, ("TPU v4",), "megacore"),
    "v5e": Chip("tpu", "2x2", 197e12, 819 * GB, 16 * 2**30, ("TPU v5 lite", "TPU v5e")),
    "v5p": Chip("tpu", "2x2x1", 459e12, 2765 * GB, 95 * 2**30, ("TPU v5", "TPU v5p")),
    "v6e": Chip(
        "tpu", "2x2", 918e12, 1640 * GB, 32 * 2**30, ("TPU v6 lite", "TPU v6e")
    ),
    "a100": _gpu("NVIDIA A100-SXM4-80GB", 312e12, 2039 * GB, 85_899_345_920, _AMPERE),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 989e12, 3352 * GB, 84_978_434_048, _HOPPER),
    "h200": _gpu("NVIDIA H200", 989e12, 4800 * GB, 150_754_820_096, _HOPPER),
}


def parse(target: str) -> tuple[Chip, str]:
    """Parses a target such as "v5e:4x4", "h100:8" or "v5e" into (chip, topology).

    Raises:
      ConfigError: if the chip is unknown or the number of GPUs is invalid.
    """
    name, _, topology = target.partition(":")
    if name not in CHIPS:
        raise ConfigError(f"unknown chip {name!r}: use one of {', '.join(CHIPS)}")
    chip = CHIPS[name]
    if chip.platform == "cuda":
        if not (topology or "1").isdigit() or int(topology or 1) < 1:
            raise ConfigError(
                f"target {target!r} is invalid: a positive number of GPUs must "
                "follow the colon"
            )
        return chip, chip.topology.format(topology or "1")
    return chip, topology or chip.topology


def prepare() -> None:
    """Sets environment variables that let JAX compile for chips that are not present.

    Call this function before JAX is first used. Otherwise, libtpu would query a
    metadata server, and the GPU compiler would time kernels on a GPU instead of using
    its defaults.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # allows other processes
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")


def devices(target: str) -> Any:
    """Returns a target's devices, for which JAX can compile even if they are absent.

    Raises:
      ConfigError: if the chip or topology is unknown, or no compiler is installed.
    """
    from jax.experimental import topologies

    chip, topology = parse(target)
    name, options = f"{target.partition(':')[0]}:{topology}", {}
    if chip.platform == "cuda":
        options = {"target_config": chip.config, "topology": topology}
    elif chip.config is not None:
        options = {"chip_config_name": chip.config}
    if name.startswith("v5p"):
        name = name.replace("v5p", "v5")
    try:
        found = topologies.get_topology_desc(name, chip.platform, **options)
    except Exception as error:  # JAX and its plugins share no exception type
        if not any(map(find_spec, _PLUGINS[chip.platform])):
            raise ConfigError(
                f"no compiler for {target} is installed: run pip install -e "
                f"'.[{chip.platform}]'"
            ) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"cannot compile for {target}: {reason[:150]}") from None
    return found.devices
