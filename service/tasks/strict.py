"""Rules of all request bodies: no coercion, no unknown fields, valid Unicode."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError


def valid_unicode(text: str) -> str:
    """Refuse lone surrogates, which JSON can escape (half an emoji) but which are not valid Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "invalid_unicode",
            "the text holds half a surrogate pair at character {place}; it was probably cut inside an emoji",
            {"place": error.start},
        ) from error
    return text


Text = Annotated[str, AfterValidator(valid_unicode)]


class StrictModel(BaseModel):
    """Base of request bodies: an error about an unknown field lists the allowed ones, and null stands for a default."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given, fields = cast("dict[Any, Any]", data), cls.model_fields
        unknown = [str(name) for name in given if name not in fields]
        if unknown:
            raise PydanticCustomError(
                "unknown_field",
                "unknown field {unknown}; allowed: {allowed}",
                {"unknown": ", ".join(map(repr, unknown[:5])), "allowed": ", ".join(fields)},
            )
        if None not in given.values():
            return given
        return {name: value for name, value in given.items() if value is not None or not _has_default(fields[name])}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Document that null stands for a default."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, one in properties.items():
            if _has_default(cls.model_fields[name]):
                properties[name] = _or_null(one)
        return schema


def _has_default(field: FieldInfo) -> bool:
    """Whether the field has a default other than null, which its type would allow anyway."""
    return not field.is_required() and field.default is not None


def _or_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    said = {name: value for name, value in schema.items() if name in ("title", "description", "default", "examples")}
    rule = {name: value for name, value in schema.items() if name not in said}
    return {"anyOf": [rule, {"type": "null"}], **said}
