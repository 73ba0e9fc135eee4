"""observe_expiry: when keys expired, as intervals on the server's clock."""

from memkit.observe.log import Expiry, ExpiryLog
from memkit.observe.observe import Watch, observe_expiry

__all__ = ["Expiry", "ExpiryLog", "Watch", "observe_expiry"]
