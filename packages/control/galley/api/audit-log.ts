import { isDeepStrictEqual } from 'node:util';
import { isPlainObject, type Resource } from '@mizzen/api';
import { type Logger, printableJson } from '@mizzen/common';
import { PrivateLog } from '../../citadel/private-log.ts';
import type { Caller } from './access-control.ts';

/** Who has changed what, or tried to. */
export interface AuditEntry {
  readonly time: string;
  readonly caller: Pick<Caller, 'name' | 'role' | 'by'> | undefined;
  readonly from: string;
  readonly verb: string;
  /** `networking.istio.io/virtualservices`. */
  readonly resource: string;
  readonly namespace: string | undefined;
  readonly name: string | undefined;
  readonly status: number;
  readonly isDryRun: boolean;
  readonly reason?: string;
  readonly changes?: readonly FieldChange[];
}

export interface FieldChange {
  readonly path: string;
  readonly before?: unknown;
  readonly after?: unknown;
}

const maxBytes = 50 * 1024 * 1024;
const maxChanges = 200;
const maxValueLength = 2_000;

/** An entry for each change of the configuration. */
export class AuditLog extends PrivateLog<AuditEntry> {
  constructor(path: string, logger: Logger) {
    super(path, maxBytes, 'the audit log', logger);
  }
}

/** What differs between two versions of an object, the server's own bookkeeping and its status aside. Of secrets only that they do. */
export function changesBetween(before: Resource | undefined, after: Resource | undefined): FieldChange[] {
  const changes: FieldChange[] = [];
  const isSecret = (before ?? after)?.kind === 'Secret';
  const shown = (value: unknown, path: string): unknown => {
    if (value === undefined) return undefined;
    const told = isSecret ? withoutSecrets(value, path) : value;
    const text = printableJson(told);
    return text.length > maxValueLength ? `${text.slice(0, maxValueLength)}...` : told;
  };
  const visit = (a: unknown, b: unknown, path: string) => {
    if (isDeepStrictEqual(a, b) || changes.length >= maxChanges) return;
    if (isPlainObject(a) && isPlainObject(b)) {
      for (const key of new Set([...Object.keys(a), ...Object.keys(b)])) visit(a[key], b[key], path === '' ? key : `${path}.${key}`);
      return;
    }
    const [from, to] = [shown(a, path), shown(b, path)];
    changes.push({ path, ...(from === undefined ? {} : { before: from }), ...(to === undefined ? {} : { after: to }) });
  };
  visit(withoutBookkeeping(before), withoutBookkeeping(after), '');
  return changes;
}

function withoutBookkeeping(resource: Resource | undefined): unknown {
  if (resource === undefined) return undefined;
  const { status: _, metadata, ...rest } = resource;
  const { managedFields: __, resourceVersion: ___, generation: ____, uid: _____, creationTimestamp: ______, ...named } = metadata;
  // kubectl keeps the whole object in it, the content of secrets too.
  const { 'kubectl.kubernetes.io/last-applied-configuration': _______, ...annotations } = named.annotations ?? {};
  return { ...rest, metadata: { ...named, ...(named.annotations === undefined ? {} : { annotations }) } };
}

const secretFields = ['data', 'stringData'];

/** A Secret, or what is at this path of it, with nothing of what it hides. */
function withoutSecrets(value: unknown, path: string): unknown {
  if (path === '' && isPlainObject(value))
    return { ...value, ...Object.fromEntries(secretFields.filter((field) => field in value).map((field) => [field, '(secret)'])) };
  return secretFields.includes(path.split('.')[0]!) ? '(secret)' : value;
}
