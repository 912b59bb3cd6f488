import { MizzenError } from '@mizzen/common';
import { durationToTimerMs, unpackAny } from '@mizzen/envoy-api';
import { OpenTelemetryConfigSchema } from '@mizzen/envoy-api/gen/envoy/config/trace/v3/opentelemetry_pb.js';
import {
  type HttpConnectionManager_Tracing,
  HttpConnectionManager_TracingSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import type { ProxyContext } from '../../http/connection-settings.ts';
import { utf8Bytes } from '../../message/header-bytes.ts';
import { refuseUnsupported } from '../../xds/supported-fields.ts';
import { SpanExporter, type SpanExporterOptions } from './span-exporter.ts';
import { Tracer, type TracerOptions } from './tracer.ts';

const exporters = 'span-exporters';

/** Compiles `HttpConnectionManager.tracing` with Envoy's provider envoy.tracers.opentelemetry. */
export function compileTracer(
  tracing: HttpConnectionManager_Tracing | undefined,
  direction: TracerOptions['direction'],
  place: string,
  context: ProxyContext,
): Tracer | undefined {
  if (tracing?.provider === undefined) return undefined;
  refuseUnsupported(
    HttpConnectionManager_TracingSchema,
    tracing,
    new Set(['randomSampling', 'clientSampling', 'overallSampling', 'provider', 'spawnUpstreamSpan']),
    place,
  );
  const { provider } = tracing;
  const config = unpackAny(OpenTelemetryConfigSchema, provider.configType.case === 'typedConfig' ? provider.configType.value : undefined);
  if (config === undefined)
    throw new MizzenError('unsupported-tracer', `${place}: the tracer ${provider.name} is not supported: envoy.tracers.opentelemetry is`);
  refuseUnsupported(OpenTelemetryConfigSchema, config, new Set(['grpcService', 'httpService', 'serviceName']), `${place}, ${provider.name}`);
  let options: SpanExporterOptions;
  const uri = config.httpService?.httpUri;
  if (uri?.httpUpstreamType.case === 'cluster') {
    const { host, pathname } = new URL(uri.uri);
    options = {
      cluster: uri.httpUpstreamType.value,
      protocol: 'http',
      authority: host,
      path: pathname,
      fields: (config.httpService?.requestHeadersToAdd ?? []).flatMap(({ header }) =>
        header === undefined ? [] : [[header.key.toLowerCase(), utf8Bytes(header.value)] as const],
      ),
      serviceName: config.serviceName,
      timeoutMs: durationToTimerMs(uri.timeout) || 5_000,
    };
  } else if (config.grpcService?.targetSpecifier.case === 'envoyGrpc') {
    const { clusterName, authority } = config.grpcService.targetSpecifier.value;
    options = {
      cluster: clusterName,
      protocol: 'grpc',
      authority: authority || clusterName,
      path: '',
      fields: [],
      serviceName: config.serviceName,
      timeoutMs: durationToTimerMs(config.grpcService.timeout) || 5_000,
    };
  } else throw new MizzenError('unsupported-tracer', `${place}: the tracer needs http_service with a cluster, or grpc_service with envoy_grpc`);
  const random = tracing.randomSampling === undefined ? 1 : tracing.randomSampling.value / 100;
  const overall = tracing.overallSampling === undefined ? 1 : tracing.overallSampling.value / 100;
  // One exporter for all listeners that send to the same place, also over updates.
  const known = (context.filterStates.get(exporters) ?? new Map()) as Map<string, SpanExporter>;
  context.filterStates.set(exporters, known);
  const key = JSON.stringify(options);
  let exporter = known.get(key);
  if (exporter === undefined) {
    exporter = new SpanExporter(options, context);
    known.set(key, exporter);
  }
  return new Tracer({ direction, sampling: Math.min(random, overall), random: context.random, exporter });
}
