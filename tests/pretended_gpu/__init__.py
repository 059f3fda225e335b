"""A pretended GPU: tensors report `cuda:0`, and the CPU computes their values.

    with PretendedGPU() as gpu:
        model.to("cuda")
        ...
    assert not gpu.syncs and not gpu.uploads

Tensors on two devices in one operation raise `RuntimeError` as a GPU's kernels do, so do the dtypes that only the CPU mixes, and
each wait of the host for the device and each copy to the device is recorded with the line that caused it.

It cannot see: kernels (speed, memory, and the shapes that only they refuse), streams and pinned memory, compiled code, NCCL, and
syncs inside CUDA libraries. Autocast raises. To C++ code the device of a tensor is `lazy:0`: torch's CUDA builds
ask the driver in each backward pass of a `cuda` tensor.
"""

from pretended_gpu.gpu import Event, PretendedGPU
from pretended_gpu.tensor import GPU, GPUTensor

__all__ = ["GPU", "Event", "GPUTensor", "PretendedGPU"]
