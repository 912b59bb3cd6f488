import { isUnixPath } from '@mizzen/common';
import { type Init, packAny } from '@mizzen/envoy-api';
import type { AccessLogSchema } from '@mizzen/envoy-api/gen/envoy/config/accesslog/v3/accesslog_pb.js';
import type { AddressSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/address_pb.js';
import type { FilterSchema, ListenerFilterSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { FileAccessLogSchema } from '@mizzen/envoy-api/gen/envoy/extensions/access_loggers/file/v3/file_pb.js';
import { CorsSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/cors/v3/cors_pb.js';
import { HTTPFaultSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/fault/v3/fault_pb.js';
import { GrpcWebSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/grpc_web/v3/grpc_web_pb.js';
import { RouterSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/router/v3/router_pb.js';
import { HttpInspectorSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/listener/http_inspector/v3/http_inspector_pb.js';
import { OriginalDstSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/listener/original_dst/v3/original_dst_pb.js';
import { TlsInspectorSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector_pb.js';
import {
  HttpConnectionManager_PathWithEscapedSlashesAction as EscapedSlashes,
  HttpConnectionManager_ForwardClientCertDetails,
  type HttpConnectionManager_TracingSchema,
  HttpConnectionManagerSchema,
  type HttpFilterSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { TcpProxySchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy_pb.js';
import type { PathNormalization } from '../mesh-config.ts';

/**
 * Envoy's default access log line, with who called, where it went, where it was going and why it ended at its end: the line that answers "who was that" when
 * something is wrong.
 */
export const accessLogFormat =
  '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER% %DOWNSTREAM_PEER_URI_SAN% %ROUTE_NAME% %DOWNSTREAM_LOCAL_ADDRESS% %RESPONSE_CODE_DETAILS%\n';

/** `exceptPorts` are destination ports whose connections it leaves alone. */
export function httpInspector(exceptPorts: readonly number[] = []): Init<typeof ListenerFilterSchema> {
  return {
    name: 'envoy.filters.listener.http_inspector',
    configType: { case: 'typedConfig', value: packAny(HttpInspectorSchema, {}) },
    ...disabledFor(exceptPorts),
  };
}

/** `exceptPorts` are destination ports whose connections it leaves alone. */
export function tlsInspector(exceptPorts: readonly number[] = []): Init<typeof ListenerFilterSchema> {
  return {
    name: 'envoy.filters.listener.tls_inspector',
    configType: { case: 'typedConfig', value: packAny(TlsInspectorSchema, {}) },
    ...disabledFor(exceptPorts),
  };
}

/** What the HTTP inspector calls HTTP. */
export const plainHttp = ['http/1.0', 'http/1.1', 'h2c'];

/** Where a connection was going before the kernel redirected it. */
export const originalDestination: Init<typeof ListenerFilterSchema> = {
  name: 'envoy.filters.listener.original_dst',
  configType: { case: 'typedConfig', value: packAny(OriginalDstSchema, {}) },
};

function disabledFor(ports: readonly number[]): Pick<Init<typeof ListenerFilterSchema>, 'filterDisabled'> {
  const rules = ports.map((port) => ({ rule: { case: 'destinationPortRange' as const, value: { start: port, end: port + 1 } } }));
  if (rules.length === 0) return {};
  return { filterDisabled: rules.length === 1 ? rules[0]! : { rule: { case: 'orMatch', value: { rules } } } };
}

/** By IP address and port, or by the path of a Unix socket, whose mode the proxy decides. */
export function listenAddress(address: string, port: number): Init<typeof AddressSchema> {
  return isUnixPath(address) ? { address: { case: 'pipe', value: { path: address } } } : socketAddress(address, port);
}

export function socketAddress(address: string, port: number) {
  return { address: { case: 'socketAddress' as const, value: { address, portSpecifier: { case: 'portValue' as const, value: port } } } };
}

/** A cluster, and its share of the connections among others. */
export interface ByteTarget {
  readonly cluster: string;
  readonly weight: number;
}

/** Carries bytes to a cluster, or to several by weight. */
export function tcpProxy(
  statPrefix: string,
  to: string | readonly ByteTarget[],
  policy: Pick<Init<typeof TcpProxySchema>, 'idleTimeout' | 'hashPolicy' | 'tunnelingConfig'> = {},
): Init<typeof FilterSchema> {
  const single = typeof to === 'string' ? to : to.length === 1 ? to[0]!.cluster : undefined;
  const clusterSpecifier: Init<typeof TcpProxySchema>['clusterSpecifier'] =
    single === undefined
      ? { case: 'weightedClusters', value: { clusters: (to as readonly ByteTarget[]).map(({ cluster, weight }) => ({ name: cluster, weight })) } }
      : { case: 'cluster', value: single };
  return {
    name: 'envoy.filters.network.tcp_proxy',
    configType: { case: 'typedConfig', value: packAny(TcpProxySchema, { statPrefix, clusterSpecifier, accessLog, ...policy }) },
  };
}

export interface ConnectionManagerOptions {
  readonly statPrefix: string;
  readonly routes: Init<typeof HttpConnectionManagerSchema>['routeSpecifier'];
  readonly direction: 'inbound' | 'outbound' | 'gateway';
  readonly isTls: boolean;
  /** Filters of APIs and workloads, in their order. */
  readonly filters?: readonly Init<typeof HttpFilterSchema>[];
  readonly tracing?: Init<typeof HttpConnectionManager_TracingSchema> | undefined;
  /** What is done to paths before anything is decided on them. */
  readonly paths?: PathNormalization | undefined;
}

/** The access log of HTTP and TCP alike. */
export const accessLog: Init<typeof AccessLogSchema>[] = [
  {
    name: 'envoy.access_loggers.file',
    configType: {
      case: 'typedConfig',
      value: packAny(FileAccessLogSchema, {
        path: '/dev/stdout',
        accessLogFormat: {
          case: 'logFormat',
          value: { format: { case: 'textFormatSource', value: { specifier: { case: 'inlineString', value: accessLogFormat } } } },
        },
      }),
    },
  },
];

const maxStreamsInbound = 100;
/** The application is no stranger. */
const maxStreamsOutbound = 1024;

/** The HTTP connection manager of every listener. Headers by which a peer could pass as somebody else are kept only from the mesh. */
export function connectionManager({ statPrefix, routes, direction, isTls, filters = [], tracing, paths }: ConnectionManagerOptions): Init<typeof FilterSchema> {
  const certDetails =
    direction === 'inbound' && isTls
      ? HttpConnectionManager_ForwardClientCertDetails.APPEND_FORWARD
      : HttpConnectionManager_ForwardClientCertDetails.SANITIZE_SET;
  return {
    name: 'envoy.filters.network.http_connection_manager',
    configType: {
      case: 'typedConfig',
      value: packAny(HttpConnectionManagerSchema, {
        statPrefix,
        routeSpecifier: routes!,
        // One connection of a client may not have more under way than what RFC 9113 recommends to take at least.
        http2ProtocolOptions: { maxConcurrentStreams: direction === 'outbound' ? maxStreamsOutbound : maxStreamsInbound, allowConnect: true },
        httpFilters: [
          { name: 'envoy.filters.http.cors', configType: { case: 'typedConfig', value: packAny(CorsSchema, {}) } },
          ...filters,
          { name: 'envoy.filters.http.grpc_web', configType: { case: 'typedConfig', value: packAny(GrpcWebSchema, {}) } },
          ...(direction === 'inbound'
            ? []
            : [{ name: 'envoy.filters.http.fault', configType: { case: 'typedConfig' as const, value: packAny(HTTPFaultSchema, {}) } }]),
          { name: 'envoy.filters.http.router', configType: { case: 'typedConfig', value: packAny(RouterSchema, {}) } },
        ],
        ...(tracing === undefined ? {} : { tracing }),
        normalizePath: true,
        ...(paths === undefined || paths === 'BASE' ? {} : { mergeSlashes: true }),
        ...(paths === 'DECODE_AND_MERGE_SLASHES' ? { pathWithEscapedSlashesAction: EscapedSlashes.UNESCAPE_AND_FORWARD } : {}),
        useRemoteAddress: direction === 'gateway',
        forwardClientCertDetails: certDetails,
        setCurrentClientCertDetails: { uri: true, dns: true, subject: true },
        accessLog,
        upgradeConfigs: [{ upgradeType: 'websocket' }],
        // Sidecar to sidecar the request id of the first hop is kept, so that one id names the whole chain.
        preserveExternalRequestId: direction !== 'gateway',
        alwaysSetRequestIdInResponse: direction === 'gateway',
      }),
    },
  };
}
