"""What models see of a data contract: names and shape of the features.

Apart from ``contract.py``, which makes them out of tables: a worker that trains on prepared records
need not load pandas.
"""

from __future__ import annotations

from tacit.core.errors import DataError
from tacit.core.specification import ColumnKind, DataKind, DataSpec


def feature_names(data: DataSpec) -> tuple[str, ...]:
    """Return the names of a table's features, in the order of the model's inputs."""
    names: list[str] = []
    for name, column in sorted(data.columns.items()):
        if column.type is ColumnKind.CATEGORY:
            names.extend(f"{name}={value}" for value in column.values)
        else:
            names.append(name)
        if column.flag_missing:
            names.append(f"{name} missing")
    return tuple(names)


def input_shape(data: DataSpec) -> tuple[int, ...]:
    """Return the shape of one record's features."""
    if data.kind is DataKind.IMAGE:
        if data.shape is None:
            raise DataError("E-DATA-FORMAT", "the run declares images without a shape")
        return data.shape
    return (len(feature_names(data)),)
