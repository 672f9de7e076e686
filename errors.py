"""Every error that dspex raises, and those that your functions may raise: `Reject`, `RetryLater`."""

from dspex.bus.errors import *
