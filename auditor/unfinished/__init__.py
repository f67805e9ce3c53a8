"""What an audit has finished, on disk while it runs: an interrupted one goes on from there."""

from auditor.unfinished.folder import Unfinished
from auditor.unfinished.key import key_of
from auditor.unfinished.parts import Claim

__all__ = ["Claim", "Unfinished", "key_of"]
