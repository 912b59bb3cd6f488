import type { DestinationSpec } from '@mizzen/api';
import type { Configured, MeshSnapshot } from '../snapshot.ts';
import type { GatewayApiResources } from './resources.ts';
import { type BackendRefSpec, group, type LabelSelectorSpec, type NamespacesSpec, type ReferenceSpec } from './types.ts';

/** Whether an object may refer to one of another namespace: somebody there has to allow it (ReferenceGrant). */
export function isGranted(
  from: { readonly kind: string; readonly namespace: string; readonly group?: string },
  to: { readonly group: string; readonly kind: string; readonly namespace: string; readonly name: string },
  { grants }: GatewayApiResources,
): boolean {
  if (from.namespace === to.namespace) return true;
  return grants.some(
    (grant) =>
      grant.namespace === to.namespace &&
      (grant.spec.from ?? []).some((one) => (one.group ?? '') === (from.group ?? group) && one.kind === from.kind && one.namespace === from.namespace) &&
      (grant.spec.to ?? []).some((one) => (one.group ?? '') === to.group && one.kind === to.kind && (!one.name || one.name === to.name)),
  );
}

/** Where a back end is, or why it cannot be used. */
export type Backend =
  | { readonly destination: DestinationSpec }
  | { readonly reason: 'InvalidKind' | 'BackendNotFound' | 'RefNotPermitted' | 'UnsupportedProtocol'; readonly message: string };

/** Services, and Istio's `Hostname` for what a ServiceEntry defines. */
export function resolveBackend(ref: BackendRefSpec, from: Configured<unknown>, snapshot: MeshSnapshot, resources: GatewayApiResources): Backend {
  const { group: ofGroup = '', kind = 'Service', name, namespace = from.namespace, port } = ref;
  const what = `${kind} ${namespace}/${name}`;
  if (ofGroup === 'networking.istio.io' && kind === 'Hostname') {
    if (!snapshot.servicesByHostname.has(name)) return { reason: 'BackendNotFound', message: `no ServiceEntry or Service defines the host ${name}` };
    return { destination: { host: name, ...(port === undefined ? {} : { port: { number: port } }) } };
  }
  if (ofGroup !== '' || kind !== 'Service') return { reason: 'InvalidKind', message: `a back end is a Service, not ${ofGroup ? `${ofGroup} ` : ''}${kind}` };
  if (!isGranted(from, { group: '', kind, namespace, name }, resources))
    return { reason: 'RefNotPermitted', message: `no ReferenceGrant in namespace ${namespace} lets a ${from.kind} of ${from.namespace} refer to the ${what}` };
  const hostname = `${name}.${namespace}.svc.${snapshot.domain}`;
  const service = snapshot.servicesByHostname.get(hostname);
  if (!service) return { reason: 'BackendNotFound', message: `the ${what} does not exist` };
  if (port === undefined) return { reason: 'UnsupportedProtocol', message: `the port of the ${what} is required` };
  if (!service.ports.some(({ number }) => number === port)) return { reason: 'BackendNotFound', message: `the ${what} has no port ${port}` };
  return { destination: { host: hostname, port: { number: port } } };
}

/** Whether objects of a namespace are among those that somebody lets in. */
export function admits(
  spec: NamespacesSpec | undefined,
  own: string,
  other: string,
  otherwise: NamespacesSpec['from'],
  resources: GatewayApiResources,
): boolean {
  switch (spec?.from ?? otherwise) {
    case 'All':
      return true;
    case 'Same':
      return own === other;
    case 'Selector':
      return matchesSelector(spec?.selector, resources.namespaces.get(other) ?? {});
    default:
      return false;
  }
}

/** metav1.LabelSelector: all labels and all expressions. */
export function matchesSelector(selector: LabelSelectorSpec | undefined, labels: Readonly<Record<string, string>>): boolean {
  if (!selector) return false;
  const { matchLabels = {}, matchExpressions = [] } = selector;
  return (
    Object.entries(matchLabels).every(([name, value]) => labels[name] === value) &&
    matchExpressions.every(({ key, operator, values = [] }) => {
      const value = labels[key];
      if (operator === 'Exists') return value !== undefined;
      if (operator === 'DoesNotExist') return value === undefined;
      if (operator === 'In') return value !== undefined && values.includes(value);
      return operator === 'NotIn' && (value === undefined || !values.includes(value));
    })
  );
}

export const refText = ({ group: ofGroup, kind, namespace, name }: ReferenceSpec) =>
  `${ofGroup ? `${ofGroup} ` : ''}${kind ?? ''} ${namespace ? `${namespace}/` : ''}${name}`.trim();
