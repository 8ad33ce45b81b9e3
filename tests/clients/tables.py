"""Prints a folder of the table of predictions as DuckDB, pandas and polars read it: columns and rows of each as JSON.

    python3 tests/clients/tables.py FOLDER

The folder is given to each as it is. Times are microseconds since 1970; a number that is none is null.
"""

import json
import math
import sys

import duckdb
import numpy
import pandas
import polars


def plain(value):
    """A value as JSON has it."""
    if isinstance(value, (list, numpy.ndarray)):
        return [plain(one) for one in value]
    if isinstance(value, numpy.generic):
        value = value.item()
    if hasattr(value, "timestamp"):
        return round(value.timestamp() * 1e6)
    if value is None or value is pandas.NaT or isinstance(value, float) and math.isnan(value):
        return None
    return value


def by_duckdb(folder):
    quoted = folder.replace("'", "''")
    table = duckdb.sql(f"SELECT * REPLACE (epoch_us(time) AS time) FROM '{quoted}/**/*.parquet'")
    return list(table.columns), table.fetchall()


def by_pandas(folder):
    table = pandas.read_parquet(folder)
    return list(table.columns), [list(row) for row in table.itertuples(index=False, name=None)]


def by_polars(folder):
    table = polars.read_parquet(folder)
    return table.columns, table.rows()


def main():
    (folder,) = sys.argv[1:]
    found = {}
    for read in (by_duckdb, by_pandas, by_polars):
        columns, rows = read(folder)
        rows = [[plain(value) for value in row] for row in rows]
        rows.sort(key=lambda row: (row[columns.index("prediction_id")], row[columns.index("row")]))
        found[read.__name__.removeprefix("by_")] = {"columns": columns, "rows": rows}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
