import type { Kind } from '@mizzen/api';

/** viewer: sees. operator: sees and changes. admin: all, also what is of no namespace or of the whole mesh. */
export type Role = 'viewer' | 'operator' | 'admin';

export const roles: readonly Role[] = ['viewer', 'operator', 'admin'];

/** Somebody who has proved who they are. */
export interface Caller {
  readonly name: string;
  readonly role: Role;
  /** undefined: all. */
  readonly namespaces: readonly string[] | undefined;
  readonly by: 'admin token' | 'token' | 'certificate' | 'unix socket';
}

export interface Attempt {
  readonly verb: 'get' | 'list' | 'create' | 'update' | 'patch' | 'delete';
  readonly kind: Kind;
  /** undefined: all; '': the kind has none. */
  readonly namespace: string | undefined;
  readonly subresource: string | undefined;
}

/** Whose policies hold for the whole mesh. */
const meshNamespaces = new Set(['istio-system', 'mizzen-system']);
/** What everybody may know who may know anything. */
const openKinds = new Set(['Namespace', 'GatewayClass']);

/** Whether what concerns a namespace may be seen. */
export const sees = ({ namespaces }: Caller, namespace: string) => namespaces === undefined || namespaces.includes(namespace);

/** Why a caller may not do something; undefined: they may. */
export function refusalOf({ name, role, namespaces }: Caller, { verb, kind, namespace, subresource }: Attempt): string | undefined {
  if (role === 'admin' && namespaces === undefined) return undefined;
  const isRead = verb === 'get' || verb === 'list';
  const what = `${verb} ${kind.plural}${subresource ? `/${subresource}` : ''}`;
  const refuse = (why: string) => `${name} (${role}) cannot ${what}${namespace ? ` in the namespace ${namespace}` : ''}: ${why}`;
  if (isRead && openKinds.has(kind.kind)) return undefined;
  if (!kind.isNamespaced) return isRead ? undefined : refuse('what is of no namespace is for admins of all of them');
  if (namespaces !== undefined && (namespace === undefined || !namespaces.includes(namespace)))
    return refuse(namespace === undefined ? `of all namespaces; these are seen: ${namespaces.join(', ')}` : `only these are theirs: ${namespaces.join(', ')}`);
  if (role === 'admin') return undefined;
  if (role === 'viewer') {
    if (!isRead) return refuse('viewers change nothing');
    return kind.kind === 'Secret' ? refuse('viewers see no secrets') : undefined;
  }
  if (!isRead && namespace === undefined) return refuse('a change of all namespaces at once is for admins');
  // An operator who is given a namespace of the mesh by name may change it; by default none may.
  if (!isRead && namespace !== undefined && meshNamespaces.has(namespace) && namespaces?.includes(namespace) !== true)
    return refuse('what is there holds for the whole mesh, and is for admins, or for operators who are given that namespace by name');
  return undefined;
}
