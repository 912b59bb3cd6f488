import type { GatewayServerSpec, GatewaySpec } from '@mizzen/api';
import { type Configured, hostMatches, type MeshSnapshot } from '../snapshot.ts';
import { type ClientValidation, clientValidationOf } from './client-validation.ts';
import { admits, isGranted, refText } from './references.ts';
import type { GatewayApiResources } from './resources.ts';
import { type Condition, condition, controllerName, failed, group, type K8sGatewaySpec, type ListenerSetSpec, type ListenerSpec } from './types.ts';

/** A listener of a Gateway, or of a ListenerSet that a Gateway has let in. */
export interface Listener {
  readonly gateway: Configured<K8sGatewaySpec>;
  /** The object that it is written in. */
  readonly owner: Configured<K8sGatewaySpec | ListenerSetSpec>;
  readonly spec: ListenerSpec;
  readonly path: string;
  /** The internal gateway that routes are bound to. */
  readonly name: string;
  readonly supportedKinds: readonly string[];
  readonly conditions: readonly Condition[];
  readonly clients: ClientValidation;
  /** It takes connections. */
  readonly isValid: boolean;
}

export interface GatewayState {
  readonly gateway: Configured<K8sGatewaySpec>;
  readonly listeners: readonly Listener[];
  readonly listenerSets: readonly { readonly set: Configured<ListenerSetSpec>; readonly isAdmitted: boolean }[];
  readonly conditions: readonly Condition[];
}

/** Proxies serve the Gateways that their label names, in their own namespace. */
export const gatewayNameLabel = 'gateway.networking.k8s.io/gateway-name';

const kindsByProtocol: Readonly<Record<string, readonly string[]>> = {
  HTTP: ['HTTPRoute', 'GRPCRoute'],
  HTTPS: ['HTTPRoute', 'GRPCRoute'],
  TLS: ['TLSRoute'],
  TCP: ['TCPRoute'],
  UDP: ['UDPRoute'],
};

/** The Gateways of our classes, with their listeners and what is right and wrong with them. */
export function gatewayStates(resources: GatewayApiResources, snapshot: MeshSnapshot): GatewayState[] {
  const classes = new Set(resources.classes.filter(({ spec }) => spec.controllerName === controllerName).map(({ name }) => name));
  return resources.gateways.filter(({ spec }) => classes.has(spec.gatewayClassName ?? '')).map((gateway) => stateOf(gateway, resources, snapshot));
}

function stateOf(gateway: Configured<K8sGatewaySpec>, resources: GatewayApiResources, snapshot: MeshSnapshot): GatewayState {
  const listenerSets = resources.listenerSets
    .filter(
      ({ spec: { parentRef }, namespace }) =>
        parentRef?.name === gateway.name && (parentRef.namespace ?? namespace) === gateway.namespace && (parentRef.kind ?? 'Gateway') === 'Gateway',
    )
    .map((set) => ({ set, isAdmitted: admits(gateway.spec.allowedListeners?.namespaces, gateway.namespace, set.namespace, 'None', resources) }));
  const written = [
    ...(gateway.spec.listeners ?? []).map((spec, i) => ({ owner: gateway as Listener['owner'], spec, path: `spec.listeners[${i}]` })),
    ...listenerSets.flatMap(({ set, isAdmitted }) =>
      isAdmitted ? (set.spec.listeners ?? []).map((spec, i) => ({ owner: set as Listener['owner'], spec, path: `spec.listeners[${i}]` })) : [],
    ),
  ];
  const listeners = written.map((one, i) => listenerOf(gateway, one, written.slice(0, i), resources, snapshot));
  const invalid = listeners.filter(({ isValid, owner }) => !isValid && owner === gateway);
  const unsupported = (gateway.spec.addresses ?? []).find(({ type = 'IPAddress' }) => type !== 'IPAddress' && type !== 'Hostname');
  const conditions = [
    unsupported
      ? failed('Accepted', 'UnsupportedAddress', `addresses of type ${unsupported.type} are not supported`)
      : invalid.length > 0
        ? condition(
            'Accepted',
            'ListenersNotValid',
            `not valid: ${invalid.map(({ spec }) => spec.name).join(', ')}`,
            listeners.some(({ isValid }) => isValid) ? 'True' : 'False',
          )
        : condition('Accepted', 'Accepted', 'the Gateway is served by Mizzen'),
  ];
  return { gateway, listeners, listenerSets, conditions };
}

