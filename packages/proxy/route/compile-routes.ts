import type { Any } from '@bufbuild/protobuf/wkt';
import type { Metadata } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import {
  type Route as RouteMessage,
  RouteSchema,
  VirtualHost_TlsRequirementType,
  type VirtualHost as VirtualHostMessage,
  VirtualHostSchema,
} from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { type RouteConfiguration, RouteConfigurationSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_pb.js';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import { compileAction } from './compile-action.ts';
import { compileFilterConfigs } from './compile-filter-configs.ts';
import { compileMatch } from './compile-match.ts';
import { compileCors, compileFault } from './compile-policies.ts';
import { type HeaderMutations, HeaderOperations } from './header-operations.ts';
import { compileRateLimits, type RouteRateLimits } from './rate-limit-actions.ts';
import { Route } from './route.ts';
import { RouteTable, type ServiceName, VirtualHost } from './route-table.ts';

const headerFields = ['requestHeadersToAdd', 'requestHeadersToRemove', 'responseHeadersToAdd', 'responseHeadersToRemove'] as const;
const supportedOfTable = supportedFields(RouteConfigurationSchema, [
  ...['name', 'virtualHosts', 'mostSpecificHeaderMutationsWins', 'validateClusters', 'maxDirectResponseBodySizeBytes', 'requestMirrorPolicies'],
  ...['ignorePortInHostMatching', 'typedPerFilterConfig', 'metadata', ...headerFields],
]);
const supportedOfHost = supportedFields(VirtualHostSchema, [
  ...['name', 'domains', 'routes', 'requireTls', 'typedPerFilterConfig', 'includeRequestAttemptCount', 'includeAttemptCountInResponse', 'retryPolicy'],
  ...['hedgePolicy', 'requestMirrorPolicies', 'metadata', 'rateLimits', ...headerFields],
]);
const supportedOfRoute = supportedFields(RouteSchema, [
  'name',
  'match',
  'route',
  'redirect',
  'directResponse',
  'metadata',
  'decorator',
  'typedPerFilterConfig',
  ...headerFields,
]);

/** Compiles a RouteConfiguration. What it cannot honour is refused (and becomes a NACK), never left out in silence. */
export function compileRouteTable(config: RouteConfiguration, random: () => number = Math.random): RouteTable {
  refuseUnsupported(RouteConfigurationSchema, config, supportedOfTable, `route table ${config.name}`);
  const hosts = config.virtualHosts.map((host) => ({ domains: host.domains, host: compileHost(host, config, random) }));
  return new RouteTable(config.name, config.ignorePortInHostMatching, hosts);
}

function compileHost(host: VirtualHostMessage, table: RouteConfiguration, random: () => number): VirtualHost {
  const place = `route table ${table.name}, virtual host ${host.name}`;
  refuseUnsupported(VirtualHostSchema, host, supportedOfHost, place);
  return new VirtualHost({
    name: host.name,
    routes: host.routes.map((route, i) => compileRoute(route, i, host, table, random, place)),
    requiresTls: host.requireTls !== VirtualHost_TlsRequirementType.NONE,
    countsAttempts: host.includeRequestAttemptCount,
    tellsAttempts: host.includeAttemptCountInResponse,
    service: serviceNameOf(host.metadata),
  });
}

/** The service that Istio's metadata names: `filter_metadata.istio.services[0]`. */
export function serviceNameOf(metadata: Metadata | undefined): ServiceName | undefined {
  const services = metadata?.filterMetadata['istio']?.['services'];
  const first = Array.isArray(services) ? services[0] : undefined;
  if (typeof first !== 'object' || first === null || Array.isArray(first)) return undefined;
  return { host: String(first['host'] ?? ''), name: String(first['name'] ?? ''), namespace: String(first['namespace'] ?? '') };
}

function compileRoute(route: RouteMessage, index: number, host: VirtualHostMessage, table: RouteConfiguration, random: () => number, place: string): Route {
  refuseUnsupported(RouteSchema, route, supportedOfRoute, place);
  const { path, conditions } = compileMatch(route.match, random, place);
  const perFilter: Readonly<Record<string, Any>> = { ...table.typedPerFilterConfig, ...host.typedPerFilterConfig, ...route.typedPerFilterConfig };
  // The last has the last word (router config_impl.cc): that of the table, unless it has said otherwise.
  const places = table.mostSpecificHeaderMutationsWins ? [table, host, route] : [route, host, table];
  const requestHeaders = places.map((one): HeaderMutations => ({ add: one.requestHeadersToAdd, remove: one.requestHeadersToRemove }));
  const responseHeaders = places.map((one): HeaderMutations => ({ add: one.responseHeadersToAdd, remove: one.responseHeadersToRemove }));
  return new Route({
    name: route.name,
    path,
    conditions,
    action: compileAction(
      route,
      path,
      {
        requestHeaders,
        responseHeaders,
        retry: host.retryPolicy,
        hedge: host.hedgePolicy,
        mirrors: host.requestMirrorPolicies.length > 0 ? host.requestMirrorPolicies : table.requestMirrorPolicies,
        maxDirectResponseBytes: table.maxDirectResponseBodySizeBytes ?? defaultDirectResponseBytes,
      },
      place,
    ),
    cors: compileCors(
      [route, host, table].map(({ typedPerFilterConfig }) => typedPerFilterConfig['envoy.filters.http.cors']),
      place,
    ),
    fault: compileFault(perFilter['envoy.filters.http.fault'], place),
    filterConfigs: compileFilterConfigs(
      [
        { perFilter: table.typedPerFilterConfig, place: `route table ${table.name}` },
        { perFilter: host.typedPerFilterConfig, place },
        { perFilter: route.typedPerFilterConfig, place: `${place}, route ${index}` },
      ],
      withRoutes,
    ),
    rateLimits: compileRouteRateLimits(route, host, place),
    responseHeaders: HeaderOperations.compile(responseHeaders, place),
    origin: String(route.metadata?.filterMetadata['mizzen.provenance']?.['origin'] ?? ''),
  });
}

function compileRouteRateLimits({ action, metadata }: RouteMessage, host: VirtualHostMessage, place: string): RouteRateLimits | undefined {
  // As in Envoy, what is answered by the proxy itself is not counted.
  if (action.case !== 'route' || (action.value.rateLimits.length === 0 && host.rateLimits.length === 0)) return undefined;
  return {
    ofRoute: compileRateLimits(action.value.rateLimits, metadata, place),
    ofHost: compileRateLimits(host.rateLimits, metadata, place),
    includesHost: action.value.includeVhRateLimits ?? false,
  };
}

/** Filters whose part in a route is compiled with it. */
const withRoutes = new Set(['envoy.filters.http.cors', 'envoy.filters.http.fault']);

/** route.proto `max_direct_response_body_size_bytes`. */
const defaultDirectResponseBytes = 4096;
