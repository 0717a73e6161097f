"""bqemulator, without the two extensions of DuckDB that it wants and that no
package registry has: the one for GEOGRAPHY, which nothing of ours uses, and the
one for Avro.  Files are read by fastavro instead, and their columns found by
name, as BigQuery does."""

import decimal
import sys

import fastavro
import pyarrow as pa

from bqemulator.cli import main
from bqemulator.domain.errors import InvalidQueryError
from bqemulator.jobs import executor
from bqemulator.storage import engine, type_map

LOGICAL = {
    "date": pa.date32(),
    "timestamp-micros": pa.timestamp("us", tz="UTC"),
    "local-timestamp-micros": pa.timestamp("us"),
    "time-micros": pa.time64("us"),
}
PRIMITIVE = {
    "boolean": pa.bool_(),
    "int": pa.int64(),
    "long": pa.int64(),
    "float": pa.float64(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}


def column_type(avro):
    """The Arrow type of an Avro type; decimals travel as text, of any width."""
    if isinstance(avro, list):
        return column_type(next(t for t in avro if t != "null"))
    if isinstance(avro, dict):
        if avro.get("logicalType") == "decimal":
            return pa.string()
        if avro.get("logicalType") in LOGICAL:
            return LOGICAL[avro["logicalType"]]
        if avro["type"] == "array":
            return pa.list_(column_type(avro["items"]))
        return column_type(avro["type"])
    return PRIMITIVE[avro]


def value(v):
    if isinstance(v, decimal.Decimal):
        return format(v, "f")
    if isinstance(v, list):
        return [value(x) for x in v]
    return v


def load_avro(path, target, context):
    try:
        with open(path, "rb") as file:
            reader = fastavro.reader(file)
            fields = reader.writer_schema["fields"]
            rows = list(reader)
    except Exception as error:
        raise InvalidQueryError("The Apache Avro library failed to read data: %s" % error) from error
    table = pa.table(
        {f["name"]: pa.array([value(r[f["name"]]) for r in rows], column_type(f["type"])) for f in fields}
    )
    connection = context.engine.connection
    connection.register("_avro_load", table)
    try:
        context.engine.execute("INSERT INTO %s BY NAME SELECT * FROM _avro_load" % target)
    finally:
        connection.unregister("_avro_load")


# DuckDB has no more digits; the emulator would refuse such a column
type_map._BQ_TO_DUCKDB["BIGNUMERIC"] = "DECIMAL(38, 18)"
engine.DuckDBEngine._load_spatial = lambda self: None
engine.DuckDBEngine._load_format_extensions = lambda self: None
executor._LOAD_FORMAT_HANDLERS["AVRO"] = load_avro
sys.exit(main())