type Written = Pick<Listener, 'owner' | 'spec' | 'path'>;

function listenerOf(
  gateway: Configured<K8sGatewaySpec>,
  { owner, spec, path }: Written,
  before: readonly Written[],
  resources: GatewayApiResources,
  snapshot: MeshSnapshot,
): Listener {
  const known = kindsByProtocol[spec.protocol];
  const terminates = spec.protocol === 'HTTPS' || (spec.protocol === 'TLS' && spec.tls?.mode !== 'Passthrough');
  // Ended here, TLS has bytes inside.
  const supported = spec.protocol === 'TLS' && terminates ? ['TLSRoute', 'TCPRoute'] : (known ?? []);
  const wanted = spec.allowedRoutes?.kinds;
  const supportedKinds = wanted?.length
    ? wanted.filter((one) => (one.group ?? group) === group && supported.includes(one.kind)).map(({ kind }) => kind)
    : supported;
  const conditions: Condition[] = [];
  const clients = clientValidationOf(gateway, owner, spec, terminates, resources, snapshot);

  const conflict = before.find(({ spec: other }) => other.port === spec.port && conflictsWith(other, spec));
  if (!known)
    conditions.push(failed('Accepted', 'UnsupportedProtocol', `protocol ${spec.protocol} is not supported: ${Object.keys(kindsByProtocol).join(', ')}`));
  else if (spec.protocol === 'HTTPS' && spec.tls?.mode === 'Passthrough')
    conditions.push(failed('Accepted', 'UnsupportedValue', 'HTTPS is ended here: for Passthrough use protocol TLS'));
  else conditions.push(clients.notAccepted ?? condition('Accepted', 'Accepted'));
  conditions.push(
    conflict
      ? condition(
          'Conflicted',
          conflict.spec.protocol === spec.protocol ? 'HostnameConflict' : 'ProtocolConflict',
          `listener ${conflict.spec.name} has port ${spec.port} already`,
        )
      : failed('Conflicted', 'NoConflicts', ''),
  );
  const certificateProblem = terminates && clients.mode !== 'ISTIO_MUTUAL' ? certificateProblemOf(owner, spec, resources, snapshot) : undefined;
  const unknownKind = wanted?.find((one) => (one.group ?? group) !== group || !supported.includes(one.kind));
  conditions.push(
    unknownKind
      ? failed('ResolvedRefs', 'InvalidRouteKinds', `routes of kind ${unknownKind.kind} cannot be bound to a listener of protocol ${spec.protocol}`)
      : (certificateProblem ?? clients.unresolved ?? condition('ResolvedRefs', 'ResolvedRefs')),
  );
  const isValid =
    conditions[0]!.status === 'True' &&
    conflict === undefined &&
    certificateProblem === undefined &&
    (clients.unresolved === undefined || clients.roots !== undefined);
  conditions.push(
    isValid
      ? condition('Programmed', 'Programmed')
      : failed('Programmed', conflict ? 'Invalid' : 'Invalid', 'the listener is not served: see its other conditions'),
  );
  return {
    gateway,
    owner,
    spec,
    path,
    name: `${gateway.name}~${owner === gateway ? '' : `${owner.namespace}~${owner.name}~`}${spec.name}`,
    supportedKinds,
    conditions,
    isValid,
    clients,
  };
}

/** On one port listeners are told apart by their host names, where their protocol has such; plain HTTP and TLS by what is spoken. */
function conflictsWith(a: ListenerSpec, b: ListenerSpec): boolean {
  const family = ({ protocol }: ListenerSpec) => (protocol === 'HTTPS' || protocol === 'TLS' ? 'tls' : protocol);
  // Ports of UDP are others than those of TCP.
  if ((a.protocol === 'UDP') !== (b.protocol === 'UDP')) return false;
  if (family(a) !== family(b)) return !(new Set([family(a), family(b)]).has('tls') && new Set([family(a), family(b)]).has('HTTP'));
  if (a.protocol === 'TCP' || a.protocol === 'UDP') return true;
  return (a.hostname ?? '') === (b.hostname ?? '');
}

