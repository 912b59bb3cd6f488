import { isPlainObject, type Kind } from '@mizzen/api';
import { accessConfigMap } from './access-bindings.ts';
import { type Caller, type Role, roles } from './access-control.ts';

/** A role that a service account holds. */
export interface HeldRole {
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly role: Role;
  /** undefined: all. */
  readonly namespaces: readonly string[] | undefined;
}

/** What a caller would write, as far as it can create authority. */
export interface Grant {
  readonly kind: Kind;
  readonly namespace: string;
  readonly name: string;
  readonly object: unknown;
}

/** Objects that decide who is trusted in the whole mesh, as `namespace/name`: roles of the API, and the mesh configuration with the roots of other trust domains. */
const trustConfigMaps = new Set([`${accessConfigMap.namespace}/${accessConfigMap.name}`, `${accessConfigMap.namespace}/istio`]);

/**
 * The rule that rights to issue never exceed rights held (Kubernetes' escalation check). Authority is created by a token for a service account, by an object
 * that lets a program run as one, and by the objects that say whom the mesh trusts. Returns why the caller may not do it; undefined: it may.
 */
export function escalationOf(caller: Caller, { kind, namespace, name, object }: Grant, held: readonly HeldRole[]): string | undefined {
  if (isMeshAdmin(caller)) return undefined;
  const who = `${caller.name} (${caller.role})`;
  if (kind.kind === 'ConfigMap' && trustConfigMaps.has(`${namespace}/${name}`))
    return `${who} cannot write the ConfigMap ${namespace}/${name}: it decides whom the mesh trusts, and is for admins of all namespaces`;
  const serviceAccount = serviceAccountOf(kind, name, object);
  if (serviceAccount === undefined) return undefined;
  const above = held.find((role) => role.namespace === namespace && role.serviceAccount === serviceAccount && !covers(caller, role));
  if (above === undefined) return undefined;
  return (
    `${who} cannot issue the identity of the service account ${namespace}/${serviceAccount}: it has the role ${above.role}` +
    `${above.namespaces === undefined ? ' in all namespaces' : ` in ${above.namespaces.join(', ')}`}, which is more than the caller has`
  );
}

export const isMeshAdmin = ({ role, namespaces }: Caller) => role === 'admin' && namespaces === undefined;

function covers(caller: Caller, { role, namespaces }: HeldRole): boolean {
  if (roles.indexOf(caller.role) < roles.indexOf(role)) return false;
  if (caller.namespaces === undefined) return true;
  return namespaces?.every((namespace) => caller.namespaces!.includes(namespace)) === true;
}

/** The service account whose identity an object gives to a program. */
function serviceAccountOf({ kind }: Kind, name: string, object: unknown): string | undefined {
  const spec = isPlainObject(object) && isPlainObject(object['spec']) ? object['spec'] : {};
  const text = (value: unknown) => (typeof value === 'string' && value !== '' ? value : 'default');
  switch (kind) {
    case 'ServiceAccount':
      return name;
    case 'Workload':
    case 'WorkloadEntry':
      return text(spec['serviceAccount']);
    case 'WorkloadGroup':
      return text(isPlainObject(spec['template']) ? spec['template']['serviceAccount'] : undefined);
    default:
      return undefined;
  }
}
