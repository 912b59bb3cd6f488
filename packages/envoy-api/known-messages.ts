import { ClusterSchema } from './gen/envoy/config/cluster/v3/cluster_pb.js';
import { ClusterLoadAssignmentSchema } from './gen/envoy/config/endpoint/v3/endpoint_pb.js';
import { ListenerSchema } from './gen/envoy/config/listener/v3/listener_pb.js';
import { RouteConfigurationSchema } from './gen/envoy/config/route/v3/route_pb.js';
import { OpenTelemetryConfigSchema } from './gen/envoy/config/trace/v3/opentelemetry_pb.js';
import { FileAccessLogSchema } from './gen/envoy/extensions/access_loggers/file/v3/file_pb.js';
import { CorsPolicySchema, CorsSchema } from './gen/envoy/extensions/filters/http/cors/v3/cors_pb.js';
import { ExtAuthzSchema } from './gen/envoy/extensions/filters/http/ext_authz/v3/ext_authz_pb.js';
import { HTTPFaultSchema } from './gen/envoy/extensions/filters/http/fault/v3/fault_pb.js';
import { ConfigSchema as GrpcHttp1BridgeSchema } from './gen/envoy/extensions/filters/http/grpc_http1_bridge/v3/config_pb.js';
import { GrpcWebSchema } from './gen/envoy/extensions/filters/http/grpc_web/v3/grpc_web_pb.js';
import { JwtAuthenticationSchema } from './gen/envoy/extensions/filters/http/jwt_authn/v3/config_pb.js';
import { LocalRateLimitSchema } from './gen/envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit_pb.js';
import {
  RateLimitPerRouteSchema as EnvoyRateLimitPerRouteSchema,
  RateLimitSchema as EnvoyRateLimitSchema,
} from './gen/envoy/extensions/filters/http/ratelimit/v3/rate_limit_pb.js';
import { RBACSchema as HttpRbacSchema } from './gen/envoy/extensions/filters/http/rbac/v3/rbac_pb.js';
import { RouterSchema } from './gen/envoy/extensions/filters/http/router/v3/router_pb.js';
import { HttpInspectorSchema } from './gen/envoy/extensions/filters/listener/http_inspector/v3/http_inspector_pb.js';
import { OriginalDstSchema } from './gen/envoy/extensions/filters/listener/original_dst/v3/original_dst_pb.js';
import { ProxyProtocolSchema } from './gen/envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol_pb.js';
import { TlsInspectorSchema } from './gen/envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector_pb.js';
import { ExtAuthzSchema as NetworkExtAuthzSchema } from './gen/envoy/extensions/filters/network/ext_authz/v3/ext_authz_pb.js';
import { HttpConnectionManagerSchema } from './gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { RBACSchema as NetworkRbacSchema } from './gen/envoy/extensions/filters/network/rbac/v3/rbac_pb.js';
import { TcpProxySchema } from './gen/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy_pb.js';
import { UdpProxyConfigSchema } from './gen/envoy/extensions/filters/udp/udp_proxy/v3/udp_proxy_pb.js';
import { UriTemplateMatchConfigSchema } from './gen/envoy/extensions/path/match/uri_template/v3/uri_template_match_pb.js';
import { PreviousHostsPredicateSchema } from './gen/envoy/extensions/retry/host/previous_hosts/v3/previous_hosts_pb.js';
import { PreviousPrioritiesConfigSchema } from './gen/envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config_pb.js';
import { ProxyProtocolUpstreamTransportSchema } from './gen/envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol_pb.js';
import { RawBufferSchema } from './gen/envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer_pb.js';
import { SecretSchema } from './gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import { DownstreamTlsContextSchema, UpstreamTlsContextSchema } from './gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { HttpProtocolOptionsSchema } from './gen/envoy/extensions/upstreams/http/v3/http_protocol_options_pb.js';
import {
  AuthenticationPerRouteSchema,
  AuthenticationSchema,
  CachePerRouteSchema,
  CredentialPerRouteSchema,
  IpAccessPerRouteSchema,
  LoginPerRouteSchema,
  OwnedHeadersSchema,
  RateLimitPerRouteSchema,
  RateLimitSchema,
  ScriptPerRouteSchema,
  TranscodingPerRouteSchema,
  ValidationPerRouteSchema,
} from './gen/mizzen/http/v1/filters_pb.js';

/**
 * The messages that configuration may hold packed: what reading and writing its JSON form needs to know. Messages, not their files: a
 * registry of files takes ten times as long to make.
 */
export const knownMessages = [
  AuthenticationPerRouteSchema,
  AuthenticationSchema,
  CachePerRouteSchema,
  ClusterLoadAssignmentSchema,
  ClusterSchema,
  CorsPolicySchema,
  CorsSchema,
  CredentialPerRouteSchema,
  DownstreamTlsContextSchema,
  EnvoyRateLimitPerRouteSchema,
  EnvoyRateLimitSchema,
  ExtAuthzSchema,
  FileAccessLogSchema,
  GrpcHttp1BridgeSchema,
  GrpcWebSchema,
  HTTPFaultSchema,
  HttpConnectionManagerSchema,
  HttpInspectorSchema,
  HttpProtocolOptionsSchema,
  HttpRbacSchema,
  IpAccessPerRouteSchema,
  JwtAuthenticationSchema,
  ListenerSchema,
  LocalRateLimitSchema,
  LoginPerRouteSchema,
  NetworkExtAuthzSchema,
  NetworkRbacSchema,
  OpenTelemetryConfigSchema,
  OriginalDstSchema,
  OwnedHeadersSchema,
  PreviousHostsPredicateSchema,
  PreviousPrioritiesConfigSchema,
  ProxyProtocolSchema,
  ProxyProtocolUpstreamTransportSchema,
  RateLimitPerRouteSchema,
  RateLimitSchema,
  RawBufferSchema,
  RouteConfigurationSchema,
  RouterSchema,
  ScriptPerRouteSchema,
  SecretSchema,
  TcpProxySchema,
  TlsInspectorSchema,
  TranscodingPerRouteSchema,
  UdpProxyConfigSchema,
  UpstreamTlsContextSchema,
  UriTemplateMatchConfigSchema,
  ValidationPerRouteSchema,
] as const;
