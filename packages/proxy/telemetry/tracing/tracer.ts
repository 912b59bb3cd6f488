import { randomFillSync } from 'node:crypto';
import type { MessageInitShape } from '@bufbuild/protobuf';
import type { KeyValueSchema, SpanSchema } from '@mizzen/envoy-api/gen/opentelemetry/v1/trace_service_pb.js';
import type { Exchange } from '../../http/exchange.ts';
import type { SpanExporter } from './span-exporter.ts';
import { readTraceContext, type TraceContext, writeTraceContext } from './trace-context.ts';

export interface TracerOptions {
  readonly direction: 'inbound' | 'outbound' | 'gateway';
  /** Share of the requests without a decision of an earlier one that are sampled, 0 to 1. */
  readonly sampling: number;
  readonly random: () => number;
  readonly exporter: SpanExporter;
}

export type SpanInit = MessageInitShape<typeof SpanSchema>;

/**
 * Gives requests their place in a trace and tells an exporter of those that are sampled. Whether one is, is decided once, where it comes into
 * the mesh: at a gateway by us, whatever the client says, since clients could make us trace everything; elsewhere whoever decided before is
 * heeded. Names and attributes: OpenTelemetry's semantic conventions for HTTP.
 */
export class Tracer {
  readonly #options: TracerOptions;

  constructor(options: TracerOptions) {
    this.#options = options;
  }

  /** Tells the next hop, by headers, whose span it is called from. */
  begin(exchange: Exchange): RequestSpan | undefined {
    const { direction, sampling, random, exporter } = this.#options;
    const { headers } = exchange.head;
    const parent = readTraceContext(headers);
    const decided = direction === 'gateway' ? undefined : parent?.isSampled;
    const isSampled = decided ?? (sampling >= 1 || (sampling > 0 && random() < sampling));
    if (parent === undefined) headers.remove('tracestate');
    const traceId = parent?.traceId ?? randomHex(16);
    // Who does not record a span leaves the caller's in its place, so that the next one's parent is known.
    const spanId = isSampled || parent === undefined ? randomHex(8) : parent.spanId;
    writeTraceContext(headers, traceId, spanId, isSampled, parent?.form ?? 'w3c');
    return isSampled ? new RequestSpan(traceId, spanId, parent, direction, exporter) : undefined;
  }
}

export class RequestSpan {
  readonly traceId: string;
  readonly spanId: string;
  readonly #parent: TraceContext | undefined;
  readonly #direction: TracerOptions['direction'];
  readonly #exporter: SpanExporter;

  constructor(traceId: string, spanId: string, parent: TraceContext | undefined, direction: TracerOptions['direction'], exporter: SpanExporter) {
    this.traceId = traceId;
    this.spanId = spanId;
    this.#parent = parent;
    this.#direction = direction;
    this.#exporter = exporter;
  }

  end(exchange: Exchange): void {
    const { head, responseCode: code } = exchange;
    const isServer = this.#direction !== 'outbound';
    const startMs = exchange.startedAt;
    const path = exchange.originalPath;
    const cut = path.indexOf('?');
    const attributes: MessageInitShape<typeof KeyValueSchema>[] = [
      text('http.request.method', head.method),
      text('url.path', cut < 0 ? path : path.slice(0, cut)),
      text('server.address', head.authority),
      text('network.protocol.version', exchange.protocol.slice(5)),
      text('client.address', exchange.remoteAddress),
      { key: 'http.response.status_code', value: { value: { case: 'intValue', value: BigInt(code) } } },
      text('mizzen.direction', this.#direction),
    ];
    // A query may hold what a trace should not: its presence is said, its content is not.
    if (cut >= 0) attributes.push(text('url.query', '(not shown)'));
    for (const [key, value] of [
      ['mizzen.route', exchange.routeName],
      ['mizzen.route.origin', exchange.route?.origin ?? ''],
      ['mizzen.upstream_cluster', exchange.upstreamCluster],
      ['server.peer.address', exchange.upstreamHost],
      ['mizzen.peer', exchange.peerUri],
      ['mizzen.consumer', exchange.consumer?.name ?? ''],
      ['mizzen.request_id', head.headers.get('x-request-id') ?? ''],
      ['user_agent.original', head.headers.get('user-agent') ?? ''],
      ['rpc.grpc.status_code', exchange.grpcStatus],
      ['mizzen.response_flags', exchange.responseFlags === '-' ? '' : exchange.responseFlags],
    ] as const)
      if (value !== '') attributes.push(text(key, value));
    const isError = code === 0 || code >= 500 || (!isServer && code >= 400);
    this.#exporter.add({
      traceId: Buffer.from(this.traceId, 'hex'),
      spanId: Buffer.from(this.spanId, 'hex'),
      ...(this.#parent === undefined ? {} : { parentSpanId: Buffer.from(this.#parent.spanId, 'hex') }),
      name: `${head.method} ${exchange.virtualHost?.name ?? head.authority}`,
      kind: isServer ? 2 : 3,
      startTimeUnixNano: BigInt(Math.round(startMs * 1e6)),
      endTimeUnixNano: BigInt(Math.round((startMs + exchange.durationMs) * 1e6)),
      attributes,
      ...(isError ? { status: { code: 2, message: exchange.responseDetails } } : {}),
      flags: 1,
    });
  }
}

const maxValueLength = 256;

function text(key: string, value: string): MessageInitShape<typeof KeyValueSchema> {
  return { key, value: { value: { case: 'stringValue', value: value.slice(0, maxValueLength) } } };
}

const pool = Buffer.alloc(1024);
let poolAt = pool.length;

/** Random bytes are taken from the system in pieces of a KiB: a call for each id would cost as much as the rest of a span. */
function randomHex(bytes: number): string {
  if (poolAt + bytes > pool.length) {
    randomFillSync(pool);
    poolAt = 0;
  }
  poolAt += bytes;
  return pool.toString('hex', poolAt - bytes, poolAt);
}
