import { packAny } from '@mizzen/envoy-api';
import { ScriptPerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { policyFilters, scriptConfig } from '../apis/api-policies.ts';
import type { ProxyView } from '../proxy-view.ts';
import { authorizationNetworkFilters, pathNormalizationFor, securityFilters } from '../security/authorization-filters.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { tracingFor } from '../telemetry-config.ts';
import type { InboundTarget } from './inbound-chains.ts';
import { ownedHeadersFilter } from './owned-headers.ts';
import { callersTrustDomains } from './tls-contexts.ts';

/**
 * What a workload has on its inbound listeners beside the rest: who may call it, filters of its own, and traces. `port`: the workload's own, where
 * connections arrive at another.
 */
export function inboundExtras(
  view: ProxyView,
  snapshot: MeshSnapshot,
  port?: number,
): Pick<InboundTarget, 'filters' | 'networkFilters' | 'filterConfigs' | 'tracing' | 'paths' | 'trustDomains' | 'meshConfig'> {
  const tracing = tracingFor(view, snapshot);
  const networkFilters = authorizationNetworkFilters(view, snapshot, port);
  const security = [ownedHeadersFilter(view, snapshot), ...securityFilters(view, snapshot, port)];
  const paths = pathNormalizationFor(view, snapshot);
  const trustDomains = callersTrustDomains(snapshot);
  const { meshConfig } = snapshot;
  if (view.filters.length === 0) return { filters: security, networkFilters, filterConfigs: {}, tracing, paths, trustDomains, meshConfig };
  return {
    networkFilters,
    filters: [...security, { name: policyFilters.script, configType: { case: 'typedConfig', value: packAny(ScriptPerRouteSchema, {}) } }],
    // The runner has found the files already: the proxy reads what is beside it.
    filterConfigs: { [policyFilters.script]: scriptConfig(view.filters, (file) => file) },
    tracing,
    paths,
    trustDomains,
    meshConfig,
  };
}
