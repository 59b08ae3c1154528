"""HTTP: one JSON client with retries, for phf-ray's own servers and OpenAI-compatible ones.

In: a URL, a key, a JSON body. Out: a JSON object; ServiceError if no answer came in time, RefusedError if the server
refused. Open `client.py`.
"""
