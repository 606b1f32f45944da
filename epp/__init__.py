"""epp: an Endpoint Picker for LLM inference gateways. Plugin authors import everything from here."""

from epp.api import *  # noqa: F403 -- the contract is defined and documented in epp.api
