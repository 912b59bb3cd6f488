import type { ConsistentHashSpec, LoadBalancerSpec, OutlierDetectionSpec } from '@mizzen/api';
import { parseDurationMs } from '@mizzen/common';
import { durationFromMs, type Init } from '@mizzen/envoy-api';
import { Cluster_LbPolicy, type ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import type { RouteAction_HashPolicySchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';

/** Cluster fields that say how endpoints are chosen and judged, from what a DestinationRule says (istio/api destination_rule.proto). */
type ClusterFields = Partial<Init<typeof ClusterSchema>>;

/** Istio's rings are larger than Envoy's when nothing is said. */
const defaultRingSize = 1024;

export function balancing(spec: LoadBalancerSpec | undefined): ClusterFields {
  const hash = spec?.consistentHash;
  if (hash) {
    if (hash.maglev) {
      const size = Number(hash.maglev.tableSize ?? 0);
      return {
        lbPolicy: Cluster_LbPolicy.MAGLEV,
        ...(size > 0 ? { lbConfig: { case: 'maglevLbConfig', value: { tableSize: BigInt(size) } } } : {}),
      };
    }
    const minimum = Number(hash.ringHash?.minimumRingSize ?? hash.minimumRingSize ?? 0) || defaultRingSize;
    return { lbPolicy: Cluster_LbPolicy.RING_HASH, lbConfig: { case: 'ringHashLbConfig', value: { minimumRingSize: BigInt(minimum) } } };
  }
  const slowStartConfig = slowStart(spec);
  switch (spec?.simple) {
    case 'ROUND_ROBIN':
      return { lbPolicy: Cluster_LbPolicy.ROUND_ROBIN, ...(slowStartConfig && { lbConfig: { case: 'roundRobinLbConfig', value: { slowStartConfig } } }) };
    case 'RANDOM':
      return { lbPolicy: Cluster_LbPolicy.RANDOM };
    default:
      return { lbPolicy: Cluster_LbPolicy.LEAST_REQUEST, ...(slowStartConfig && { lbConfig: { case: 'leastRequestLbConfig', value: { slowStartConfig } } }) };
  }
}

function slowStart(spec: LoadBalancerSpec | undefined) {
  const duration = spec?.warmup?.duration ?? spec?.warmupDurationSecs;
  const windowMs = duration === undefined ? 0 : (parseDurationMs(duration) ?? 0);
  if (windowMs === 0) return undefined;
  const { aggression = 1, minimumPercent = 10 } = spec?.warmup ?? {};
  return {
    slowStartWindow: durationFromMs(windowMs),
    aggression: { defaultValue: aggression, runtimeKey: 'aggression' },
    minWeightPercent: { value: minimumPercent },
  };
}

/**
 * Without outlier detection an endpoint is not in the balance unless its workload says that it is well: below any share of healthy ones the
 * healthy take the traffic (panic threshold 0, as in Istio), until `minHealthPercent` says otherwise.
 */
export function commonBalancing(detection: OutlierDetectionSpec | undefined, weighsLocalities: boolean): ClusterFields {
  return {
    commonLbConfig: {
      healthyPanicThreshold: { value: detection?.minHealthPercent ?? 0 },
      ...(weighsLocalities ? { localityConfigSpecifier: { case: 'localityWeightedLbConfig' as const, value: {} } } : {}),
    },
  };
}

/** Only what is set counts, and success rates do not eject: Istio's reading of the same fields. */
export function outlierDetection(spec: OutlierDetectionSpec | undefined): ClusterFields {
  if (!spec) return {};
  const threshold = (count: number | null | undefined) =>
    count === undefined || count === null ? undefined : { count: Number(count), enforcing: count > 0 ? 100 : 0 };
  const of5xx = threshold(spec.consecutive5xxErrors);
  const ofGateway = threshold(spec.consecutiveGatewayErrors);
  const ofLocal = threshold(spec.consecutiveLocalOriginFailures);
  const intervalMs = spec.interval === undefined ? undefined : parseDurationMs(spec.interval);
  const ejectionMs = spec.baseEjectionTime === undefined ? undefined : parseDurationMs(spec.baseEjectionTime);
  return {
    outlierDetection: {
      enforcingSuccessRate: 0,
      ...(spec.failurePercentageThreshold ? { failurePercentageThreshold: spec.failurePercentageThreshold, enforcingFailurePercentage: 100 } : {}),
      ...(of5xx && { consecutive5xx: of5xx.count, enforcingConsecutive5xx: of5xx.enforcing }),
      ...(ofGateway && { consecutiveGatewayFailure: ofGateway.count, enforcingConsecutiveGatewayFailure: ofGateway.enforcing }),
      ...(spec.splitExternalLocalOriginErrors
        ? {
            splitExternalLocalOriginErrors: true,
            ...(ofLocal && { consecutiveLocalOriginFailure: ofLocal.count, enforcingConsecutiveLocalOriginFailure: ofLocal.enforcing }),
            enforcingLocalOriginSuccessRate: 0,
          }
        : {}),
      ...(intervalMs ? { interval: durationFromMs(intervalMs) } : {}),
      ...(ejectionMs ? { baseEjectionTime: durationFromMs(ejectionMs) } : {}),
      ...(spec.maxEjectionPercent ? { maxEjectionPercent: spec.maxEjectionPercent } : {}),
    },
  };
}

type HashPolicy = Init<typeof RouteAction_HashPolicySchema>;

/** What routes to a cluster hash of their requests. */
export function hashPolicy(hash: ConsistentHashSpec | undefined): HashPolicy[] {
  if (!hash) return [];
  if (hash.httpHeaderName) return [{ policySpecifier: { case: 'header', value: { headerName: hash.httpHeaderName } } }];
  if (hash.httpCookie) {
    const { name = '', path = '', ttl, attributes = [] } = hash.httpCookie;
    const ttlMs = ttl === undefined ? undefined : parseDurationMs(ttl);
    return [
      {
        policySpecifier: {
          case: 'cookie',
          value: {
            name,
            path,
            ...(ttlMs === undefined ? {} : { ttl: durationFromMs(ttlMs) }),
            attributes: attributes.map((attribute) => ({ name: attribute.name ?? '', value: attribute.value ?? '' })),
          },
        },
      },
    ];
  }
  if (hash.useSourceIp) return [{ policySpecifier: { case: 'connectionProperties', value: { sourceIp: true } } }];
  if (hash.httpQueryParameterName) return [{ policySpecifier: { case: 'queryParameter', value: { name: hash.httpQueryParameterName } } }];
  return [];
}
