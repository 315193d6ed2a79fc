"""On a worker's PYTHONPATH: at SIGUSR1 a kernel of its GPU traps, after which nothing works in its context any more."""

import signal
import sys
import threading

# One instruction, that stops the kernel with an error (PTX ISA, "trap").
TRAP = b".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry trap() { trap; }\n\0"


def lose_gpu() -> None:
    from cuda.bindings import driver

    _, context = driver.cuDevicePrimaryCtxRetain(0)
    driver.cuCtxPushCurrent(context)
    _, module = driver.cuModuleLoadData(TRAP)
    _, kernel = driver.cuModuleGetFunction(module, b"trap")
    sys.stderr.write(f"launched: {driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)}\n")


# Not in the handler: that runs inside of whatever the main thread does.
signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=lose_gpu).start())
