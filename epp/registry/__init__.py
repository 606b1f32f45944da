"""From plugin types to built plugins: where classes are found, whether they keep the contract, how they are wired."""

from epp.registry.assembly import Assembly as Assembly
from epp.registry.assembly import Plugins as Plugins
from epp.registry.assembly import SourceAssembly as SourceAssembly
from epp.registry.build import build as build
from epp.registry.catalog import Catalog as Catalog
from epp.registry.contexts import ContextFactory as ContextFactory
from epp.registry.contexts import contexts as contexts
from epp.registry.inspection import roles_of as roles_of
from epp.registry.inspection import verify as verify
