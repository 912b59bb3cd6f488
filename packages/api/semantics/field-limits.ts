import { parseDurationMs } from '@mizzen/common';
import type { Problem, Resource } from '../resource.ts';
import { isPlainObject } from '../validate.ts';
import { invalid } from './checks.ts';

/**
 * Ranges of every numeric and duration field of the kinds that become xDS. Their counterparts are `uint32`, `google.protobuf.Duration` and
 * percentages, which cannot hold what is refused here. The rule follows the name of the field, so that a field of a later version is covered.
 */
const groups = new Set(['networking.istio.io', 'security.istio.io', 'telemetry.istio.io', 'gateway.networking.k8s.io', 'discovery.k8s.io']);
/** Kinds of Kubernetes' core group that become endpoints. */
const coreKinds = new Set(['Service', 'Endpoints']);

/** Fields of type double. All other numbers are whole. */
const fractions = new Set(['value', 'percent', 'aggression', 'minimumPercent', 'randomSamplingPercentage', 'mirrorPercent', 'mirror_percent']);
/** Fields of type int32 whose sign means something. */
const signed = new Set(['priority']);
const maxUint32 = 4_294_967_295;
const maxInt32 = 2_147_483_647;

/** Largest value of a field, by its name. Istio's API has `int32` for the other limits. */
const maxima: Readonly<Record<string, number>> = {
  ...{ percent: 100, minimumPercent: 100, mirrorPercent: 100, mirror_percent: 100, randomSamplingPercentage: 100 },
  ...{ maxEjectionPercent: 100, minHealthPercent: 100, failurePercentageThreshold: 100 },
  ...{ port: 65_535, targetPort: 65_535, nodePort: 65_535, httpStatus: 599, redirectCode: 399 },
  ...{ maxConcurrentStreams: maxInt32, probes: maxUint32, weight: maxUint32, minRetryConcurrency: maxUint32, consecutiveErrors: maxInt32 },
};

const durations = new Set([
  ...['connectTimeout', 'idleTimeout', 'maxConnectionDuration', 'interval', 'baseEjectionTime', 'ttl', 'timeout', 'perTryTimeout'],
  ...['backoff', 'maxAge', 'fixedDelay', 'exponentialDelay', 'warmupDurationSecs', 'drainDuration'],
]);
/** Named `time` or `duration` in these objects alone. */
const durationsOf: Readonly<Record<string, string>> = { tcpKeepalive: 'time', warmup: 'duration' };
/** GEP-2257. */
const gatewayDuration = /^(?:\d{1,5}(?:h|m|s|ms)){1,4}$/;
const gatewayDurations = new Set(['request', 'backendRequest', 'backoff', 'absoluteTimeout', 'idleTimeout']);

/** Problems of the numbers and durations of one object, whatever its kind. */
export function fieldLimitProblems(resource: Resource): Problem[] {
  const { apiVersion, kind, spec } = resource;
  const group = apiVersion.slice(0, Math.max(0, apiVersion.indexOf('/')));
  if (!groups.has(group) && !(group === '' && coreKinds.has(kind))) return [];
  const problems: Problem[] = [];
  const isGatewayApi = group === 'gateway.networking.k8s.io';
  const visit = (value: unknown, path: string, name: string, parent: string) => {
    if (problems.length >= maxReported) return;
    if (typeof value === 'number') problems.push(...numberProblems(value, path, name));
    else if (typeof value === 'string' && isDuration(name, parent, isGatewayApi)) problems.push(...durationProblems(value, path, isGatewayApi));
    else if (Array.isArray(value)) for (const [i, entry] of value.entries()) visit(entry, `${path}[${i}]`, name, parent);
    else if (isPlainObject(value))
      for (const [key, member] of Object.entries(value)) {
        // What a patch holds is Envoy's, and read as such.
        if (!(kind === 'EnvoyFilter' && key === 'value')) visit(member, `${path}.${key}`, key, name);
      }
  };
  visit(spec, 'spec', 'spec', '');
  // Kinds without a spec.
  const { ports, subsets } = resource as { readonly ports?: unknown; readonly subsets?: unknown };
  visit(ports, 'ports', 'ports', '');
  visit(subsets, 'subsets', 'subsets', '');
  return problems;
}

const maxReported = 50;

function numberProblems(value: number, path: string, name: string): Problem[] {
  if (!fractions.has(name) && !Number.isInteger(value)) return [invalid(path, `${value} is not a whole number`)];
  const minimum = signed.has(name) ? -maxInt32 : 0;
  const maximum = maxima[name] ?? maxUint32;
  if (value < minimum) return [invalid(path, `${value} is below the minimum of ${minimum}`)];
  return value > maximum ? [invalid(path, `${value} is above the maximum of ${maximum}`)] : [];
}

const isDuration = (name: string, parent: string, isGatewayApi: boolean) =>
  isGatewayApi
    ? gatewayDurations.has(name) && (parent === 'timeouts' || parent === 'retry' || parent === 'sessionPersistence')
    : durations.has(name) || durationsOf[parent] === name;

function durationProblems(text: string, path: string, isGatewayApi: boolean): Problem[] {
  const ms = isGatewayApi ? undefined : parseDurationMs(text);
  // Envoy counts the times of probes in seconds, as uint32.
  if (ms !== undefined && /\.tcpKeepalive\.\w+$/.test(path) && ms > maxUint32 * 1000) return [invalid(path, `${text} is above the maximum of ${maxUint32}s`)];
  if (isGatewayApi ? gatewayDuration.test(text) : ms !== undefined) return [];
  return [
    invalid(path, `${JSON.stringify(text.slice(0, 80))} is not a duration: write a number of at most 10000 years with its unit, such as 7s, 250ms or 1m30s`),
  ];
}
