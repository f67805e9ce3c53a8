"""What would have helped: the client's step made again under the usual defences, and attacked."""

from auditor.what_if.run import is_short_of_time, what_if

__all__ = ["is_short_of_time", "what_if"]
