import { type DescField, type DescMessage, isFieldSet, type Message } from '@bufbuild/protobuf';
import { MizzenError } from '@mizzen/common';

/**
 * Refuses a message in which something is said that nothing here acts on: the control plane gets a NACK with the field's name, instead of
 * a proxy that does something else than it was told. Names are those of protobuf-es (`maxRequestsPerConnection`).
 */
export function refuseUnsupported(schema: DescMessage, message: Message | undefined, supported: ReadonlySet<string>, place: string): void {
  if (message === undefined) return;
  for (const field of othersOf(schema, supported))
    if (isFieldSet(message, field)) throw new MizzenError('unsupported-field', `${place}: ${field.name} of ${schema.name} is not supported`);
}

/** The fields beside the supported ones, found once for each set: a table of routes asks ten thousands of times. */
const others = new WeakMap<ReadonlySet<string>, Map<DescMessage, readonly DescField[]>>();

function othersOf(schema: DescMessage, supported: ReadonlySet<string>): readonly DescField[] {
  let bySchema = others.get(supported);
  if (bySchema === undefined) others.set(supported, (bySchema = new Map()));
  let fields = bySchema.get(schema);
  if (fields === undefined) bySchema.set(schema, (fields = schema.fields.filter((field) => !supported.has(field.localName))));
  return fields;
}
