import net from 'node:net';
import { type Logger, MizzenError } from '@mizzen/common';
import { durationToMs, durationToTimerMs, unpackAny } from '@mizzen/envoy-api';
import { SocketAddress_Protocol } from '@mizzen/envoy-api/gen/envoy/config/core/v3/address_pb.js';
import { ProxyProtocolConfig_Version } from '@mizzen/envoy-api/gen/envoy/config/core/v3/proxy_protocol_pb.js';
import type { ListenerFilterChainMatchPredicate } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { type Listener as ListenerMessage, ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { ProxyProtocolSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol_pb.js';
import { UdpProxyConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/udp/udp_proxy/v3/udp_proxy_pb.js';
import type { ProxyContext } from '../http/connection-settings.ts';
import type { RouteTable } from '../route/route-table.ts';
import type { AccessLogFile } from '../telemetry/access-log.ts';
import type { SecretStore } from '../tls/secret-store.ts';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import { compileFilterChain } from './compile-filter-chain.ts';
import type { InspectorSettings, ListenerFilters, PortRange, ProxyProtocolSettings } from './inspection.ts';
import type { ListenerConfig } from './listener.ts';
import { prepareOriginalDestination } from './original-destination.ts';
import type { UdpListenerConfig } from './udp-listener.ts';
import { checkUnixPath, type UnixSocketPolicy } from './unix-socket.ts';

/** What compiling a listener needs of the proxy around it. */
export interface ListenerEnvironment {
  readonly context: ProxyContext;
  readonly secrets: SecretStore;
  readonly logger: Logger;
  readonly routeTable: (name: string) => RouteTable | undefined;
  /** Of these generic secrets those that are worth waiting for. */
  readonly missingSecrets: (names: readonly string[]) => readonly string[];
  readonly accessLog: (path: string) => AccessLogFile;
  /** A secret that a chain was waiting for has come. */
  readonly onSecretReady: () => void;
  /** 48 bytes that all workers share, so that a session of one is resumed by any (Node `tls.Server`, `ticketKeys`). */
  readonly sessionTicketKeys: Buffer;
  readonly unixSockets: UnixSocketPolicy;
}

/** What the filter chains of a listener take by name, collected while they are compiled. */
export interface ListenerNeeds {
  /** Route tables that come by RDS. */
  readonly routeNames: string[];
  /** Of the routes that stand in the listener itself. */
  readonly genericSecretNames: string[];
}

export type CompiledListener = {
  readonly routeNames: readonly string[];
  readonly secretNames: readonly string[];
  /** What it must have before it takes connections. */
  missing(): string[];
} & ({ readonly kind: 'tcp'; readonly config: ListenerConfig } | { readonly kind: 'udp'; readonly config: UdpListenerConfig });

/** Envoy listener.proto: `per_connection_buffer_limit_bytes`, `tcp_backlog_size`, `listener_filters_timeout`. */
const defaults = { bufferLimitBytes: 1024 * 1024, backlog: 4096, filtersTimeoutMs: 15_000 };

const supportedOfListener = supportedFields(ListenerSchema, [
  ...['name', 'address', 'statPrefix', 'metadata', 'trafficDirection', 'filterChains', 'defaultFilterChain', 'listenerFilters', 'listenerFiltersTimeout'],
  ...['useOriginalDst', 'bindToPort', 'deprecatedV1'],
  ...['continueOnListenerFiltersTimeout', 'perConnectionBufferLimitBytes', 'tcpBacklogSize', 'enableReusePort', 'reusePort', 'udpListenerConfig'],
]);

export function compileListener(message: ListenerMessage, environment: ListenerEnvironment): CompiledListener {
  refuseUnsupported(ListenerSchema, message, supportedOfListener, `listener ${message.name}`);
  const address = message.address?.address;
  const place = `listener ${message.name}`;
  const at = { name: message.name, ...placeOf(message, environment.unixSockets) };
  if (address?.case === 'socketAddress' && address.value.protocol === SocketAddress_Protocol.UDP) return compileUdpListener(message, at, environment);
  const needs: ListenerNeeds = { routeNames: [], genericSecretNames: [] };
  const chains = message.filterChains.map((chain, i) => compileFilterChain(chain, message, `${place}, filter chain ${chain.name || i}`, environment, needs));
  const defaultChain =
    message.defaultFilterChain && compileFilterChain(message.defaultFilterChain, message, `${place}, default filter chain`, environment, needs);
  const { routeNames, genericSecretNames } = needs;
  const all = defaultChain === undefined ? chains : [...chains, defaultChain];
  if (all.length === 0) throw new MizzenError('invalid-listener', `${place}: no filter chains`);
  const filters = compileListenerFilters(message, place);
  if (!filters?.tls && chains.some(({ match }) => match.transportProtocol !== '' || match.serverNames.length > 0))
    throw new MizzenError('invalid-listener', `${place}: its filter chains match on TLS, but there is no tls_inspector`);
  const { listenerFilters } = message;
  return {
    kind: 'tcp',
    config: {
      ...at,
      binds: (message.bindToPort ?? message.deprecatedV1?.bindToPort ?? true) && (at.unixMode === undefined || environment.unixSockets.opens),
      isIPv6Only: address?.case === 'socketAddress' && net.isIPv6(address.value.address) && !address.value.ipv4Compat,
      readsOriginalDestination: listenerFilters.some((filter) => filter.name === 'envoy.filters.listener.original_dst'),
      handsOver: message.useOriginalDst === true,
      chains,
      defaultChain,
      filters,
      backlog: message.tcpBacklogSize ?? defaults.backlog,
      bufferLimitBytes: message.perConnectionBufferLimitBytes ?? defaults.bufferLimitBytes,
    },
    routeNames,
    secretNames: [...all.flatMap((chain) => chain.tls?.secretNames() ?? []), ...genericSecretNames],
    missing: () => [
      ...environment.missingSecrets([...all.flatMap((chain) => chain.tls?.missingSecrets() ?? []), ...genericSecretNames]),
      ...routeNames.filter((name) => environment.routeTable(name) === undefined),
    ],
  };
}

/** Where it listens: an address and a port, or a Unix socket. */
function placeOf(message: ListenerMessage, unixSockets: UnixSocketPolicy): Pick<ListenerConfig, 'address' | 'port' | 'unixMode'> {
  const place = `listener ${message.name}`;
  const address = message.address?.address;
  if (address?.case === 'socketAddress' && address.value.portSpecifier.case === 'portValue')
    return { address: address.value.address, port: address.value.portSpecifier.value, unixMode: undefined };
  if (address?.case !== 'pipe') throw new MizzenError('unsupported-listener', `${place}: a socket address with a port, or a pipe, is needed`);
  checkUnixPath(address.value.path, unixSockets, place);
  const isTls = [...message.filterChains, ...(message.defaultFilterChain ? [message.defaultFilterChain] : [])].some((chain) =>
    chain.transportSocket?.configType.value?.typeUrl.endsWith('TlsContext'),
  );
  if (message.useOriginalDst || isTls)
    throw new MizzenError('unsupported-listener', `${place}: original destinations and TLS are not supported on a Unix socket`, address.value.path);
  return { address: address.value.path, port: 0, unixMode: address.value.mode };
}

function compileListenerFilters(message: ListenerMessage, place: string): ListenerFilters | undefined {
  if (message.listenerFilters.length === 0) return undefined;
  let proxyProtocol: ProxyProtocolSettings | undefined;
  let tls: InspectorSettings | undefined;
  let http: InspectorSettings | undefined;
  for (const filter of message.listenerFilters) {
    const any = filter.configType.case === 'typedConfig' ? filter.configType.value : undefined;
    switch (filter.name) {
      case 'envoy.filters.listener.tls_inspector':
        tls = { disabledPorts: compileDisabledPorts(filter.filterDisabled, place) };
        break;
      case 'envoy.filters.listener.http_inspector':
        http = { disabledPorts: compileDisabledPorts(filter.filterDisabled, place) };
        break;
      case 'envoy.filters.listener.original_dst':
        prepareOriginalDestination();
        break;
      case 'envoy.filters.listener.proxy_protocol': {
        if (tls || http)
          throw new MizzenError('invalid-listener', `${place}: proxy_protocol must be the first listener filter, its header comes before all else`);
        const config = unpackAny(ProxyProtocolSchema, any);
        const refused = config?.disallowedVersions ?? [];
        proxyProtocol = {
          isOptional: config?.allowRequestsWithoutProxyProtocol ?? false,
          versions: ([1, 2] as const).filter((version) => !refused.includes(version === 1 ? ProxyProtocolConfig_Version.V1 : ProxyProtocolConfig_Version.V2)),
        };
        break;
      }
      default:
        throw new MizzenError('unsupported-listener-filter', `${place}: the listener filter ${filter.name} is not supported`);
    }
  }
  if (proxyProtocol === undefined && tls === undefined && http === undefined) return undefined;
  return {
    proxyProtocol,
    tls,
    http,
    timeoutMs: durationToTimerMs(message.listenerFiltersTimeout) ?? defaults.filtersTimeoutMs,
    continuesOnTimeout: message.continueOnListenerFiltersTimeout,
  };
}

/** listener_components.proto `ListenerFilterChainMatchPredicate`, as far as it is about destination ports. */
function compileDisabledPorts(predicate: ListenerFilterChainMatchPredicate | undefined, place: string): PortRange[] {
  if (predicate === undefined) return [];
  const { rule } = predicate;
  if (rule.case === 'destinationPortRange') return [{ start: rule.value.start, end: rule.value.end }];
  if (rule.case === 'orMatch') return rule.value.rules.flatMap((inner) => compileDisabledPorts(inner, place));
  throw new MizzenError('unsupported-listener-filter', `${place}: filter_disabled may only name destination_port_range, or several with or_match`);
}

function compileUdpListener(
  message: ListenerMessage,
  at: { readonly name: string; readonly address: string; readonly port: number },
  environment: ListenerEnvironment,
): CompiledListener {
  const place = `listener ${message.name}`;
  const [filter] = message.listenerFilters;
  const config = unpackAny(UdpProxyConfigSchema, filter?.configType.case === 'typedConfig' ? filter.configType.value : undefined);
  if (message.listenerFilters.length !== 1 || !config)
    throw new MizzenError('unsupported-listener', `${place}: a UDP listener needs one listener filter, udp_proxy`);
  const { routeSpecifier: route } = config;
  if (route.case !== 'cluster') throw new MizzenError('unsupported-udp-proxy', `${place}: a UDP proxy must name its cluster (a matcher is not supported)`);
  return {
    kind: 'udp',
    config: {
      ...at,
      cluster: route.value,
      context: environment.context,
      idleTimeoutMs: durationToMs(config.idleTimeout) ?? 60_000,
      balancesPackets: config.usePerPacketLoadBalancing,
    },
    routeNames: [],
    secretNames: [],
    missing: () => [],
  };
}
