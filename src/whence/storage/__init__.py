"""Storage: results as an ArviZ `DataTree` and as netCDF files; arrays in, files out.

`to_datatree(groups, ...)` lays arrays out by ArviZ's conventions; `save_netcdf` and
`load_netcdf` write and read such trees atomically and without pickle;
`systematic_indices` turns weighted draws into equally weighted ones, for tools that know
no weights.
"""

from ._datatree import GROUPS as GROUPS
from ._datatree import to_datatree as to_datatree
from ._netcdf import (
    SCHEMA_VERSION as SCHEMA_VERSION,
)
from ._netcdf import (
    load_netcdf as load_netcdf,
)
from ._netcdf import (
    save_netcdf as save_netcdf,
)
from ._resample import systematic_indices as systematic_indices
