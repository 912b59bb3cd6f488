import { isPlainObject } from '@mizzen/api';
import { messageOf } from '@mizzen/common';
import { parseYaml } from '@mizzen/common/bounded-yaml';
import { parseSpiffeUri } from '../../citadel/spiffe-identity.ts';
import { type Role, roles } from './access-control.ts';

/** The roles that client certificates have: the key `bindings` of this ConfigMap, a list of { subject, role, namespaces }. */
export const accessConfigMap = { namespace: 'istio-system', name: 'mizzen-access' } as const;

/** One role of one service account. */
export interface AccessBinding {
  /** A SPIFFE id. */
  readonly subject: string;
  readonly role: Role;
  /** undefined: all. */
  readonly namespaces: readonly string[] | undefined;
}

export interface AccessBindings {
  readonly bindings: readonly AccessBinding[];
  /** Why entries grant nothing. */
  readonly problems: readonly string[];
}

const fields = new Set(['subject', 'role', 'namespaces']);
const namespaceName = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;

/**
 * Reads the list. An entry that is not exactly of its form grants nothing: `namespaces: shop` or `namespace: shop` must not mean all namespaces. Throws when
 * the text is not a list in YAML.
 */
export function readAccessBindings(text: string): AccessBindings {
  const list: unknown = parseYaml(text);
  if (list === null || list === undefined) return { bindings: [], problems: [] };
  if (!Array.isArray(list)) throw new Error('a list of { subject, role, namespaces } is needed');
  const bindings: AccessBinding[] = [];
  const problems: string[] = [];
  for (const [i, entry] of list.entries()) {
    const problem =
      problemOf(entry) ?? (bindings.some(({ subject }) => subject === (entry as AccessBinding).subject) ? 'its subject has a role already' : undefined);
    if (problem === undefined) bindings.push(entry as AccessBinding);
    else problems.push(`entry ${i}: ${problem}`);
  }
  return { bindings: bindings.map(({ subject, role, namespaces }) => ({ subject, role, namespaces })), problems };
}

/** Why the ConfigMap is refused at its write; undefined: it is accepted, or another object. */
export function refusedBindings({ kind, metadata, data }: { readonly kind: string; readonly metadata: object; readonly data?: unknown }): string | undefined {
  const { namespace, name } = metadata as { readonly namespace?: string; readonly name?: string };
  if (kind !== 'ConfigMap' || namespace !== accessConfigMap.namespace || name !== accessConfigMap.name) return undefined;
  const text = isPlainObject(data) ? data['bindings'] : undefined;
  if (typeof text !== 'string') return undefined;
  try {
    const [problem] = readAccessBindings(text).problems;
    return problem === undefined ? undefined : `data.bindings: ${problem}`;
  } catch (error) {
    return `data.bindings: ${messageOf(error)}`;
  }
}

function problemOf(entry: unknown): string | undefined {
  if (!isPlainObject(entry)) return 'it is not an object { subject, role, namespaces }';
  const unknown = Object.keys(entry).find((field) => !fields.has(field));
  if (unknown !== undefined) return `the field ${JSON.stringify(unknown.slice(0, 50))} is not known: ${[...fields].join(', ')}`;
  const { subject, role } = entry;
  if (typeof subject !== 'string' || parseSpiffeUri(subject) === undefined)
    return 'subject must be a SPIFFE id, such as spiffe://cluster.local/ns/ops/sa/deployer';
  if (!roles.some((one) => one === role)) return `role must be one of ${roles.join(', ')}`;
  return 'namespaces' in entry ? namespacesProblem(entry['namespaces']) : undefined;
}

/** What is wrong with a list of namespaces that limits a role; undefined: nothing. */
export function namespacesProblem(namespaces: unknown): string | undefined {
  if (Array.isArray(namespaces) && namespaces.every((name) => typeof name === 'string' && namespaceName.test(name))) return undefined;
  return 'namespaces must be a list of names, such as [shop]; without the field the role holds in all namespaces';
}
