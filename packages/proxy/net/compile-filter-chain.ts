import { createHash } from 'node:crypto';
import type net from 'node:net';
import type { TLSSocket } from 'node:tls';
import { create, toBinary } from '@bufbuild/protobuf';
import { errorBoundary, MizzenError } from '@mizzen/common';
import { durationToMs, durationToTimerMs, unpackAny } from '@mizzen/envoy-api';
import type { CidrRange } from '@mizzen/envoy-api/gen/envoy/config/core/v3/address_pb.js';
import { TrafficDirection } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import {
  type FilterChain as FilterChainMessage,
  FilterChainSchema,
  type FilterChainMatch as MatchMessage,
  type Filter as NetworkFilter,
} from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import type { Listener as ListenerMessage } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { ExtAuthzSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/ext_authz/v3/ext_authz_pb.js';
import { HttpConnectionManagerSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { RBACSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/rbac/v3/rbac_pb.js';
import {
  type TcpProxy,
  TcpProxy_TunnelingConfigSchema,
  TcpProxySchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy_pb.js';
import { DownstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { byRules, bySomebodyElse, type ConnectionStep } from '../authorization/connection-authorization.ts';
import { Enforcement } from '../authorization/enforcement.ts';
import type { ConnectionSettings } from '../http/connection-settings.ts';
import { HttpConnection } from '../http/http-connection.ts';
import { WeightedTargets } from '../route/weighted-targets.ts';
import { explainTlsError } from '../tls/explain-tls-error.ts';
import { type PeerIdentity, peerIdentityOf } from '../tls/peer-identity.ts';
import { ServerTls } from '../tls/server-tls.ts';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import { compileAccessLogs, compileConnectionManager } from './compile-connection-manager.ts';
import type { ListenerEnvironment, ListenerNeeds } from './compile-listener.ts';
import type { ConnectionInfo } from './connection-info.ts';
import { AddressRanges, type FilterChain, type FilterChainMatch } from './filter-chain.ts';
import { type TcpProxySettings, TcpSession } from './tcp-session.ts';

const sweeping = errorBoundary('connection.sweep');
const securing = errorBoundary('tls.server');

/** Handshakes must have ended by then (`transport_socket_connect_timeout`; Envoy has no limit of its own). */
const defaultHandshakeTimeoutMs = 15_000;

const supportedOfChain = supportedFields(FilterChainSchema, [
  'filterChainMatch',
  'filters',
  'transportSocket',
  'name',
  'metadata',
  'transportSocketConnectTimeout',
]);
const supportedOfTcpProxy = supportedFields(TcpProxySchema, [
  ...[
    'statPrefix',
    'cluster',
    'weightedClusters',
    'idleTimeout',
    'accessLog',
    'maxConnectAttempts',
    'maxDownstreamConnectionDuration',
    'hashPolicy',
    'tunnelingConfig',
  ],
]);

const supportedOfTunnel = supportedFields(TcpProxy_TunnelingConfigSchema, ['hostname']);

function checkedTarget(target: string, place: string): string {
  if (!/^(?:[\w.-]+|\[[0-9a-fA-F:]+\]):\d{1,5}$/.test(target))
    throw new MizzenError('invalid-tcp-proxy', `${place}, tunneling_config: ${JSON.stringify(target)} is no HOST:PORT`);
  return target;
}

/** What a chain does with a connection, HTTP or bytes. */
type Serving = { readonly kind: 'http'; readonly settings: ConnectionSettings } | { readonly kind: 'tcp'; readonly settings: TcpProxySettings };

export function compileFilterChain(
  message: FilterChainMessage,
  listener: ListenerMessage,
  place: string,
  environment: ListenerEnvironment,
  needs: ListenerNeeds,
): FilterChain {
  refuseUnsupported(FilterChainSchema, message, supportedOfChain, place);
  const tlsConfig = unpackAny(
    DownstreamTlsContextSchema,
    message.transportSocket?.configType.case === 'typedConfig' ? message.transportSocket.configType.value : undefined,
  );
  if (message.transportSocket && !tlsConfig && message.transportSocket.name !== 'envoy.transport_sockets.raw_buffer')
    throw new MizzenError('unsupported-transport', `${place}: the transport socket ${message.transportSocket.name} is not supported`);
  let serving = compileServing(message, listener, tlsConfig !== undefined, place, environment, needs);
  const isHttp = serving.kind === 'http';
  const connections = new Set<HttpConnection>();
  const sessions = new Set<TcpSession>();
  const handshakes = new Set<net.Socket>();
  let isDraining = false;
  const { counters } = environment.context;
  const currentSettings = () => serving.settings as ConnectionSettings;
  const connectionEnded = (connection: HttpConnection) => connections.delete(connection);
  const sessionEnded = (session: TcpSession) => sessions.delete(session);

  const serve = (socket: net.Socket, info: ConnectionInfo, peer: PeerIdentity | undefined, first: Buffer | undefined) => {
    if (serving.kind === 'tcp') {
      const session = new TcpSession(socket, info, peer, first, serving.settings, sessionEnded);
      if (!session.isClosed) sessions.add(session);
      return;
    }
    const connection = new HttpConnection(socket, info, peer, currentSettings, connectionEnded);
    connections.add(connection);
    if (isDraining) connection.drain(true);
    if (first !== undefined) connection.onData(first);
    if (socket.isPaused()) socket.resume();
  };

  const secured = (socket: TLSSocket, info: ConnectionInfo) => {
    counters.values.tls_handshakes_total++;
    if (socket.isSessionReused()) counters.values.tls_sessions_resumed_total++;
    const problem = tls!.verifyPeer(socket);
    if (problem !== undefined) return refusePeer(socket, problem);
    if (!tls!.requiresClient) return serve(socket, info, undefined, undefined);
    const peer = peerIdentityOf(socket);
    if (tls!.isMesh && 'problem' in peer) return refusePeer(socket, peer.problem);
    serve(socket, info, 'problem' in peer ? undefined : peer, undefined);
  };

  const tls: ServerTls | undefined = tlsConfig
    ? new ServerTls(
        tlsConfig,
        environment.secrets,
        {
          handshakeTimeoutMs: durationToTimerMs(message.transportSocketConnectTimeout) ?? defaultHandshakeTimeoutMs,
          sessionTicketKeys: environment.sessionTicketKeys,
          onReady: environment.onSecretReady,
          onSecure(socket: TLSSocket, info: ConnectionInfo) {
            if (!securing.run(() => secured(socket, info))) socket.destroy();
          },
          onError(error, socket) {
            counters.values.tls_handshake_failures_total++;
            environment.logger.warn('a TLS handshake failed', { listener: listener.name, from: socket.remoteAddress, reason: explainTlsError(error, socket) });
          },
        },
        place,
      )
    : undefined;
  const refusePeer = (socket: TLSSocket, reason: string) => {
    counters.values.identity_refused_total++;
    environment.logger.warn('refused a peer', { listener: listener.name, from: socket.remoteAddress, reason });
    socket.destroy();
  };

  return {
    name: message.name,
    signature: createHash('sha256')
      .update(
        toBinary(
          FilterChainSchema,
          create(FilterChainSchema, { name: message.name, filterChainMatch: message.filterChainMatch!, transportSocket: message.transportSocket! }),
        ),
      )
      .update(isHttp ? 'http' : toBinary(FilterChainSchema, message))
      .digest('hex'),
    get settings() {
      return isHttp ? currentSettings() : undefined;
    },
    adopt(newer) {
      if (newer.settings !== undefined) serving = { kind: 'http', settings: newer.settings };
    },
    match: compileMatch(message.filterChainMatch, place),
    tls,
    accept(socket, info, first) {
      if (tls === undefined) return serve(socket, info, undefined, first);
      handshakes.add(socket);
      socket.once('close', () => handshakes.delete(socket));
      tls.accept(socket, info, first);
    },
    drain(gently) {
      isDraining = true;
      for (const connection of connections) connection.drain(gently);
    },
    closeAll() {
      for (const connection of connections) connection.close();
      for (const session of sessions) session.close('', 'proxy_closing');
      for (const socket of handshakes) socket.destroy();
    },
    // `handshakes` holds every connection with TLS, also those whose handshake is under way.
    activeConnections: () => Math.max(connections.size + sessions.size, handshakes.size),
    held(visit) {
      for (const connection of connections) connection.held(visit);
      for (const session of sessions) visit(session.heldBytes, () => session.close('OM', 'overload'));
    },
    sweep(now) {
      // One that throws closes, and the others are still swept.
      for (const connection of connections) if (!sweeping.run(() => connection.sweep(now))) connection.close();
      for (const session of sessions) if (!sweeping.run(() => session.sweep(now))) session.close('', 'internal_error');
    },
    close: () => tls?.close(),
  };
}

function compileServing(
  message: FilterChainMessage,
  listener: ListenerMessage,
  isTls: boolean,
  place: string,
  environment: ListenerEnvironment,
  needs: ListenerNeeds,
): Serving {
  const filter = message.filters.at(-1);
  const any = filter?.configType.case === 'typedConfig' ? filter.configType.value : undefined;
  if (!any) throw new MizzenError('unsupported-filter', `${place}: a chain ends in http_connection_manager or tcp_proxy`);
  const authorizations = message.filters.slice(0, -1).map((before) => compileAuthorization(before, place, environment));
  const manager = unpackAny(HttpConnectionManagerSchema, any);
  if (manager && authorizations.length > 0)
    throw new MizzenError('unsupported-filter', `${place}: before http_connection_manager no network filter is supported: use HTTP filters`);
  if (manager) return { kind: 'http', settings: compileConnectionManager(manager, listener, isTls, place, environment, needs) };
  const tcp = unpackAny(TcpProxySchema, any);
  if (tcp) return { kind: 'tcp', settings: { ...compileTcpProxy(tcp, listener, isTls, place, environment), authorizations } };
  throw new MizzenError('unsupported-filter', `${place}: the network filter ${filter!.name} is not supported`);
}

const supportedOfRbac = supportedFields(RBACSchema, ['rules', 'shadowRules', 'shadowRulesStatPrefix', 'statPrefix']);

/** Who may connect. */
function compileAuthorization({ name, configType }: NetworkFilter, place: string, { context }: ListenerEnvironment): ConnectionStep {
  const any = configType.case === 'typedConfig' ? configType.value : undefined;
  const external = unpackAny(ExtAuthzSchema, any);
  if (external) return bySomebodyElse(external, `${place}, ${name}`, context);
  const config = unpackAny(RBACSchema, any);
  if (!config) throw new MizzenError('unsupported-filter', `${place}: the network filter ${name} is not supported before another one`);
  refuseUnsupported(RBACSchema, config, supportedOfRbac, `${place}, ${name}`);
  return byRules(new Enforcement(config, `${place}, ${name}`, context.counters));
}

const hourMs = 3_600_000;

function compileTcpProxy(
  tcp: TcpProxy,
  listener: ListenerMessage,
  isTls: boolean,
  place: string,
  environment: ListenerEnvironment,
): Omit<TcpProxySettings, 'authorizations'> {
  refuseUnsupported(TcpProxySchema, tcp, supportedOfTcpProxy, place);
  const { clusterSpecifier: to } = tcp;
  const targets =
    to.case === 'cluster'
      ? [{ cluster: to.value, weight: 1 }]
      : (to.value?.clusters ?? []).map((cluster) => ({ cluster: cluster.name, weight: cluster.weight }));
  for (const { policySpecifier } of tcp.hashPolicy)
    if (policySpecifier.case !== 'sourceIp') throw new MizzenError('unsupported-filter', `${place}: hash_policy.${policySpecifier.case} is not supported`);
  refuseUnsupported(TcpProxy_TunnelingConfigSchema, tcp.tunnelingConfig, supportedOfTunnel, `${place}, tunneling_config`);
  if (targets.length === 0) throw new MizzenError('invalid-tcp-proxy', `${place}: the TCP proxy names no cluster`);
  return {
    context: environment.context,
    isInbound: listener.trafficDirection === TrafficDirection.INBOUND,
    isTls,
    targets: new WeightedTargets(targets),
    idleTimeoutMs: durationToMs(tcp.idleTimeout) ?? hourMs,
    maxDurationMs: durationToMs(tcp.maxDownstreamConnectionDuration) ?? 0,
    maxConnectAttempts: tcp.maxConnectAttempts ?? 1,
    tunnelTo: tcp.tunnelingConfig && checkedTarget(tcp.tunnelingConfig.hostname, place),
    hashesSource: tcp.hashPolicy.some((policy) => policy.policySpecifier.case === 'sourceIp'),
    accessLogs: compileAccessLogs(tcp.accessLog, place, environment),
  };
}

function compileMatch(match: MatchMessage | undefined, place: string): FilterChainMatch {
  if (match && (match.directSourcePrefixRanges.length > 0 || match.sourceType !== 0))
    throw new MizzenError('unsupported-filter-chain-match', `${place}: direct_source_prefix_ranges and source_type cannot be matched on`);
  const protocol = match?.transportProtocol ?? '';
  if (protocol !== '' && protocol !== 'tls' && protocol !== 'raw_buffer')
    throw new MizzenError('unsupported-filter-chain-match', `${place}: the transport protocol ${JSON.stringify(protocol)} is not known: tls or raw_buffer`);
  return {
    destinationPort: match?.destinationPort,
    destinations: compileRanges(match?.prefixRanges ?? []),
    serverNames: (match?.serverNames ?? []).map((name) => name.toLowerCase()),
    transportProtocol: protocol,
    applicationProtocols: match?.applicationProtocols ?? [],
    sources: compileRanges(match?.sourcePrefixRanges ?? []),
    sourcePorts: match?.sourcePorts ?? [],
  };
}

function compileRanges(ranges: readonly CidrRange[]): AddressRanges | undefined {
  if (ranges.length === 0) return undefined;
  return new AddressRanges(ranges.map((range) => ({ address: range.addressPrefix, prefixLength: range.prefixLen ?? 0 })));
}
