"""Reads the bucket `bucket` of an S3 server with the tools that people read tables with.

    python3 tests/clients/bucket.py ENDPOINT FOLDER

Downloads all objects into the folder with boto3, under their keys, and prints, as JSON, the number of rows below each
second-lowest prefix of them as pandas and polars read it from the store itself.
"""

import json
import pathlib
import sys

import boto3
import pandas
import polars
import pyarrow.fs

SECRETS = {"access_key": "reader", "secret_key": "reader"}


def main():
    endpoint, folder = sys.argv[1:]
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=SECRETS["access_key"],
        aws_secret_access_key=SECRETS["secret_key"],
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    for key in keys:
        path = pathlib.Path(folder, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file("bucket", key, str(path))
    store = pyarrow.fs.S3FileSystem(
        endpoint_override=endpoint.removeprefix("http://"), scheme="http", region="us-east-1", **SECRETS
    )
    options = {
        "aws_endpoint_url": endpoint,
        "aws_region": "us-east-1",
        "aws_access_key_id": SECRETS["access_key"],
        "aws_secret_access_key": SECRETS["secret_key"],
        "aws_allow_http": "true",
    }
    rows = {}
    for prefix in sorted({key.rpartition("/")[0] for key in keys}):
        by_pandas = pandas.read_parquet(f"bucket/{prefix}", filesystem=store)
        by_polars = polars.read_parquet(f"s3://bucket/{prefix}/*.parquet", storage_options=options)
        rows[prefix] = [len(by_pandas), len(by_polars)]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
