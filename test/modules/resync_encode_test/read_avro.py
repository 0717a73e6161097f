"""Reads every *.avro file of a directory with fastavro, an implementation that
is not ours, and prints a line per row: file, the extra columns, and the value of
column v in the form that 040_bigquery_encode.pl makes of PostgreSQL's."""

import datetime
import decimal
import glob
import os
import struct
import sys

import fastavro

decimal.getcontext().prec = 200


def text(value):
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, list):
        return "[" + ",".join(text(v) for v in value) + "]"
    if isinstance(value, decimal.Decimal):
        if value == 0:
            return "0"
        s = format(value, "f")
        return s.rstrip("0").rstrip(".") if "." in s else s
    if isinstance(value, float):
        return struct.pack(">d", value).hex()
    if isinstance(value, datetime.datetime):
        zone = "" if value.tzinfo is None else "+00"
        return value.replace(tzinfo=None).isoformat(" ", "microseconds") + zone
    if isinstance(value, datetime.time):
        return value.isoformat("microseconds")
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, str):
        return value.encode().hex()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


for path in sorted(glob.glob(os.path.join(sys.argv[1], "*.avro"))):
    name = os.path.basename(path)[: -len(".avro")]
    with open(path, "rb") as file:
        for row in fastavro.reader(file):
            extra = "%s/%s" % (row["_op"], row["_n"])
            print(name, extra, text(row["v"]), sep="\t")
    with open(path, "rb") as file:
        blocks = list(fastavro.block_reader(file))
        print(name, "blocks", len(blocks), sep="\t")
        if any(b.num_records == 0 for b in blocks):
            print(name, "empty block", sep="\t")
