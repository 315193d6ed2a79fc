"""What stops a worker or a command, by who must act."""


class UserError(Exception):
    """Raised when a person must change something: a file, a flag, a topic. Its lines go to stderr; exit code 2."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class WorkerFailure(Exception):
    """Raised when a worker can't go on but a fresh one may: it leaves without committing; exit code 1."""