function certificateProblemOf(owner: Listener['owner'], { tls }: ListenerSpec, resources: GatewayApiResources, snapshot: MeshSnapshot): Condition | undefined {
  const refs = tls?.certificateRefs ?? [];
  if (refs.length === 0) return failed('ResolvedRefs', 'InvalidCertificateRef', 'a listener that ends TLS needs certificateRefs');
  for (const ref of refs) {
    const { group: ofGroup = '', kind = 'Secret', name, namespace = owner.namespace } = ref;
    if (ofGroup !== '' || kind !== 'Secret') return failed('ResolvedRefs', 'InvalidCertificateRef', `certificates are in Secrets, not in ${refText(ref)}`);
    if (!isGranted({ kind: owner.kind, namespace: owner.namespace }, { group: '', kind, namespace, name }, resources))
      return failed(
        'ResolvedRefs',
        'RefNotPermitted',
        `no ReferenceGrant in namespace ${namespace} lets a ${owner.kind} of ${owner.namespace} refer to the Secret ${name}`,
      );
    const data = snapshot.secrets.get(`${namespace}/${name}`);
    if (!data) return failed('ResolvedRefs', 'InvalidCertificateRef', `the Secret ${namespace}/${name} does not exist`);
    const problem = pemProblem(data);
    if (problem) return failed('ResolvedRefs', 'InvalidCertificateRef', `the Secret ${namespace}/${name} ${problem}`);
  }
  return undefined;
}

function pemProblem(data: Readonly<Record<string, string>>): string | undefined {
  for (const [key, label] of [
    ['tls.crt', 'CERTIFICATE'],
    ['tls.key', 'PRIVATE KEY'],
  ] as const) {
    const text = Buffer.from(data[key] ?? '', 'base64').toString();
    if (!text.includes(`-----BEGIN`) || !text.includes(label)) return `has no ${label.toLowerCase()} in PEM under ${key}`;
  }
  return undefined;
}

/** The listener as a Gateway of Istio's with one server, for what generates listeners. */
export function internalGateway({ gateway, owner, spec, path, name, clients: { mode, roots } }: Listener): Configured<GatewaySpec> {
  const terminates = spec.protocol === 'HTTPS' || (spec.protocol === 'TLS' && spec.tls?.mode !== 'Passthrough');
  const certificate = spec.tls?.certificateRefs?.[0];
  const server: GatewayServerSpec = {
    port: { number: spec.port, name: name.replaceAll('~', '-'), protocol: spec.protocol },
    hosts: [spec.hostname || '*'],
    ...(spec.protocol === 'TLS' && !terminates ? { tls: { mode: 'PASSTHROUGH' } } : {}),
    ...(terminates && mode === 'ISTIO_MUTUAL' ? { tls: { mode } } : {}),
    ...(terminates && mode !== 'ISTIO_MUTUAL' && certificate
      ? {
          tls: {
            mode,
            credentialName: certificate.name,
            credentialNamespace: certificate.namespace ?? owner.namespace,
            ...(roots === undefined ? {} : { clientRoots: roots }),
          },
        }
      : {}),
  };
  return {
    ...owner,
    kind: owner.kind,
    name,
    namespace: gateway.namespace,
    spec: {
      selector: { [gatewayNameLabel]: gateway.name, ...gateway.spec.infrastructure?.labels },
      isForOwnNamespace: true,
      servers: [server],
      source: { object: owner, path },
    },
  };
}

/** The host names under which a route is reached by a listener; none: it is not. `*` where neither names one. */
export function sharedHostnames(listener: string | undefined, route: readonly string[] | undefined): string[] {
  if (!route?.length) return [listener || '*'];
  if (!listener) return [...route];
  return route.flatMap((hostname) => (hostMatches(listener, hostname) ? [hostname] : hostMatches(hostname, listener) ? [listener] : []));
}
