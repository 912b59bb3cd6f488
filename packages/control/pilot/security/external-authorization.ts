import { durationFromMs, type Init, packAny } from '@mizzen/envoy-api';
import type { FilterSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { type ExtAuthz, ExtAuthzSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/ext_authz/v3/ext_authz_pb.js';
import { ExtAuthzSchema as NetworkExtAuthzSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/ext_authz/v3/ext_authz_pb.js';
import type { HttpFilterSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import type { ListStringMatcherSchema } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/string_pb.js';
import type { AuthorizationProvider } from '../extension-providers.ts';
import { outboundClusterName } from '../generate/names.ts';
import { type MeshSnapshot, resolveHost, rootNamespace } from '../snapshot.ts';
import { beginning, metadata, textValue, wildcard } from './value-matchers.ts';

/** By which rule a request is to be decided about elsewhere: what the RBAC filter before leaves for the filter that asks. */
export const askedPrefix = 'istio_ext_authz_';
export const askedPolicyPrefix = (provider: string) => `istio-ext-authz-${provider}-`;

/** The provider, where it is known and there is somebody to ask; undefined: what it should decide about is denied. */
export function authorizationProvider(name: string, snapshot: MeshSnapshot): AuthorizationProvider | undefined {
  const provider = snapshot.meshConfig.extensionProviders.authorization.find((one) => one.name === name);
  const service = provider && snapshot.servicesByHostname.get(resolveHost(provider.service, rootNamespace, snapshot));
  return service?.ports.some(({ number }) => number === provider!.port) ? provider : undefined;
}

/** The filter that asks a provider about the requests that the rules before it are met by. */
export function askFilter(provider: AuthorizationProvider, snapshot: MeshSnapshot): Init<typeof HttpFilterSchema> {
  const hostname = resolveHost(provider.service, rootNamespace, snapshot);
  const cluster = outboundClusterName(provider.port, '', hostname);
  const config: Init<typeof ExtAuthzSchema> = {
    transportApiVersion: 2,
    failureModeAllow: provider.failsOpen,
    clearRouteCache: provider.clearsRoute,
    ...(provider.statusOnError === undefined ? {} : { statusOnError: { code: provider.statusOnError } }),
    ...(provider.body
      ? { withRequestBody: { maxRequestBytes: provider.body.maxBytes, allowPartialMessage: provider.body.allowsPart, packAsBytes: provider.body.asBytes } }
      : {}),
    filterEnabledMetadata: isMeant(provider, 'envoy.filters.http.rbac'),
    ...(provider.http?.toldHeaders.length ? { allowedHeaders: names(provider.http.toldHeaders) } : {}),
    services: servicesOf(provider, cluster, hostname),
  };
  return { name: 'envoy.filters.http.ext_authz', configType: { case: 'typedConfig', value: packAny(ExtAuthzSchema, config) } };
}

/** The same for connections of which nobody looks into what is spoken. */
export function askNetworkFilter(provider: AuthorizationProvider, snapshot: MeshSnapshot): Init<typeof FilterSchema> {
  const hostname = resolveHost(provider.service, rootNamespace, snapshot);
  const config: Init<typeof NetworkExtAuthzSchema> = {
    ...{ statPrefix: 'tcp.', transportApiVersion: 2, failureModeAllow: provider.failsOpen },
    filterEnabledMetadata: isMeant(provider, 'envoy.filters.network.rbac'),
    grpcService: {
      targetSpecifier: { case: 'envoyGrpc', value: { clusterName: outboundClusterName(provider.port, '', hostname), authority: hostname } },
      timeout: durationFromMs(provider.timeoutMs),
    },
  };
  return { name: 'envoy.filters.network.ext_authz', configType: { case: 'typedConfig', value: packAny(NetworkExtAuthzSchema, config) } };
}

/** Rules before have found out that this provider is to decide. */
function isMeant(provider: AuthorizationProvider, filter: string) {
  return metadata(filter, [`${askedPrefix}shadow_effective_policy_id`], textValue(beginning(askedPolicyPrefix(provider.name))));
}

function servicesOf(
  { http, timeoutMs }: AuthorizationProvider,
  cluster: string,
  hostname: string,
): Init<typeof ExtAuthzSchema>['services'] & Pick<ExtAuthz['services'], 'case'> {
  const timeout = durationFromMs(timeoutMs);
  if (http === undefined)
    return { case: 'grpcService', value: { targetSpecifier: { case: 'envoyGrpc', value: { clusterName: cluster, authority: hostname } }, timeout } };
  return {
    case: 'httpService',
    value: {
      serverUri: { uri: `http://${hostname}`, httpUpstreamType: { case: 'cluster', value: cluster }, timeout },
      pathPrefix: http.pathPrefix,
      authorizationRequest: { headersToAdd: Object.entries(http.addedHeaders).map(([key, value]) => ({ key, value })) },
      authorizationResponse: {
        ...(http.toService.length > 0 ? { allowedUpstreamHeaders: names(http.toService) } : {}),
        ...(http.toClientOnDeny.length > 0 ? { allowedClientHeaders: names(http.toClientOnDeny) } : {}),
        ...(http.toClientOnAllow.length > 0 ? { allowedClientHeadersOnSuccess: names(http.toClientOnAllow) } : {}),
      },
    },
  };
}

const names = (patterns: readonly string[]): Init<typeof ListStringMatcherSchema> => ({ patterns: patterns.map((pattern) => wildcard(pattern, true)) });
