"""Copies trees and files with boto3: boto3_copy.py up|down|put|get|remove BUCKET [PATH]. Endpoint, CA and credentials come from AWS_* variables."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import boto3

PREFIX, LARGE = "tree/", "large"
verb, bucket = sys.argv[1:3]
path = sys.argv[3] if len(sys.argv) > 3 else None
endpoint = os.environ["AWS_ENDPOINT_URL"]  # named to the client, since boto3 before 1.28 does not read it
s3 = boto3.client("s3", endpoint_url=endpoint)


def each(function, items):
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(function, items):  # raises what a call raised
            pass


def keys():
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            yield item["Key"]


def download(key):
    target = os.path.join(path, key[len(PREFIX):])
    os.makedirs(os.path.dirname(target), exist_ok=True)
    s3.download_file(bucket, key, target)


if verb == "up":
    s3.create_bucket(Bucket=bucket)
    files = [os.path.join(d, f) for d, _, names in os.walk(path) for f in names]
    each(lambda f: s3.upload_file(f, bucket, PREFIX + os.path.relpath(f, path)), files)
elif verb == "down":
    each(download, [k for k in keys() if k.startswith(PREFIX)])
elif verb == "put":
    s3.upload_file(path, bucket, LARGE)
elif verb == "get":
    s3.download_file(bucket, LARGE, path)
elif verb == "remove":
    boto3.resource("s3", endpoint_url=endpoint).Bucket(bucket).objects.delete()
    s3.delete_bucket(Bucket=bucket)
else:
    sys.exit("unknown verb " + verb)
