"""The page itself, drawn by Gradio, which only this folder needs: an optional extra.

The page asks nobody but its own host: no telemetry, no fonts or scripts of others, which its headers forbid, too.
`app.py` serves it, `settings.py` says what it begins with, `layout.py` what stands on it, `events.py` what its buttons
do.
"""

import os

# Read when Gradio is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"
