import { MizzenError } from '@mizzen/common';
import { HeaderValueOption_HeaderAppendAction as Action, type HeaderValueOption } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { utf8Bytes } from '../message/header-bytes.ts';
import type { HeaderList } from '../message/header-list.ts';
import { compileFormat, type LoggedStream } from '../telemetry/access-log.ts';

/** What one place of a configuration says of headers, as xDS has it. */
export interface HeaderMutations {
  readonly add: readonly HeaderValueOption[];
  readonly remove: readonly string[];
}

/** A text, or what it becomes for a request (`%DOWNSTREAM_REMOTE_ADDRESS%`). */
type Value = string | ((stream: LoggedStream) => string);

interface Addition {
  readonly name: string;
  readonly action: 'set' | 'add' | 'addIfAbsent' | 'setIfPresent';
  readonly value: Value;
  readonly keepsEmpty: boolean;
}

/** What one place says. */
interface Step {
  readonly remove: readonly string[];
  readonly additions: readonly Addition[];
}

/**
 * Headers to set, add and remove on requests or responses (core base.proto `HeaderValueOption`). undefined stands for "nothing to do". Of several
 * places the first goes first, so that the last has the last word. Within one, what it removes goes first; then it is seen which headers are there,
 * and what is set comes before what is added (envoy header_parser.cc).
 */
export class HeaderOperations {
  readonly #steps: readonly Step[];
  /** Afterwards `host` may be another: the authority is to follow it. */
  readonly changesHost: boolean;

  private constructor(steps: readonly Step[]) {
    this.#steps = steps;
    this.changesHost = steps.some(({ additions }) => additions.some(({ name }) => name === 'host'));
  }

  static compile(places: readonly HeaderMutations[], place: string): HeaderOperations | undefined {
    const steps = places
      .filter(({ add, remove }) => add.length + remove.length > 0)
      .map(({ add, remove }): Step => ({ remove: remove.map((name) => removedName(name, place)), additions: add.map((option) => addition(option, place)) }));
    return steps.length === 0 ? undefined : new HeaderOperations(steps);
  }

  apply(headers: HeaderList, stream: LoggedStream): void {
    for (let i = 0; i < this.#steps.length; i++) applyStep(this.#steps[i]!, headers, stream);
  }
}

function applyStep({ remove, additions }: Step, headers: HeaderList, stream: LoggedStream): void {
  for (let i = 0; i < remove.length; i++) headers.remove(remove[i]!);
  let added: (readonly [name: string, value: string])[] | undefined;
  let set: (readonly [name: string, value: string])[] | undefined;
  for (let i = 0; i < additions.length; i++) {
    const { name, action, value: given, keepsEmpty } = additions[i]!;
    if (action === 'addIfAbsent' ? headers.has(name) : action === 'setIfPresent' && !headers.has(name)) continue;
    const value = typeof given === 'string' ? given : given(stream);
    if (value === '' && !keepsEmpty) continue;
    if (action === 'add' || action === 'addIfAbsent') (added ??= []).push([name, value]);
    else (set ??= []).push([name, value]);
  }
  if (set !== undefined) for (const [name, value] of set) headers.set(name, value);
  if (added !== undefined) for (const [name, value] of added) headers.add(name, value);
}

const headerName = /^[!#$%&'*+\-.^_`|~0-9a-z]+$/;

function checkedName(given: string, place: string): string {
  const name = given.toLowerCase();
  if (name === ':authority') return 'host';
  if (!headerName.test(name)) throw new MizzenError('invalid-header', `${place}: ${JSON.stringify(given)} is no header that can be changed`);
  return name;
}

function removedName(given: string, place: string): string {
  const name = checkedName(given, place);
  if (name === 'host') throw new MizzenError('invalid-header', `${place}: a request without host goes nowhere: it cannot be removed`);
  return name;
}

const actions: Readonly<Record<Action, Addition['action']>> = {
  [Action.APPEND_IF_EXISTS_OR_ADD]: 'add',
  [Action.ADD_IF_ABSENT]: 'addIfAbsent',
  [Action.OVERWRITE_IF_EXISTS_OR_ADD]: 'set',
  [Action.OVERWRITE_IF_EXISTS]: 'setIfPresent',
};

function addition(option: HeaderValueOption, place: string): Addition {
  const { key = '', value = '', rawValue } = option.header ?? {};
  const name = checkedName(key, place);
  const text = rawValue !== undefined && rawValue.length > 0 ? Buffer.from(rawValue).toString('latin1') : utf8Bytes(value);
  if (name === 'transfer-encoding' || name === 'content-length')
    throw new MizzenError('invalid-header', `${place}: ${name} frames the message and cannot be set`);
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
