import type { Any } from '@bufbuild/protobuf/wkt';
import { MizzenError, messageOf } from '@mizzen/common';

/** Refused resources that the error of an update names; it counts the others. */
const maxNamedRefusals = 10;

/** Resources of one update that cannot be used, each with the reason. */
export class Refusals {
  readonly reasons: string[];
  /** One cannot be read, so that its name is not known: no resource may be taken for removed. */
  hasUnnamed: boolean;

  constructor() {
    this.reasons = [];
    this.hasUnnamed = false;
  }

  /** What is read from the resource, or undefined. */
  read<Message extends { readonly name: string } | { readonly clusterName: string }>(
    type: string,
    any: Any,
    read: (bytes: Uint8Array) => Message,
  ): Message | undefined {
    try {
      return read(any.value);
    } catch (error) {
      this.hasUnnamed = true;
      this.reasons.push(`a ${type} resource cannot be read: ${messageOf(error)}`);
      return undefined;
    }
  }

  /** What is compiled of the resource, or undefined. */
  compile<Compiled>(type: string, name: string, compile: () => Compiled): Compiled | undefined {
    try {
      return compile();
    } catch (error) {
      const reason = messageOf(error);
      this.reasons.push(reason.includes(name) ? reason : `${type} ${name}: ${reason}`);
      return undefined;
    }
  }

  /** Throws MizzenError when there are any. */
  throwIfAny(): void {
    const { reasons } = this;
    if (reasons.length === 0) return;
    const others = reasons.length > maxNamedRefusals ? `; and ${reasons.length - maxNamedRefusals} more` : '';
    throw new MizzenError('invalid-resource', `${reasons.slice(0, maxNamedRefusals).join('; ')}${others}`);
  }
}
