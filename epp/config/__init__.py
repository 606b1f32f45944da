"""EndpointPickerConfig: what the file says, what is filled in, what is wrong with it. Pure: no plugin is imported."""

from epp.config.defaults import apply_defaults as apply_defaults
from epp.config.duration import Duration as Duration
from epp.config.errors import LocatedError as LocatedError
from epp.config.load import default_config as default_config
from epp.config.load import load as load
from epp.config.load import load_file as load_file
from epp.config.quantity import Quantity as Quantity
from epp.config.roles import Role as Role
from epp.config.roles import Roles as Roles
from epp.config.schema import EndpointPickerConfig as EndpointPickerConfig
from epp.config.schema import PluginSpec as PluginSpec
from epp.config.validate import validate as validate
