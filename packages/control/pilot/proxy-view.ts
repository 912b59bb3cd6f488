import type { FilterReferenceSpec } from '@mizzen/api';
import { MizzenError } from '@mizzen/common';
import type { Node } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';

/**
 * What pilot knows of one proxy. `viewOf` reads it from the node that the proxy presents on its stream: these are claims, of which `proveIdentity`
 * (xds/proven-identity.ts) keeps what is proved. The metadata keys are Istio's where Istio has them; ours
 * (MIZZEN_*) describe where an explicitly addressed sidecar listens.
 */
export interface ProxyView {
  readonly id: string;
  readonly type: 'sidecar' | 'gateway';
  readonly name: string;
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly workload: string;
  readonly labels: Readonly<Record<string, string>>;
  /** The address at which other proxies reach this one. */
  readonly address: string;
  /** Where the outbound listener binds, `address:port`; undefined for gateways. */
  readonly outbound: string | undefined;
  readonly inbound: readonly InboundPort[];
  /** The kernel redirects the workload's connections; undefined: it is called explicitly. */
  readonly capture: Capture | undefined;
  /** The address that a gateway's listeners bind. */
  readonly gatewayBind: string;
  /** The loopback address of its admin server. */
  readonly admin: string | undefined;
  /** Register this workload in the registry while it is connected. */
  readonly registers: boolean;
  /** Where it listens for public ports of APIs, where that is another place than the port itself. */
  readonly publicPorts: readonly { readonly port: number; readonly listen: string }[];
  /** Filters of the workload's own, with whole paths. */
  readonly filters: readonly FilterReferenceSpec[];
  /** `host:port` by which it reaches the control plane. */
  readonly control: string | undefined;
  /** Its name in the message mesh; undefined: it has no part in it. */
  readonly appId: string | undefined;
  readonly version: string;
  /** What it supports, as it declares it (packages/envoy-api/proxy-features.ts); empty: it declares nothing. */
  readonly clientFeatures: readonly string[];
  readonly locality: string;
  /** Certificate or token, and the registry, have proved what this view says (xds/proven-identity.ts). */
  readonly isProven: boolean;
  /** The node's metadata as they came. */
  readonly metadata: Readonly<Record<string, unknown>>;
}

/** Where captured connections arrive. */
export interface Capture {
  readonly outboundPort: number;
  /** undefined: only what the workload sends is captured. */
  readonly inboundPort: number | undefined;
  readonly hasIPv6: boolean;
}

export interface InboundPort {
  readonly name: string;
  /** The workload's own port number, the target port of services. */
  readonly port: number;
  readonly protocol: string | undefined;
  /** Where the sidecar listens for it. */
  readonly listen: string;
  /** Where the application listens. */
  readonly app: string;
}

/** What a node may say: its id, its metadata and features as JSON, and its ports. All of it is kept for as long as the stream lasts. */
const maxIdLength = 1_024;
const maxNodeBytes = 256 * 1024;
const maxInboundPorts = 1_000;

type Metadata = Readonly<Record<string, unknown>>;

