import { type DescField, type DescMessage, isFieldSet, type Message } from '@bufbuild/protobuf';
import { MizzenError } from '@mizzen/common';

/**
 * Refuses a message in which something is said that nothing here acts on: the control plane gets a NACK with the field's name, instead of
 * a proxy that does something else than it was told. Names are those of protobuf-es (`maxRequestsPerConnection`).
 */
export function refuseUnsupported(schema: DescMessage, message: Message | undefined, supported: ReadonlySet<string>, place: string): void {
  if (message === undefined) return;
  // Of a newer control plane: a field that this version cannot even name.
  const unknown = message.$unknown?.[0];
  if (unknown !== undefined) throw new MizzenError('unsupported-field', `${place}: field ${unknown.no} of ${schema.name} is not supported`);
  if (withheld.size > 0)
    for (const { localName, name } of schema.fields)
      if (isWithheld(`${schema.typeName}.${localName}`) && isFieldSet(message, schema.field[localName]!))
        throw new MizzenError('unsupported-field', `${place}: ${name} of ${schema.name} is not supported`);
  for (const field of othersOf(schema, supported))
    if (isFieldSet(message, field)) throw new MizzenError('unsupported-field', `${place}: ${field.name} of ${schema.name} is not supported`);
}

const registered = new Map<string, ReadonlySet<string>>();
const withheld = new Set<string>();

/** Names the fields of a message that this version acts on. They become a part of the features that the proxy declares to the control plane. */
export function supportedFields(schema: DescMessage, names: readonly string[]): ReadonlySet<string> {
  const supported = new Set(names);
  registered.set(schema.typeName, supported);
  return supported;
}

/** All that were named, by message type. */
export function registeredFields(): ReadonlyMap<string, ReadonlySet<string>> {
  return registered;
}

/** A hook for tests: this process behaves as an older version that does not know these fields (`TYPE.name`) and HTTP filters; with `declaration` it declares no features. */
export function withholdFeatures(names: readonly string[]): void {
  withheld.clear();
  for (const name of names) withheld.add(name);
}

export function isWithheld(name: string): boolean {
  return withheld.size > 0 && withheld.has(name);
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
