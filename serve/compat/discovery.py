"""Perspective's interface in Google's discovery format, for googleapiclient."""

from typing import Any
from urllib.parse import urlencode


def discovery_document(base_url: str, *, key: str | None = None) -> dict[str, Any]:
    """Return Perspective's interface in Google's discovery format, with this server's address instead of Google's.

    `key` is the caller's API key. googleapiclient adds it to every request except a batch, so the batch path holds it.
    """
    string, number, boolean, integer = ({"type": kind} for kind in ("string", "number", "boolean", "integer"))

    def reference(name: str) -> dict[str, str]:
        return {"$ref": name}

    def listing(items: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "items": items}

    properties: dict[str, dict[str, Any]] = {
        "TextEntry": {"text": string, "type": string},
        "AttributeParameters": {"scoreType": string, "scoreThreshold": number},
        "AnalyzeCommentRequest": {
            "comment": reference("TextEntry"),
            "requestedAttributes": {"type": "object", "additionalProperties": reference("AttributeParameters")},
            "languages": listing(string),
            "spanAnnotations": boolean,
            "doNotStore": boolean,
            "clientToken": string,
            "sessionId": string,
            "communityId": string,
        },
        "Score": {"value": number, "type": string},
        "SpanScore": {"begin": integer, "end": integer, "score": reference("Score")},
        "AttributeScores": {"summaryScore": reference("Score"), "spanScores": listing(reference("SpanScore"))},
        "AnalyzeCommentResponse": {
            "attributeScores": {"type": "object", "additionalProperties": reference("AttributeScores")},
            "languages": listing(string),
            "detectedLanguages": listing(string),
            "clientToken": string,
        },
    }
    root = base_url if base_url.endswith("/") else f"{base_url}/"
    return {
        "kind": "discovery#restDescription",
        "discoveryVersion": "v1",
        "id": "commentanalyzer:v1alpha1",
        "name": "commentanalyzer",
        "version": "v1alpha1",
        "title": "Perspective Comment Analyzer API, answered by phf-ray",
        "protocol": "rest",
        "rootUrl": root,
        "servicePath": "",
        "baseUrl": root,
        "batchPath": "batch" if key is None else f"batch?{urlencode({'key': key})}",
        "parameters": {
            "key": {"type": "string", "location": "query", "description": "API key"},
            "alt": {"type": "string", "location": "query", "default": "json", "enum": ["json"]},
        },
        "schemas": {name: {"id": name, "type": "object", "properties": fields} for name, fields in properties.items()},
        "resources": {
            "comments": {
                "methods": {
                    "analyze": {
                        "id": "commentanalyzer.comments.analyze",
                        "path": "v1alpha1/comments:analyze",
                        "flatPath": "v1alpha1/comments:analyze",
                        "httpMethod": "POST",
                        "parameters": {},
                        "parameterOrder": [],
                        "request": reference("AnalyzeCommentRequest"),
                        "response": reference("AnalyzeCommentResponse"),
                    }
                }
            }
        },
    }
