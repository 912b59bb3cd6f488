import { type DescMessage, isFieldSet, type Message } from '@bufbuild/protobuf';
import { MizzenError } from '@mizzen/common';

/**
 * Refuses a message in which something is said that nothing here acts on: the control plane gets a NACK with the field's name, instead of
 * a proxy that does something else than it was told. Names are those of protobuf-es (`maxRequestsPerConnection`).
 */
export function refuseUnsupported(schema: DescMessage, message: Message | undefined, supported: ReadonlySet<string>, place: string): void {
  if (message === undefined) return;
  for (const field of schema.fields)
    if (!supported.has(field.localName) && isFieldSet(message, field))
      throw new MizzenError('unsupported-field', `${place}: ${field.name} of ${schema.name} is not supported`);
}
