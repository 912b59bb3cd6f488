import { MizzenError } from '@mizzen/common';
import { HeaderValueOption_HeaderAppendAction as Action, type HeaderValueOption } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import type { HeaderList } from '../message/header-list.ts';
import { compileFormat, type LoggedStream } from '../telemetry/access-log.ts';

/** What one place of a configuration says of headers, as xDS has it. */
export interface HeaderMutations {
  readonly add: readonly HeaderValueOption[];
  readonly remove: readonly string[];
}

type Operation = {
  readonly name: string;
  readonly action: 'set' | 'add' | 'addIfAbsent' | 'setIfPresent' | 'remove';
  /** A text, or what it becomes for a request (`%DOWNSTREAM_REMOTE_ADDRESS%`). */
  readonly value: string | ((stream: LoggedStream) => string);
  readonly keepsEmpty: boolean;
};

/**
 * Headers to set, add and remove on requests or responses (core base.proto `HeaderValueOption`). undefined stands for "nothing to do". Of each place
 * what it removes goes first, then what it adds in its order; of several places the first goes first, so that the last has the last word.
 */
export class HeaderOperations {
  readonly #operations: readonly Operation[];
  /** Afterwards `host` may be another: the authority is to follow it. */
  readonly changesHost: boolean;

  private constructor(operations: readonly Operation[]) {
    this.#operations = operations;
    this.changesHost = operations.some(({ name }) => name === 'host');
  }

  static compile(places: readonly HeaderMutations[], place: string): HeaderOperations | undefined {
    const operations = places.flatMap(({ add, remove }) => [...remove.map((name) => removal(name, place)), ...add.map((option) => addition(option, place))]);
    return operations.length === 0 ? undefined : new HeaderOperations(operations);
  }

  apply(headers: HeaderList, stream: LoggedStream): void {
    for (let i = 0; i < this.#operations.length; i++) {
      const { name, action, value: given, keepsEmpty } = this.#operations[i]!;
      if (action === 'remove') {
        headers.remove(name);
        continue;
      }
      const value = typeof given === 'string' ? given : given(stream);
      if (value === '' && !keepsEmpty) continue;
      if (action === 'set') headers.set(name, value);
      else if (action === 'add') headers.add(name, value);
      else if (headers.has(name) === (action === 'setIfPresent')) headers.set(name, value);
    }
  }
}

const headerName = /^[!#$%&'*+\-.^_`|~0-9a-z]+$/;

function checkedName(given: string, place: string): string {
  const name = given.toLowerCase();
  if (name === ':authority') return 'host';
  if (!headerName.test(name)) throw new MizzenError('invalid-header', `${place}: ${JSON.stringify(given)} is no header that can be changed`);
  return name;
}

function removal(given: string, place: string): Operation {
  const name = checkedName(given, place);
  if (name === 'host') throw new MizzenError('invalid-header', `${place}: a request without host goes nowhere: it cannot be removed`);
  return { name, action: 'remove', value: '', keepsEmpty: false };
}

const actions: Readonly<Record<Action, Operation['action']>> = {
  [Action.APPEND_IF_EXISTS_OR_ADD]: 'add',
  [Action.ADD_IF_ABSENT]: 'addIfAbsent',
  [Action.OVERWRITE_IF_EXISTS_OR_ADD]: 'set',
  [Action.OVERWRITE_IF_EXISTS]: 'setIfPresent',
};

function addition(option: HeaderValueOption, place: string): Operation {
  const { key = '', value = '', rawValue } = option.header ?? {};
  const name = checkedName(key, place);
  const text = rawValue !== undefined && rawValue.length > 0 ? Buffer.from(rawValue).toString('latin1') : value;
  if (/[\x00-\x08\x0a-\x1f\x7f]/.test(text)) throw new MizzenError('invalid-header', `${place}: the value of ${name} holds control characters`);
  // The older `append`, where it is given, says the same.
  const action = option.append === false ? 'set' : option.append === true ? 'add' : actions[option.appendAction];
  return {
    name,
    action: name === 'host' && action === 'add' ? 'set' : action,
    value: text.includes('%') ? compileFormat(text, '', `${place}, header ${name}`) : text,
    keepsEmpty: option.keepEmptyValue,
  };
}