export function viewOf(node: Node | undefined): ProxyView {
  if (!node?.id) throw new MizzenError('invalid-node', 'the first request on a stream must carry a node with an id');
  if (node.id.length > maxIdLength)
    throw new MizzenError('invalid-node', `the id of the node has ${node.id.length} characters; at most ${maxIdLength} are allowed`);
  const bytes = JSON.stringify(node.metadata ?? {}).length + node.clientFeatures.reduce((sum, feature) => sum + feature.length, 0);
  if (bytes > maxNodeBytes)
    throw new MizzenError('invalid-node', `the metadata and features of the node have ${bytes} bytes; at most ${maxNodeBytes} are allowed`);
  const [type, address = '', , domain = ''] = node.id.split('~');
  if (type !== 'sidecar' && type !== 'router')
    throw new MizzenError('invalid-node', `the node id ${JSON.stringify(node.id.slice(0, 120))} is not of the form sidecar~ADDRESS~NAME.NAMESPACE~DOMAIN`);
  const metadata = (node.metadata ?? {}) as Metadata;
  const name = text(metadata, 'NAME') ?? node.id.split('~')[2]!.split('.')[0]!;
  const namespace = text(metadata, 'NAMESPACE') ?? domain.split('.')[0] ?? 'default';
  const inbound = Array.isArray(metadata['MIZZEN_INBOUND']) ? metadata['MIZZEN_INBOUND'].map(inboundPort) : [];
  if (inbound.length > maxInboundPorts)
    throw new MizzenError('invalid-node', `MIZZEN_INBOUND has ${inbound.length} ports; at most ${maxInboundPorts} are allowed`);
  return {
    id: node.id,
    type: type === 'router' ? 'gateway' : 'sidecar',
    name,
    namespace,
    serviceAccount: text(metadata, 'SERVICE_ACCOUNT') ?? 'default',
    workload: text(metadata, 'WORKLOAD_NAME') ?? name,
    labels: stringRecord(metadata['LABELS']),
    address: text(metadata, 'MIZZEN_ADDRESS') ?? address,
    outbound: text(metadata, 'MIZZEN_OUTBOUND'),
    inbound,
    capture: captureOf(metadata),
    gatewayBind: text(metadata, 'MIZZEN_GATEWAY_BIND') ?? '127.0.0.1',
    admin: text(metadata, 'MIZZEN_ADMIN'),
    registers: metadata['MIZZEN_REGISTER'] === true,
    publicPorts: entries(metadata['MIZZEN_PUBLIC_PORTS']).flatMap(({ port, listen }) =>
      Number.isInteger(port) && typeof listen === 'string' ? [{ port: port as number, listen }] : [],
    ),
    filters: entries(metadata['MIZZEN_FILTERS']).flatMap((entry) => (typeof entry['file'] === 'string' ? [entry as unknown as FilterReferenceSpec] : [])),
    control: text(metadata, 'MIZZEN_CONTROL'),
    appId: text(metadata, 'MIZZEN_APP_ID'),
    version: node.userAgentName ? `${node.userAgentName}/${node.userAgentVersionType.case === 'userAgentVersion' ? node.userAgentVersionType.value : '?'}` : '',
    clientFeatures: node.clientFeatures,
    locality: [node.locality?.region, node.locality?.zone, node.locality?.subZone].filter(Boolean).join('/'),
    isProven: false,
    metadata,
  };
}

/** Istio's INTERCEPTION_MODE with its ports, unless the proxy says others. */
function captureOf(metadata: Metadata): Capture | undefined {
  if (metadata['INTERCEPTION_MODE'] !== 'REDIRECT') return undefined;
  const own = metadata['MIZZEN_CAPTURE'] as Readonly<Record<string, unknown>> | undefined;
  if (typeof own !== 'object' || own === null) return { outboundPort: 15_001, inboundPort: 15_006, hasIPv6: false };
  const port = (name: string) => {
    const value = own[name];
    if (value === undefined) return undefined;
    if (!Number.isInteger(value) || (value as number) < 1 || (value as number) > 65_535)
      throw new MizzenError('invalid-node', `${name} of MIZZEN_CAPTURE must be a port`);
    return value as number;
  };
  const outboundPort = port('outboundPort');
  if (outboundPort === undefined) throw new MizzenError('invalid-node', 'MIZZEN_CAPTURE needs outboundPort');
  return { outboundPort, inboundPort: port('inboundPort'), hasIPv6: own['hasIPv6'] === true };
}

function inboundPort(value: unknown): InboundPort {
  const entry = value as Record<string, unknown>;
  const port = Number(entry?.['port']);
  if (!Number.isInteger(port) || typeof entry['listen'] !== 'string' || typeof entry['app'] !== 'string')
    throw new MizzenError('invalid-node', 'an entry of MIZZEN_INBOUND needs port, listen and app');
  return {
    name: typeof entry['name'] === 'string' ? entry['name'] : '',
    port,
    protocol: typeof entry['protocol'] === 'string' ? entry['protocol'] : undefined,
    listen: entry['listen'],
    app: entry['app'],
  };
}

function entries(value: unknown): readonly Readonly<Record<string, unknown>>[] {
  return Array.isArray(value) ? value.filter((entry) => typeof entry === 'object' && entry !== null) : [];
}

function text(metadata: Metadata, key: string): string | undefined {
  const value = metadata[key];
  return typeof value === 'string' && value !== '' ? value : undefined;
}

function stringRecord(value: unknown): Record<string, string> {
  if (typeof value !== 'object' || value === null) return {};
  return Object.fromEntries(Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === 'string'));
}
