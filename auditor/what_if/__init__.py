"""What would have helped: the client's step made again under the usual defences, and attacked."""

from auditor.what_if.run import what_if
from auditor.what_if.store import Store, key_of

__all__ = ["Store", "key_of", "what_if"]
