"""What can go wrong in an engine, by who must act."""


class EngineError(Exception):
    """Raised when a batch can't be computed; the batch can be tried in halves to find the culprit."""


class EngineBusy(EngineError):
    """Raised when the same batch may succeed later: a device that others have filled, a server that sheds load."""


class EngineLost(Exception):
    """Raised when nothing can be computed in this process any more, whatever the text: a GPU whose context is broken.
    Another process may."""


class CheckpointError(Exception):
    """Raised when a model folder, package or head can't be used; the message says what, where and what to do."""


class EngineUnavailable(Exception):
    """Raised when an engine's library or device is missing; the message says what to install."""


class DeviceUnavailable(EngineUnavailable):
    """Raised when there is no such device."""


class PlanError(Exception):
    """Raised when a plan can't be built or loaded; the message says which and why."""


class ParityError(PlanError):
    """Raised when what was built is not the model; the message says by how much."""


class SamplesError(PlanError):
    """Raised when there is no text to judge a plan on."""


class PlanMissing(PlanError):
    """Raised when there is no plan, and none is to be built here."""
