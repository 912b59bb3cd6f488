import { type Init, packAny } from '@mizzen/envoy-api';
import type { HttpFilterSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import {
  AuthenticationSchema,
  CachePerRouteSchema,
  CredentialPerRouteSchema,
  IpAccessPerRouteSchema,
  LoginPerRouteSchema,
  RateLimitSchema,
  ScriptPerRouteSchema,
  TranscodingPerRouteSchema,
  ValidationPerRouteSchema,
} from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { servedGateways } from '../generate/served-gateways.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { policyFilters } from './api-policies.ts';
import { type ResolvedApi, sidecarGateway } from './resolved-api.ts';

/** The cluster of the mesh's rate limit service. */
export const rateLimitCluster = 'mizzen|rate-limit';

/** Which APIs a proxy answers for, or applies to the calls of its workload. */
export function apisOf(
  view: ProxyView,
  snapshot: MeshSnapshot,
): { readonly edge: readonly ResolvedApi[]; readonly client: readonly ResolvedApi[]; readonly sidecar: readonly ResolvedApi[] } {
  if (snapshot.apis.length === 0) return none;
  if (view.type === 'gateway') {
    const own = new Set(servedGateways(view, snapshot).map(({ namespace, name }) => `${namespace}/${name}`));
    const isOurs = ({ api, virtualService }: ResolvedApi) =>
      virtualService.spec.gateways!.some((name) => name !== sidecarGateway && own.has(name.includes('/') ? name : `${api.namespace}/${name}`));
    return { ...none, edge: snapshot.apis.filter(isOurs) };
  }
  return {
    edge: [],
    // Their credentials are for workloads of their own namespace.
    client: snapshot.apis.filter(({ api }) => api.spec.placement === 'client' && api.namespace === view.namespace),
    sidecar: snapshot.apis.filter(({ api }) => api.spec.placement === 'sidecar' || api.spec.placement === 'both'),
  };
}

const none = { edge: [], client: [], sidecar: [] };

type HttpFilter = Init<typeof HttpFilterSchema>;

/** The filters that these APIs need on a listener: a listener without APIs has none of them, and its requests pay for none. */
export function apiFilters(apis: readonly ResolvedApi[]): HttpFilter[] {
  const used = new Set(apis.flatMap(({ filterConfigs }) => Object.keys(filterConfigs)));
  if (used.size === 0) return [];
  const filter = (name: string, value: ReturnType<typeof packAny>): HttpFilter => ({ name, configType: { case: 'typedConfig', value } });
  const hasGlobalLimits = apis.some((api) => api.hasGlobalLimits);
  const all: readonly HttpFilter[] = [
    filter(policyFilters.ipAccess, packAny(IpAccessPerRouteSchema, {})),
    filter(policyFilters.login, packAny(LoginPerRouteSchema, {})),
    filter(policyFilters.authentication, packAny(AuthenticationSchema, {})),
    filter(policyFilters.rateLimit, packAny(RateLimitSchema, hasGlobalLimits ? { serviceTarget: rateLimitCluster } : {})),
    filter(policyFilters.validation, packAny(ValidationPerRouteSchema, {})),
    filter(policyFilters.script, packAny(ScriptPerRouteSchema, {})),
    filter(policyFilters.cache, packAny(CachePerRouteSchema, {})),
    filter(policyFilters.transcoder, packAny(TranscodingPerRouteSchema, {})),
    filter(policyFilters.credential, packAny(CredentialPerRouteSchema, {})),
  ];
  return all.filter(({ name }) => used.has(name!));
}
