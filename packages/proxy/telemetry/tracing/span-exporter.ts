import { create, type MessageInitShape, toBinary } from '@bufbuild/protobuf';
import { errorBoundary } from '@mizzen/common';
import { ExportTraceServiceRequestSchema, type KeyValueSchema } from '@mizzen/envoy-api/gen/opentelemetry/v1/trace_service_pb.js';
import type { ProxyContext } from '../../http/connection-settings.ts';
import { sendOwnRequest } from '../../upstream/own-request.ts';
import { unaryCall } from '../../upstream/unary-call.ts';
import type { SpanInit } from './tracer.ts';

const boundary = errorBoundary('tracing.export');

export interface SpanExporterOptions {
  /** The cluster of the collector. */
  readonly cluster: string;
  readonly protocol: 'grpc' | 'http';
  readonly authority: string;
  /** Of OTLP over HTTP. */
  readonly path: string;
  readonly fields: readonly (readonly [string, string])[];
  readonly serviceName: string;
  readonly timeoutMs: number;
}

const batchSize = 512;
const flushMs = 1_000;
/** Spans that wait, or are on their way; beyond it they are dropped and counted. */
const maxPending = 8_192;

/**
 * Sends spans to a collector in batches, by OTLP over gRPC or HTTP. A collector that is slow or away costs spans, never requests.
 */
export class SpanExporter {
  readonly #options: SpanExporterOptions;
  readonly #context: ProxyContext;
  readonly #resource: { readonly attributes: MessageInitShape<typeof KeyValueSchema>[] };
  #spans: SpanInit[];
  #inFlight: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: SpanExporterOptions, context: ProxyContext) {
    this.#options = options;
    this.#context = context;
    const { self } = context;
    this.#resource = {
      attributes: [
        ['service.name', options.serviceName || self.app || self.workload],
        ['service.version', self.version],
        ['service.namespace', self.namespace],
        ['service.instance.id', self.workload],
        ['telemetry.sdk.name', 'mizzen'],
      ].flatMap(([key, value]) => (value ? [{ key: key!, value: { value: { case: 'stringValue' as const, value } } }] : [])),
    };
    this.#spans = [];
    this.#inFlight = 0;
    this.#timer = undefined;
  }

  add(span: SpanInit): void {
    if (this.#spans.length + this.#inFlight >= maxPending) return this.#context.counters.count('spans_dropped_total{reason="queue_full"}');
    this.#spans.push(span);
    if (this.#spans.length >= batchSize) this.flush();
    else if (this.#timer === undefined) {
      const flush = () => this.flush();
      this.#timer = boundary.after(flushMs, flush, flush).unref();
    }
  }

  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const spans = this.#spans;
    if (spans.length === 0) return;
    this.#spans = [];
    const { cluster: clusterName, protocol, authority, path, fields, timeoutMs } = this.#options;
    const cluster = this.#context.findCluster(clusterName);
    const { counters } = this.#context;
    if (cluster === undefined) return counters.count('spans_dropped_total{reason="no_collector"}', spans.length);
    const message = toBinary(
      ExportTraceServiceRequestSchema,
      create(ExportTraceServiceRequestSchema, { resourceSpans: [{ resource: this.#resource, scopeSpans: [{ scope: { name: 'mizzen' }, spans }] }] }),
    );
    this.#inFlight += spans.length;
    const done = (isSent: boolean) => {
      this.#inFlight -= spans.length;
      counters.count(isSent ? 'spans_exported_total{protocol="otlp"}' : 'spans_dropped_total{reason="refused"}', spans.length);
    };
    if (protocol === 'grpc') {
      unaryCall(cluster, authority, 'opentelemetry.proto.collector.trace.v1.TraceService/Export', message, timeoutMs, (result) => done(result.status === 0));
      return;
    }
    sendOwnRequest(
      cluster,
      {
        method: 'POST',
        path,
        authority,
        fields: [['content-type', 'application/x-protobuf'], ...fields],
        body: Buffer.from(message),
        timeoutMs,
        maxAnswerBytes: 64 * 1024,
      },
      (answer) => done(!('reason' in answer) && answer.head.status >= 200 && answer.head.status < 300),
    );
  }
}
