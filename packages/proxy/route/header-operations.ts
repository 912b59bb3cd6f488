import { type HeaderValueOption, HeaderValueOption_HeaderAppendAction } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import type { HeaderList } from '../message/header-list.ts';

/** Headers to set, add and remove on a route's requests or responses. undefined stands for "nothing to do". */
export class HeaderOperations {
  readonly #set: readonly (readonly [string, string])[];
  readonly #add: readonly (readonly [string, string])[];
  readonly #remove: readonly string[];

  private constructor(set: readonly (readonly [string, string])[], add: readonly (readonly [string, string])[], remove: readonly string[]) {
    this.#set = set;
    this.#add = add;
    this.#remove = remove;
  }

  static compile(options: readonly HeaderValueOption[], remove: readonly string[]): HeaderOperations | undefined {
    if (options.length === 0 && remove.length === 0) return undefined;
    const pair = (option: HeaderValueOption) => [option.header?.key.toLowerCase() ?? '', option.header?.value ?? ''] as const;
    const overwrites = (option: HeaderValueOption) =>
      option.appendAction === HeaderValueOption_HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD || option.append === false;
    return new HeaderOperations(
      options.filter(overwrites).map(pair),
      options.filter((option) => !overwrites(option)).map(pair),
      remove.map((name) => name.toLowerCase()),
    );
  }

  apply(headers: HeaderList): void {
    for (const name of this.#remove) headers.remove(name);
    for (const [name, value] of this.#set) headers.set(name, value);
    for (const [name, value] of this.#add) headers.add(name, value);
  }
}
