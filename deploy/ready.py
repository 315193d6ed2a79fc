"""A container's health: whether its workers are ready, asked at /v2/health/ready on each of the ports given.

    python ready.py [PORT ...]

Without ports, those that the ensemble file gives the three stages and the transcripts by default. Exit code 0 where
every worker that listens is ready and at least one does. It imports nothing of Penstock, so that asking costs 50 ms.
"""

from __future__ import annotations

import sys
from http.client import HTTPConnection, HTTPException

# One of tokenize or of a fused worker, one of encode, one of postprocess, one of the transcripts.
DEFAULT_PORTS = (8002, 8003, 8004, 8005)
# Four of them are under the 5 s that Docker gives the whole check.
_TIMEOUT_S = 1.2


def answer(port: int) -> tuple[bool, str] | None:
    """Whether the worker at a port is ready, and what it says; None where nobody listens."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/v2/health/ready")
        response = connection.getresponse()
        return response.status == 200, response.read().decode(errors="replace")
    except ConnectionRefusedError:
        return None
    except (OSError, HTTPException) as err:
        return False, f"{type(err).__name__}: {err}"
    finally:
        connection.close()


def main(ports: list[int]) -> int:
    """Print what each worker says, which `docker inspect` shows; the exit code."""
    answers = {port: found for port in ports if (found := answer(port)) is not None}
    for port, (_, text) in answers.items():
        sys.stdout.write(f"{port}: {text}\n")
    if not answers:
        sys.stdout.write(f"nobody listens on {', '.join(map(str, ports))}\n")
    return 0 if answers and all(ready for ready, _ in answers.values()) else 1


if __name__ == "__main__":
    sys.exit(main([int(port) for port in sys.argv[1:]] or list(DEFAULT_PORTS)))
