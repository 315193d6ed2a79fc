"""How pycuda is built for the GPU image (its own file of settings, at /etc/aksetup-defaults.py)."""

import sysconfig

# The headers are those of the package nvidia-cuda-runtime.
CUDA_ROOT = sysconfig.get_path("purelib") + "/nvidia/cu13"
# Only the driver's library is linked, and the image has none.
CUDADRV_LIB_DIR = ["/opt/stub"]
CUDA_ENABLE_CURAND = False
