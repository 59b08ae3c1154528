"""HTTP: one JSON client, with patience, for servers of phf-ray and OpenAI-compatible ones.

In: a URL, a key, a JSON body. Out: a JSON object; ServiceError if none came in time, RefusedError if the server
refuses. Open `client.py`.
"""
