"""Work spread over the workers of a Dask cluster: a local one, or that of a scheduler."""
