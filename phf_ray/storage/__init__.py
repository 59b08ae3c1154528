"""Storage: local disks and object stores behind one interface.

In: a path or a URL. Out: file systems, listings, and files that are either complete or absent.
`files.py` opens and writes, `listing.py` lists and matches, `object_stores.py` connects `s3://` and `gs://`. `hub.py`
finds models on the hub, `data_sets.py` data sets there and in folders, `licenses.py` reads their licences.
Everything that phf-ray stores goes through `files.write_file`. Open `files.py` first.
"""
