"""The errors this package raises. Every message says what was wrong, where, and what to do."""

from __future__ import annotations


class Error(Exception):
    """Base of everything edge_sdk raises on purpose."""


class BundleError(Error):
    """A bundle is missing, damaged, of another format, or does not fit what was asked of it."""


class AudioError(Error):
    """Audio that cannot be used: empty, too short, not finite, not decodable, an unsupported rate."""


class DeviceError(Error):
    """An audio device is missing, busy, or went away."""


class RuntimeUnavailableError(Error):
    """The runtime that was asked for cannot run here; the message says why and what would change that."""


class ContextFullError(Error):
    """A turn does not fit the context that is left. Nothing was changed."""


class BusyError(Error):
    """A second call was made while one runs on the same object."""


class ExportError(Error):
    """An export could not be completed."""


class CheckpointError(ExportError):
    """A checkpoint does not have what its configuration promises, or promises what is not supported."""
