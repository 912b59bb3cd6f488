import { clone, type DescField, type DescMessage, fromBinary, getOption, type Message, type Registry, ScalarType, toBinary } from '@bufbuild/protobuf';
import { type ReflectMessage, reflect } from '@bufbuild/protobuf/reflect';
import { type Any, AnySchema } from '@bufbuild/protobuf/wkt';
import { sensitive } from './gen/udpa/annotations/sensitive_pb.js';

const shown = '[redacted]';

/**
 * The one redaction, for every dump, log and API response that shows configuration: what is secret is typed so in its proto, not known by its place.
 * A copy of a message in which every field that its proto calls sensitive (udpa.annotations.sensitive) says so instead of what it holds, also in
 * messages that are packed in it.
 */
export function redacted<Desc extends DescMessage>(schema: Desc, message: Message, registry: Registry): Message {
  const copy = clone(schema, message as never);
  redact(reflect(schema, copy), registry);
  return copy;
}

function redact(message: ReflectMessage, registry: Registry): void {
  if (message.desc.typeName === AnySchema.typeName) return redactPacked(message.message as Any, registry);
  // Fields that the schema does not know may hold anything.
  message.setUnknown([]);
  for (const field of message.fields) {
    if (!message.isSet(field)) continue;
    if (getOption(field, sensitive)) hide(message, field);
    else if (field.fieldKind === 'message') redact(message.get(field), registry);
    else if (field.fieldKind === 'list' && field.listKind === 'message') for (const entry of message.get(field)) redact(entry as ReflectMessage, registry);
    else if (field.fieldKind === 'map' && field.mapKind === 'message') for (const [, entry] of message.get(field)) redact(entry as ReflectMessage, registry);
  }
}

function hide(message: ReflectMessage, field: DescField): void {
  if (field.fieldKind === 'scalar' && field.scalar === ScalarType.STRING) message.set(field, shown);
  else if (field.fieldKind === 'scalar' && field.scalar === ScalarType.BYTES) message.set(field, Buffer.from(shown));
  else message.clear(field);
}

function redactPacked(any: Any, registry: Registry): void {
  const schema = registry.getMessage(any.typeUrl.slice(any.typeUrl.lastIndexOf('/') + 1));
  if (schema === undefined) return hideUnknown(any);
  const inner = fromBinary(schema, any.value);
  redact(reflect(schema, inner), registry);
  any.value = toBinary(schema, inner);
}

/** A packed resource for an API response: its sensitive fields are redacted, and nothing of a type that is not known here is shown. */
export function redactedAny(any: Any, registry: Registry): Any {
  const copy = clone(AnySchema, any);
  try {
    redactPacked(copy, registry);
  } catch {
    hideUnknown(copy);
  }
  return copy;
}

/** What cannot be read could be secret. */
function hideUnknown(any: Any): void {
  any.value = new Uint8Array();
}
