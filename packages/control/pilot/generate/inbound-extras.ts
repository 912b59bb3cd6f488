import { packAny } from '@mizzen/envoy-api';
import { ScriptPerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { policyFilters, scriptConfig } from '../apis/api-policies.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { tracingFor } from '../telemetry-config.ts';
import type { InboundTarget } from './inbound-chains.ts';

/** What a workload has on its inbound listeners beside the rest: filters of its own, and traces. */
export function inboundExtras(view: ProxyView, snapshot: MeshSnapshot): Pick<InboundTarget, 'filters' | 'filterConfigs' | 'tracing'> {
  const tracing = tracingFor(view, snapshot);
  if (view.filters.length === 0) return { filters: [], filterConfigs: {}, tracing };
  return {
    filters: [{ name: policyFilters.script, configType: { case: 'typedConfig', value: packAny(ScriptPerRouteSchema, {}) } }],
    // The runner has found the files already: the proxy reads what is beside it.
    filterConfigs: { [policyFilters.script]: scriptConfig(view.filters, (file) => file) },
    tracing,
  };
}
