import { createHash } from 'node:crypto';
import type net from 'node:net';
import type { TLSSocket } from 'node:tls';
import { create, toBinary } from '@bufbuild/protobuf';
import { type Logger, MizzenError } from '@mizzen/common';
import { durationToMs, unpackAny } from '@mizzen/envoy-api';
import { TrafficDirection } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { type FilterChain as FilterChainMessage, FilterChainSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import type { Listener as ListenerMessage } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { FileAccessLogSchema } from '@mizzen/envoy-api/gen/envoy/extensions/access_loggers/file/v3/file_pb.js';
import {
  HttpConnectionManager_ForwardClientCertDetails as CertDetails,
  type HttpConnectionManager,
  HttpConnectionManagerSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { TcpProxySchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy_pb.js';
import { DownstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { faultFilter } from '../filters/fault.ts';
import type { HttpFilter } from '../filters/filter.ts';
import type { ConnectionSettings, ProxyContext } from '../http/connection-settings.ts';
import { DownstreamConnection } from '../http/downstream-connection.ts';
import { defaultHeadLimits } from '../http1/head-limits.ts';
import { compileRouteTable } from '../route/compile-routes.ts';
import type { RouteTable } from '../route/route-table.ts';
import { type AccessLogFile, compileAccessLogFormat, defaultAccessLogFormat } from '../telemetry/access-log.ts';
import { type PeerIdentity, peerIdentityOf } from '../tls/peer-identity.ts';
import type { SecretStore } from '../tls/secret-store.ts';
import { ServerTls } from '../tls/server-tls.ts';
import type { FilterChain } from './filter-chain.ts';
import type { ListenerConfig } from './listener.ts';
import { proxyTcp } from './tcp-proxy.ts';

/** What compiling a listener needs of the proxy around it. */
export interface ListenerEnvironment {
  readonly context: ProxyContext;
  readonly secrets: SecretStore;
  readonly logger: Logger;
  readonly routeTable: (name: string) => RouteTable | undefined;
  readonly accessLog: (path: string) => AccessLogFile;
  /** A secret that a chain was waiting for has come. */
  readonly onSecretReady: () => void;
}

export interface CompiledListener {
  readonly config: ListenerConfig;
  readonly routeNames: readonly string[];
  readonly secretNames: readonly string[];
  /** What it must have before it takes connections. */
  missing(): string[];
}

const handshakeTimeoutMs = 15_000;

export function compileListener(message: ListenerMessage, environment: ListenerEnvironment): CompiledListener {
  const address = message.address?.address;
  if (address?.case !== 'socketAddress' || address.value.portSpecifier.case !== 'portValue')
    throw new MizzenError('unsupported-listener', `listener ${message.name}: a socket address with a port is needed`);
  const routeNames: string[] = [];
  const chains = message.filterChains.map((chain, i) =>
    compileChain(chain, message, `listener ${message.name}, filter chain ${chain.name || i}`, environment, routeNames),
  );
  if (chains.length === 0) throw new MizzenError('invalid-listener', `listener ${message.name}: no filter chains`);
  for (const filter of message.listenerFilters)
    if (filter.name !== 'envoy.filters.listener.tls_inspector')
      throw new MizzenError('unsupported-listener-filter', `listener ${message.name}: the listener filter ${filter.name} is not supported`);
  const inspectsTls = message.listenerFilters.length > 0;
  if (!inspectsTls && chains.some((chain) => chain.transportProtocol !== '' || chain.serverNames.length > 0))
    throw new MizzenError('invalid-listener', `listener ${message.name}: its filter chains match on TLS, but there is no tls_inspector`);
  return {
    config: { name: message.name, address: address.value.address, port: address.value.portSpecifier.value, chains, inspectsTls },
    routeNames,
    secretNames: chains.flatMap((chain) => chain.tls?.secretNames() ?? []),
    missing: () => [
      ...chains.flatMap((chain) => chain.tls?.missingSecrets() ?? []),
      ...routeNames.filter((name) => environment.routeTable(name) === undefined),
    ],
  };
}

function compileChain(
  message: FilterChainMessage,
  listener: ListenerMessage,
  place: string,
  environment: ListenerEnvironment,
  routeNames: string[],
): FilterChain {
  const match = message.filterChainMatch;
  if (match && (match.prefixRanges.length > 0 || match.destinationPort || match.sourcePrefixRanges.length > 0 || match.sourcePorts.length > 0))
    throw new MizzenError('unsupported-filter-chain-match', `${place}: only server names, transport and application protocols can be matched on`);
  const filter = message.filters.at(-1);
  const any = filter?.configType.case === 'typedConfig' ? filter.configType.value : undefined;
  if (message.filters.length !== 1 || !any)
    throw new MizzenError('unsupported-filter', `${place}: exactly one network filter is supported (http_connection_manager or tcp_proxy)`);
  const manager = unpackAny(HttpConnectionManagerSchema, any);
  const tcp = unpackAny(TcpProxySchema, any);
  if (!manager && !tcp) throw new MizzenError('unsupported-filter', `${place}: the network filter ${filter!.name} is not supported`);
  const tlsConfig = unpackAny(
    DownstreamTlsContextSchema,
    message.transportSocket?.configType.case === 'typedConfig' ? message.transportSocket.configType.value : undefined,
  );
  if (message.transportSocket && !tlsConfig && message.transportSocket.name !== 'envoy.transport_sockets.raw_buffer')
    throw new MizzenError('unsupported-transport', `${place}: the transport socket ${message.transportSocket.name} is not supported`);

  const connections = new Set<DownstreamConnection>();
  const sockets = new Set<net.Socket>();
  let isDraining = false;
  const { counters } = environment.context;
  let settings = manager ? compileManager(manager, listener, tlsConfig !== undefined, place, environment, routeNames) : undefined;
  const serve = (socket: net.Socket, peer: PeerIdentity | undefined, first: Buffer | undefined) => {
    if (settings !== undefined) {
      const connection = new DownstreamConnection(
        socket,
        peer,
        () => settings!,
        (ended) => connections.delete(ended),
      );
      connections.add(connection);
      if (isDraining) connection.drain();
      if (first !== undefined) connection.onData(first);
      return;
    }
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    proxyTcp(socket, first, environment.context.findCluster(tcp!.clusterSpecifier.case === 'cluster' ? tcp!.clusterSpecifier.value : ''));
  };
  const tls = tlsConfig
    ? new ServerTls(
        tlsConfig,
        environment.secrets,
        {
          handshakeTimeoutMs,
          onReady: environment.onSecretReady,
          onSecure(socket: TLSSocket) {
            socket.setNoDelay(true);
            if (!tls!.requiresClient) return serve(socket, undefined, undefined);
            const peer = peerIdentityOf(socket);
            if (tls!.isMesh && 'problem' in peer) {
              counters.values.identity_refused_total++;
              environment.logger.warn('refused a peer', { listener: listener.name, from: socket.remoteAddress, reason: peer.problem });
              return void socket.destroy();
            }
            serve(socket, 'problem' in peer ? undefined : peer, undefined);
          },
          onError(error, socket) {
            counters.values.tls_handshake_failures_total++;
            environment.logger.warn('a TLS handshake failed', { listener: listener.name, from: socket.remoteAddress, reason: explainTlsError(error) });
          },
        },
        place,
      )
    : undefined;
  return {
    name: message.name,
    signature: createHash('sha256')
      .update(
        toBinary(
          FilterChainSchema,
          create(FilterChainSchema, { name: message.name, filterChainMatch: message.filterChainMatch!, transportSocket: message.transportSocket! }),
        ),
      )
      .update(manager ? 'http' : toBinary(FilterChainSchema, message))
      .digest('hex'),
    get settings() {
      return settings;
    },
    adopt(newer) {
      settings = newer.settings;
    },
    transportProtocol: match?.transportProtocol === 'tls' || match?.transportProtocol === 'raw_buffer' ? match.transportProtocol : '',
    serverNames: (match?.serverNames ?? []).map((name) => name.toLowerCase()),
    applicationProtocols: match?.applicationProtocols ?? [],
    tls,
    acceptPlain: (socket, first) => serve(socket, undefined, first),
    drain() {
      isDraining = true;
      for (const connection of connections) connection.drain();
    },
    closeAll() {
      for (const connection of connections) connection.close();
      for (const socket of sockets) socket.destroy();
    },
    activeConnections: () => connections.size + sockets.size,
    sweep(now) {
      for (const connection of connections) connection.sweep(now);
    },
    close: () => tls?.close(),
  };
}

function explainTlsError(error: Error): string {
  const code = (error as NodeJS.ErrnoException).code ?? '';
  if (/CERT_SIGNATURE_FAILURE|UNABLE_TO_VERIFY|SELF_SIGNED|UNABLE_TO_GET_ISSUER/i.test(code))
    return `the peer's certificate is not signed by a root of this mesh (${code})`;
  if (/CERT_HAS_EXPIRED/i.test(code)) return "the peer's certificate has expired";
  if (/PEER_DID_NOT_RETURN/i.test(code)) return 'the peer sent no certificate';
  return `${error.message.split('\n')[0]!.slice(0, 200)}${code ? ` (${code})` : ''}`;
}

function compileManager(
  manager: HttpConnectionManager,
  listener: ListenerMessage,
  isTls: boolean,
  place: string,
  environment: ListenerEnvironment,
  routeNames: string[],
): ConnectionSettings {
  let routeTable: () => RouteTable | undefined;
  switch (manager.routeSpecifier.case) {
    case 'routeConfig': {
      const table = compileRouteTable(manager.routeSpecifier.value);
      routeTable = () => table;
      break;
    }
    case 'rds': {
      const name = manager.routeSpecifier.value.routeConfigName;
      routeNames.push(name);
      routeTable = () => environment.routeTable(name);
      break;
    }
    default:
      throw new MizzenError('unsupported-routes', `${place}: routes must come inline or by RDS`);
  }
  const inbound = listener.trafficDirection === TrafficDirection.INBOUND;
  const certDetails = {
    [CertDetails.SANITIZE]: 'sanitize',
    [CertDetails.FORWARD_ONLY]: 'forwardOnly',
    [CertDetails.ALWAYS_FORWARD_ONLY]: 'forwardOnly',
    [CertDetails.APPEND_FORWARD]: 'appendForward',
    [CertDetails.SANITIZE_SET]: 'sanitizeSet',
  } as const;
  const minutes = 60_000;
  return {
    context: environment.context,
    direction: inbound ? 'inbound' : manager.useRemoteAddress === true ? 'gateway' : 'outbound',
    isTls,
    routeTable,
    filters: compileFilters(manager, place, environment),
    accessLogs: manager.accessLog.map((log) => {
      const file = unpackAny(FileAccessLogSchema, log.configType.case === 'typedConfig' ? log.configType.value : undefined);
      if (!file) throw new MizzenError('unsupported-access-log', `${place}: the access logger ${log.name} is not supported`);
      const source =
        file.accessLogFormat.case === 'logFormat' && file.accessLogFormat.value.format.case === 'textFormatSource'
          ? file.accessLogFormat.value.format.value.specifier
          : undefined;
      const text =
        file.accessLogFormat.case === 'format' ? file.accessLogFormat.value : source?.case === 'inlineString' ? source.value : defaultAccessLogFormat;
      return { file: environment.accessLog(file.path), format: compileAccessLogFormat(text) };
    }),
    forwardClientCert: certDetails[manager.forwardClientCertDetails] ?? 'sanitize',
    usesRemoteAddress: manager.useRemoteAddress ?? false,
    preservesRequestId: manager.preserveExternalRequestId,
    setsRequestIdInResponse: manager.alwaysSetRequestIdInResponse,
    headLimits: { ...defaultHeadLimits, ...(manager.maxRequestHeadersKb ? { maxHeadBytes: manager.maxRequestHeadersKb * 1024 } : {}) },
    requestHeadersTimeoutMs: durationToMs(manager.requestHeadersTimeout) ?? minutes,
    idleTimeoutMs: durationToMs(manager.commonHttpProtocolOptions?.idleTimeout) ?? 60 * minutes,
    streamIdleTimeoutMs: durationToMs(manager.streamIdleTimeout) ?? 5 * minutes,
  };
}

function compileFilters(manager: HttpConnectionManager, place: string, environment: ListenerEnvironment): HttpFilter[] {
  const filters: HttpFilter[] = [];
  for (const [i, filter] of manager.httpFilters.entries()) {
    const isLast = i === manager.httpFilters.length - 1;
    if (filter.name === 'envoy.filters.http.router') {
      if (!isLast) throw new MizzenError('invalid-filters', `${place}: the router must be the last HTTP filter`);
    } else if (isLast) throw new MizzenError('invalid-filters', `${place}: the last HTTP filter must be the router`);
    else if (filter.name === 'envoy.filters.http.fault') filters.push(faultFilter(environment.context.random));
    else if (!filter.isOptional) throw new MizzenError('unsupported-filter', `${place}: the HTTP filter ${filter.name} is not supported`);
  }
  return filters;
}
