"""Every error that Tacit raises on purpose, with a stable code and what to do next.

The tree::

    TacitError
    |- UsageError         the command line or a call is off           exit 2
    |- ConfigError        a TOML file or a specification is wrong     exit 3
    |- RefusedError       the owner's policy said no                  exit 4
    |  `- BudgetError     the privacy budget has no room              exit 4
    |- TrustError         authentication, signature or certificate    exit 5
    |- UnavailableError   a peer, port, disk or file cannot be had    exit 6
    |- AuditError         the audit gate did not pass                 exit 7
    |- ProtocolError      a peer broke the rules of the wire          exit 1
    |- DataError          the owner's data breaks its contract        exit 3
    `- AppError           a ClientApp or ServerApp failed             exit 1

A message says what was expected and what came; a hint says what to do, and never lowers security.
Messages hold names, counts and row numbers, never a value of somebody's record.
Peers are told the code only: the text stays on the machine where the error was made.
"""

from __future__ import annotations


class TacitError(Exception):
    """Root of the tree: a failure that a person can act on.

    Attributes:
        code: stable identifier, such as ``E-TOKEN-EXPIRED``; part of the public interface.
        message: what was expected and what came.
        hint: what to do next; may be empty.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} [{code}]")
        self.code = code
        self.message = message
        self.hint = hint


class UsageError(TacitError):
    """The command line, or a call of the Python interface, is off."""

    exit_code = 2


class ConfigError(TacitError):
    """A configuration file or run specification is wrong; all problems are listed at once.

    Attributes:
        problems: one line per problem, each naming file and key, what came and what is allowed.
    """

    exit_code = 3

    def __init__(
        self, code: str, message: str, *, problems: tuple[str, ...] = (), hint: str = ""
    ) -> None:
        super().__init__(code, message, hint=hint)
        self.problems = problems


class DataError(TacitError):
    """The owner's data breaks the data contract; rows are named by number, never by value."""

    exit_code = 3

    def __init__(
        self, code: str, message: str, *, problems: tuple[str, ...] = (), hint: str = ""
    ) -> None:
        super().__init__(code, message, hint=hint)
        self.problems = problems


class RefusedError(TacitError):
    """The owner's policy, or a step that cannot be applied, said no: fail closed.

    Attributes:
        problems: one line per reason, where several are known at once.
    """

    exit_code = 4

    def __init__(
        self, code: str, message: str, *, problems: tuple[str, ...] = (), hint: str = ""
    ) -> None:
        super().__init__(code, message, hint=hint)
        self.problems = problems


class BudgetError(RefusedError):
    """The privacy budget of a data set has no room for this release."""


class TrustError(TacitError):
    """Authentication failed: token, certificate, signature, role or revocation."""

    exit_code = 5


class UnavailableError(TacitError):
    """A peer, port, disk or file cannot be had at present."""

    exit_code = 6


class AuditError(TacitError):
    """The audit gate did not pass."""

    exit_code = 7


class ProtocolError(TacitError):
    """A peer broke a rule of the wire: size, order, schema or digest."""


class AppError(TacitError):
    """A ClientApp or ServerApp raised, hung or died."""
