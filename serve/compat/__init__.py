"""Other services' interfaces on this project's scorers: OpenAI's moderations, Perspective, Presidio.

In: requests as those services' clients send them. Out: answers as those clients read them. Open `endpoints.py` first.
"""
