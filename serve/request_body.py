"""The base of request bodies: null in a field that may be left out means the field's default.

Clients build a body from their own objects and write null for whatever is not set.
"""

from typing import Any

from pydantic import BaseModel, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue

_NULL = {"type": "null"}


class RequestBody(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in values.items() if value is not None or name not in optional}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say in the OpenAPI document, too, that an optional field may be null."""
        found = handler(core_schema)
        schema = handler.resolve_ref_schema(found)
        properties = schema.get("properties", {})
        for name in set(properties) - set(schema.get("required", ())):
            properties[name] = _or_null(properties[name])
        return found


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    if _NULL in field.get("anyOf", ()):
        return field
    about: dict[str, Any] = {key: field[key] for key in ("default", "description", "title") if key in field}
    return {"anyOf": [{key: value for key, value in field.items() if key not in about}, _NULL], **about}
