"""Errors that a user can act on, each with the exit code of its kind."""


class BluejayError(Exception):
    """One sentence that names the offending value and the remedy.

    The command line prints the sentence without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(BluejayError, ValueError):
    """The request itself cannot be carried out: a wrong option, name or value."""

    exit_code = 2


class DataError(BluejayError):
    """Text, ids or shards that are missing, damaged or not what they claim to be."""

    exit_code = 3


class CheckpointError(BluejayError):
    """A model file or folder that is missing, damaged, hostile or of another kind."""

    exit_code = 4


class MemoryLimitError(BluejayError):
    """The job needs more memory than this machine has."""

    exit_code = 5


class DiskError(BluejayError):
    """The disk is full, read-only or refuses the write."""

    exit_code = 6


class HungError(BluejayError):
    """The job made no progress within its limit and was stopped."""

    exit_code = 70


class InterruptedRunError(BluejayError):
    """The job was interrupted by a signal after everything worth keeping was saved."""

    exit_code = 75
