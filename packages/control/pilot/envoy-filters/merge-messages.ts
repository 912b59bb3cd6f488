import { type DescField, type DescMessage, fromBinary, isFieldSet, type Message, type Registry, toBinary } from '@bufbuild/protobuf';
import { type ReflectMessage, reflect } from '@bufbuild/protobuf/reflect';
import type { Any } from '@bufbuild/protobuf/wkt';

/**
 * Merges what a patch says into a message, in place (Istio's reading of protobuf's merge): scalars are set, lists grow, maps gain entries, messages are
 * merged field by field, what is packed is unpacked for it; durations and wrapped values are replaced whole.
 */
export function mergeMessages(schema: DescMessage, into: Message, patch: Message, registry: Registry): void {
  mergeReflected(reflect(schema, into), reflect(schema, patch), registry);
}

function mergeReflected(into: ReflectMessage, patch: ReflectMessage, registry: Registry): void {
  for (const field of patch.desc.fields) {
    if (!isFieldSet(patch.message, field)) continue;
    switch (field.fieldKind) {
      case 'list':
        for (const item of patch.get(field)) into.get(field).add(item as never);
        break;
      case 'map':
        for (const [key, value] of patch.get(field).entries()) mergeEntry(into, field, key, value, registry);
        break;
      case 'message':
        mergeField(into, patch, field, registry);
        break;
      default:
        into.set(field, patch.get(field) as never);
    }
  }
}

function mergeField(into: ReflectMessage, patch: ReflectMessage, field: DescField & { fieldKind: 'message' }, registry: Registry): void {
  const value = patch.get(field) as ReflectMessage;
  if (!isFieldSet(into.message, field) || isWhole(field.message)) return into.set(field, value);
  const existing = into.get(field) as ReflectMessage;
  if (field.message.typeName === 'google.protobuf.Any') mergeAny(existing.message as Any, value.message as Any, registry);
  else if ('fields' in existing) mergeReflected(existing, value, registry);
  else into.set(field, value);
}

function mergeEntry(into: ReflectMessage, field: DescField & { fieldKind: 'map' }, key: unknown, value: unknown, registry: Registry): void {
  const map = into.get(field);
  const existing = map.get(key as never) as ReflectMessage | undefined;
  if (existing !== undefined && field.mapKind === 'message' && field.message.typeName === 'google.protobuf.Any')
    mergeAny(existing.message as Any, (value as ReflectMessage).message as Any, registry);
  else if (existing !== undefined && field.mapKind === 'message' && !isWhole(field.message)) mergeReflected(existing, value as ReflectMessage, registry);
  else map.set(key as never, value as never);
}

/** Packed messages of one type are merged; one of another type takes the place. */
function mergeAny(into: Any, patch: Any, registry: Registry): void {
  const schema = registry.getMessage(into.typeUrl.slice(into.typeUrl.lastIndexOf('/') + 1));
  if (into.typeUrl === patch.typeUrl && schema) {
    const message = fromBinary(schema, into.value);
    mergeMessages(schema, message, fromBinary(schema, patch.value), registry);
    into.value = toBinary(schema, message);
  } else {
    into.typeUrl = patch.typeUrl;
    into.value = patch.value;
  }
}

const isWhole = ({ typeName }: DescMessage) => typeName.startsWith('google.protobuf.') && typeName !== 'google.protobuf.Any';
