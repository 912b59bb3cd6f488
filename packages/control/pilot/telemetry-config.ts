import type { Init } from '@mizzen/envoy-api';
import { durationFromMs, packAny } from '@mizzen/envoy-api';
import { OpenTelemetryConfigSchema } from '@mizzen/envoy-api/gen/envoy/config/trace/v3/opentelemetry_pb.js';
import type { HttpConnectionManager_TracingSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import type { TracingProvider } from './extension-providers.ts';
import { outboundClusterName } from './generate/names.ts';
import type { ProxyView } from './proxy-view.ts';
import { selects } from './registry/service.ts';
import { type Configured, type MeshSnapshot, resolveHost, rootNamespace } from './snapshot.ts';

/** telemetry.istio.io Telemetry, the fields that have behaviour (istio/api telemetry.proto). */
export interface TelemetrySpec {
  readonly selector?: { readonly matchLabels?: Readonly<Record<string, string>> };
  readonly tracing?: readonly {
    readonly providers?: readonly { readonly name?: string }[];
    readonly randomSamplingPercentage?: number;
    readonly disableSpanReporting?: boolean;
  }[];
}

/** Istio's default share of requests that are traced, in percent. */
const defaultSampling = 1;

/** What a proxy's listeners say of traces: the workload's Telemetry counts before its namespace's, and that before the mesh's. */
export function tracingFor(view: ProxyView, snapshot: MeshSnapshot): Init<typeof HttpConnectionManager_TracingSchema> | undefined {
  const { extensionProviders, defaultTracingProviders } = snapshot.meshConfig;
  if (extensionProviders.tracing.length === 0) return undefined;
  let names: readonly string[] = defaultTracingProviders;
  let sampling: number | undefined;
  let isDisabled = false;
  for (const telemetry of telemetriesOf(view, snapshot)) {
    const [tracing] = telemetry.spec.tracing ?? [];
    if (tracing === undefined) continue;
    if (tracing.providers?.length) names = tracing.providers.flatMap(({ name }) => (name === undefined ? [] : [name]));
    sampling = tracing.randomSamplingPercentage ?? sampling;
    isDisabled = tracing.disableSpanReporting ?? isDisabled;
  }
  const provider = extensionProviders.tracing.find(({ name }) => names.includes(name));
  if (provider === undefined || isDisabled) return undefined;
  return {
    randomSampling: { value: sampling ?? defaultSampling },
    provider: {
      name: 'envoy.tracers.opentelemetry',
      configType: { case: 'typedConfig', value: packAny(OpenTelemetryConfigSchema, openTelemetry(provider, view, snapshot)) },
    },
  };
}

/** From the general to the particular. */
function telemetriesOf(view: ProxyView, snapshot: MeshSnapshot): Configured<TelemetrySpec>[] {
  const of = (namespace: string, selects: boolean) =>
    snapshot.telemetries.filter((telemetry) => telemetry.namespace === namespace && (telemetry.spec.selector?.matchLabels !== undefined) === selects);
  return [
    ...of(rootNamespace, false),
    ...(view.namespace === rootNamespace ? [] : of(view.namespace, false)),
    ...of(view.namespace, true).filter((telemetry) => selects(telemetry.spec.selector?.matchLabels, view.labels)),
  ];
}

function openTelemetry(provider: TracingProvider, view: ProxyView, snapshot: MeshSnapshot): Init<typeof OpenTelemetryConfigSchema> {
  const host = resolveHost(provider.service, view.namespace, snapshot);
  const cluster = outboundClusterName(provider.port, '', host);
  const serviceName = `${view.labels['app'] ?? view.labels['service.istio.io/canonical-name'] ?? view.workload}.${view.namespace}`;
  if (provider.http === undefined)
    return {
      serviceName,
      grpcService: { targetSpecifier: { case: 'envoyGrpc', value: { clusterName: cluster, authority: host } }, timeout: durationFromMs(5_000) },
    };
  return {
    serviceName,
    httpService: {
      httpUri: {
        uri: `http://${host}:${provider.port}${provider.http.path}`,
        httpUpstreamType: { case: 'cluster', value: cluster },
        timeout: durationFromMs(provider.http.timeoutMs),
      },
      requestHeadersToAdd: Object.entries(provider.http.headers).map(([key, value]) => ({ header: { key, value } })),
    },
  };
}
