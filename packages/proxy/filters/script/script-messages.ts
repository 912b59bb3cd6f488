import { isHeaderName, isHeaderValue, utf8Bytes, withoutOuterSpace } from '../../message/header-bytes.ts';
import { isFinalStatus } from '../../message/response-head.ts';

/** What a proxy and the process of a user's filter send to each other: lines of JSON, validated by their reader (`readFromProcess`). */
export interface SentRequest {
  readonly method: string;
  readonly path: string;
  readonly authority: string;
  readonly headers: readonly (readonly [string, string])[];
  readonly remoteAddress: string;
  readonly consumer: { readonly name: string; readonly groups: readonly string[]; readonly claims: Readonly<Record<string, unknown>> } | undefined;
  readonly principal: string;
}

export interface ScriptCall {
  readonly id: number;
  readonly phase: 'request' | 'response';
  /** JSON of the configuration: compiled once by the process. */
  readonly config: string;
  readonly request: SentRequest;
  readonly response: { readonly status: number; readonly headers: readonly (readonly [string, string])[] } | undefined;
}

type Fields = readonly (readonly [string, string])[];

export type ScriptResult =
  | {
      readonly kind: 'continue';
      /** undefined: unchanged. */
      readonly path: string | undefined;
      readonly status: number | undefined;
      readonly headers: Fields | undefined;
    }
  | { readonly kind: 'answer'; readonly status: number; readonly body: string; readonly headers: Fields }
  | { readonly kind: 'error'; readonly message: string };

export type FromProcess =
  | { readonly kind: 'loaded'; readonly hasRequest: boolean; readonly hasResponse: boolean }
  | { readonly kind: 'failed'; readonly message: string }
  /** An exception or rejection that belongs to no call. */
  | { readonly kind: 'stray'; readonly message: string }
  /** The call whose synchronous code runs from now on; 0: none. */
  | { readonly kind: 'running'; readonly id: number }
  | { readonly kind: 'beat' }
  | { readonly kind: 'result'; readonly id: number; readonly result: ScriptResult };

export const heartbeatMs = 100;
/** The body of a local reply. */
export const maxBodyBytes = 1024 * 1024;
/** Names and values of the fields that a filter hands back. */
export const maxFieldBytes = 64 * 1024;
export const maxPathBytes = 16 * 1024;
/** One line from the process: a body in which every byte is escaped, and fields. */
export const maxLineBytes = 8 * 1024 * 1024;
const maxMessageLength = 1_000;

/** Validates a line that the process of a filter sent; undefined: it is not a message. A result with wrong values is the error of its call. */
export function readFromProcess(line: string): FromProcess | undefined {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return undefined;
  }
  if (!isObject(value)) return undefined;
  const { kind, id } = value;
  if (kind === 'beat') return { kind };
  if (kind === 'loaded') return { kind, hasRequest: value['hasRequest'] === true, hasResponse: value['hasResponse'] === true };
  if (kind === 'failed' || kind === 'stray') return { kind, message: textOf(value['message']) };
  if (!Number.isSafeInteger(id)) return undefined;
  if (kind === 'running') return { kind, id: id as number };
  if (kind === 'result') return { kind, id: id as number, result: validatedResult(value['result']) };
  return undefined;
}

/** A result in which each value is one that the proxy can put into a message. */
export function validatedResult(value: unknown): ScriptResult {
  const wrong = (message: string): ScriptResult => ({ kind: 'error', message });
  if (!isObject(value)) return wrong('its result is not an object');
  const { kind, status, path, body } = value;
  if (kind === 'error') return wrong(textOf(value['message']));
  if (status !== undefined && !(typeof status === 'number' && isFinalStatus(status))) return wrong(`${textOf(status)} cannot be a status: use 200 to 599`);
  const headers = value['headers'] === undefined ? undefined : validatedFields(value['headers']);
  if (typeof headers === 'string') return wrong(headers);
  if (kind === 'continue') {
    if (path !== undefined && (typeof path !== 'string' || !path.startsWith('/') || /[\x00-\x20\x7f-\uffff]/.test(path)))
      return wrong(`${textOf(path)} cannot be a path`);
    if (path !== undefined && path.length > maxPathBytes) return wrong(`its path is longer than ${maxPathBytes} bytes`);
    return { kind, path, status, headers };
  }
  if (kind !== 'answer' || status === undefined) return wrong('its result is neither nothing nor a response made by respond()');
  if (typeof body !== 'string') return wrong('the body of its response is not text');
  if (Buffer.byteLength(body) > maxBodyBytes) return wrong(`the body of its response is larger than ${maxBodyBytes} bytes`);
  return { kind, status, body, headers: headers ?? [] };
}

/** The fields, or what is wrong with them. */
function validatedFields(value: unknown): Fields | string {
  if (!Array.isArray(value)) return 'its headers are not a list';
  let bytes = 0;
  const fields: (readonly [string, string])[] = [];
  for (const field of value as readonly unknown[]) {
    if (!Array.isArray(field)) return 'one of its headers is not a name and a value';
    const [name, content] = field as readonly unknown[];
    if (typeof name !== 'string' || !isHeaderName(name)) return `${textOf(name)} cannot be the name of a header`;
    if (typeof content !== 'string' || !isHeaderValue(utf8Bytes(withoutOuterSpace(content))))
      return `the value of the header ${name} is not one that HTTP can carry`;
    bytes += name.length + Buffer.byteLength(content);
    if (bytes > maxFieldBytes) return `its headers are larger than ${maxFieldBytes} bytes`;
    fields.push([name, content]);
  }
  return fields;
}

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> => typeof value === 'object' && value !== null && !Array.isArray(value);

function textOf(value: unknown): string {
  return (typeof value === 'string' ? value : (JSON.stringify(value) ?? 'undefined')).slice(0, maxMessageLength);
}
