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
const maxFilesBefore = 10;
const maxChanges = 200;
const maxValueLength = 2_000;
/** Of names and reasons, which a caller chooses. */
const maxTextLength = 300;
/** All changes of one entry, as JSON. What is beyond is left out with a note. */
const maxChangesLength = 32_000;
/** Entries in a minute about what one caller was refused. Further ones are counted. */
const maxRefusalsPerMinute = 60;
const minuteMs = 60_000;

interface Refused {
  readonly minute: number;
  readonly count: number;
}

/** An entry for each change of the configuration, and for attempts that were refused: of one caller so many that they cannot displace what others have done. */
export class AuditLog extends PrivateLog<AuditEntry> {
  readonly #now: () => number;
  readonly #refused: Map<string, Refused>;

  constructor(path: string, logger: Logger, now: () => number = Date.now) {
    super(path, maxBytes, 'the audit log', logger, maxFilesBefore);
    this.#now = now;
    this.#refused = new Map();
  }

  override write(entry: AuditEntry): void {
    if (entry.status < 400) return super.write(shortened(entry));
    const minute = Math.floor(this.#now() / minuteMs);
    const caller = entry.caller?.name ?? entry.from;
    const before = this.#refused.get(caller);
    if (before !== undefined && before.minute !== minute && before.count > maxRefusalsPerMinute)
      super.write({ ...shortened(entry), reason: `${before.count - maxRefusalsPerMinute} more attempts of ${caller} were refused in an earlier minute` });
    const count = before?.minute === minute ? before.count + 1 : 1;
    if (this.#refused.size > 1_000) this.#refused.clear();
    this.#refused.set(caller, { minute, count });
    if (count <= maxRefusalsPerMinute) super.write(shortened(entry));
  }
}

function shortened(entry: AuditEntry): AuditEntry {
  const short = (text: string) => (text.length > maxTextLength ? `${text.slice(0, maxTextLength)}...` : text);
  const { resource, namespace, name, reason, changes } = entry;
  return {
    ...entry,
    resource: short(resource),
    namespace: namespace === undefined ? undefined : short(namespace),
    name: name === undefined ? undefined : short(name),
    ...(reason === undefined ? {} : { reason: short(reason) }),
    ...(changes === undefined ? {} : { changes: withinLength(changes) }),
  };
}

function withinLength(changes: readonly FieldChange[]): readonly FieldChange[] {
  let length = 0;
  const kept = changes.filter((change) => (length += printableJson(change).length) <= maxChangesLength);
  return kept.length === changes.length ? changes : [...kept, { path: `(${changes.length - kept.length} more fields)` }];
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
