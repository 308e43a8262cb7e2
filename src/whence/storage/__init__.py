"""Storage: results as an ArviZ `DataTree` and as netCDF files; arrays in, files out.

`to_datatree(groups, ...)` lays arrays out by ArviZ's conventions; `save_netcdf` and
`load_netcdf` write and read such trees atomically and without pickle, `save_zarr` and
`load_zarr` as folders. `RunStore` is a run on disk while it goes on.
"""

from ._atomic import as_path as as_path
from ._datatree import GROUPS as GROUPS, in_order as in_order, to_datatree as to_datatree
from ._encoding import SCHEMA_VERSION as SCHEMA_VERSION
from ._netcdf import load_netcdf as load_netcdf, save_netcdf as save_netcdf
from ._runstore import RUN_SCHEMA as RUN_SCHEMA, RunStore as RunStore
from ._zarr import (
    check_destination as check_destination,
    is_zarr as is_zarr,
    load_zarr as load_zarr,
    save_zarr as save_zarr,
)
