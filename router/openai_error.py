"""The error envelope: {"error": {message, type, param, code}}, the same on every path. Pure."""

import msgspec

# Longest sentence sent back; what a client sent is quoted in it at most this far.
LONGEST_MESSAGE = 1000
LONGEST_QUOTE = 80

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    501: "not_implemented_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """The request ends with this status and sentence; `param` names the field at fault."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        retry_after: float = 0.0,
        allow: str = "",
    ):
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.allow = allow  # of a 405

    def body(self) -> bytes:
        return envelope(self.status, self.message, self.param, self.code)

    def headers(self) -> bytes:
        """Header lines that go with this error."""
        if self.status == 401:
            return b"WWW-Authenticate: Bearer\r\n"
        if self.allow:
            return b"Allow: %b\r\n" % self.allow.encode()
        if self.retry_after > 0:
            return b"Retry-After: %d\r\n" % max(1, round(self.retry_after))
        return b""


def envelope(status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    kind = TYPES.get(status)
    if kind is None:
        kind = "invalid_request_error" if status < 500 else "server_error"
    if len(message) > LONGEST_MESSAGE:
        message = message[: LONGEST_MESSAGE - 3] + "..."
    if param is not None and len(param) > LONGEST_QUOTE:
        param = quote(param)
    error = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def quote(text: str) -> str:
    """What a client sent, short enough to send back."""
    return text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 3] + "..."
