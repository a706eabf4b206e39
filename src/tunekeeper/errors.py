"""Every fault that Tunekeeper raises, as one small tree.

    TunekeeperError            500  internal_error
    ├── InvalidRequest         400  invalid_value
    │   ├── InvalidConfig      400  invalid_hyperparameters
    │   ├── InvalidData        400  invalid_training_file
    │   ├── InvalidState       400  invalid_state
    │   └── Unsupported        400  unsupported_parameter
    ├── Unauthenticated        401  invalid_api_key
    ├── PermissionDenied       403  permission_denied
    ├── NotFound               404  not_found
    │   └── ModelNotFound      404  model_not_found
    ├── ModelRetired           410  model_retired
    ├── TooSlow                408  request_timeout
    ├── TooLarge               413  file_too_large
    ├── Overloaded             429  rate_limit_exceeded
    ├── Unavailable            503  service_unavailable
    │   └── UpstreamFailed     503  upstream_failed
    └── DiskFull               507  disk_full

A message says what, where and what to do, for a person; `code` and `param` are for programs.
HTTP knows these classes in one place only (`api/errors.py`); nothing here knows HTTP.
"""

from collections.abc import Mapping, Sequence
from typing import Any


class TunekeeperError(Exception):
    """Base of every error that we raise."""

    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        details: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.details = tuple(details)
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.param, self.code, self.details)


def _rebuild(
    cls: type[TunekeeperError],
    message: str,
    param: str | None,
    code: str,
    details: Sequence[Mapping[str, Any]],
) -> TunekeeperError:
    return cls(message, param=param, code=code, details=details)


class InvalidRequest(TunekeeperError):
    """Something that the caller sent cannot be used as it is."""

    code = "invalid_value"


class InvalidConfig(InvalidRequest):
    """A hyperparameter or a setting is out of its bounds, or unknown."""

    code = "invalid_hyperparameters"


class InvalidData(InvalidRequest):
    """A data file has faults; `details` lists them, each with line, pointer, code and what to do."""

    code = "invalid_training_file"


class InvalidState(InvalidRequest):
    """The object is not in a state that allows this."""

    code = "invalid_state"


class Unsupported(InvalidRequest):
    """A parameter or value that we know of but do not have."""

    code = "unsupported_parameter"


class Unauthenticated(TunekeeperError):
    """No API key, or a wrong one."""

    code = "invalid_api_key"


class PermissionDenied(TunekeeperError):
    """The key is good, but not for this."""

    code = "permission_denied"


class NotFound(TunekeeperError):
    """No object under this id."""

    code = "not_found"


class ModelNotFound(NotFound):
    """No model under this id or alias."""

    code = "model_not_found"


class ModelRetired(TunekeeperError):
    """The model does not answer any more, because the operator's policy retired it."""

    code = "model_retired"


class TooSlow(TunekeeperError):
    """The client stopped sending in the middle of its request."""

    code = "request_timeout"


class TooLarge(TunekeeperError):
    """A body, a file or a part is over its limit."""

    code = "file_too_large"


class Overloaded(TunekeeperError):
    """Too many requests wait already; try again later."""

    code = "rate_limit_exceeded"


class Unavailable(TunekeeperError):
    """Something that is needed is not here now: a package, a file, a server."""

    code = "service_unavailable"


class UpstreamFailed(Unavailable):
    """A configured upstream server did not answer as it should."""

    code = "upstream_failed"


class DiskFull(TunekeeperError):
    """The disk is full; nothing that was stored is harmed."""

    code = "disk_full"
