import assert from 'node:assert/strict';
import http from 'node:http';
import http2 from 'node:http2';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { fromBinary } from '@bufbuild/protobuf';
import { connectNodeAdapter } from '@connectrpc/connect-node';
import { type ExportTraceServiceRequest, ExportTraceServiceRequestSchema, TraceService } from '@mizzen/envoy-api/gen/opentelemetry/v1/trace_service_pb.js';
import { call, until } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

interface Span {
  readonly service: string;
  readonly name: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly parentId: string;
  readonly kind: number;
  readonly attributes: Readonly<Record<string, string>>;
  readonly isError: boolean;
}

/** A collector: OTLP over HTTP and over gRPC, which decodes what it is sent. */
class Collector {
  readonly spans: Span[] = [];
  httpPort = 0;
  grpcPort = 0;
  readonly #servers: { close(): void }[] = [];

  async start(): Promise<void> {
    const overHttp = http.createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        assert.equal(request.headers['content-type'], 'application/x-protobuf');
        assert.equal(request.url, '/v1/traces');
        this.#take(fromBinary(ExportTraceServiceRequestSchema, Buffer.concat(chunks)));
        response.writeHead(200, { 'content-type': 'application/x-protobuf' }).end();
      });
    });
    const overGrpc = http2.createServer(
      connectNodeAdapter({
        routes: (router) =>
          router.service(TraceService, {
            export: (request) => {
              this.#take(request);
              return {};
            },
          }),
      }),
    );
    this.httpPort = await listen(overHttp);
    this.grpcPort = await listen(overGrpc);
    this.#servers.push(overHttp, overGrpc);
  }

  #take(request: ExportTraceServiceRequest): void {
    const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
    const record = (attributes: ExportTraceServiceRequest['resourceSpans'][number]['scopeSpans'][number]['spans'][number]['attributes']) =>
      Object.fromEntries(attributes.map(({ key, value }) => [key, String(value?.value.value)]));
    for (const { resource, scopeSpans } of request.resourceSpans)
      for (const span of scopeSpans.flatMap(({ spans }) => spans))
        this.spans.push({
          service: record(resource?.attributes ?? [])['service.name'] ?? '',
          name: span.name,
          traceId: hex(span.traceId),
          spanId: hex(span.spanId),
          parentId: hex(span.parentSpanId),
          kind: span.kind,
          attributes: record(span.attributes),
          isError: span.status?.code === 2,
        });
  }

  close(): void {
    for (const server of this.#servers) server.close();
  }
}

async function listen(server: http.Server | http2.Http2Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as AddressInfo).port;
}

/** Istio's mesh config, as a ConfigMap. */
const meshConfig = (collector: Collector, form: 'http' | 'grpc') => `
apiVersion: v1
kind: ConfigMap
metadata: { name: istio, namespace: istio-system }
data:
  mesh: |
    extensionProviders:
    - name: otel
      opentelemetry: { service: collector-${form}.test, port: 4317${form === 'http' ? ', http: { path: /v1/traces }' : ''} }
    defaultProviders: { tracing: [otel] }
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: collector-http }
spec: { hosts: [collector-http.test], location: MESH_EXTERNAL, resolution: STATIC, ports: [{ number: 4317, name: http, protocol: HTTP, targetPort: ${collector.httpPort} }], endpoints: [{ address: 127.0.0.1 }] }
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: collector-grpc }
spec: { hosts: [collector-grpc.test], location: MESH_EXTERNAL, resolution: STATIC, ports: [{ number: 4317, name: grpc, protocol: GRPC, targetPort: ${collector.grpcPort} }], endpoints: [{ address: 127.0.0.1 }] }
---
`;
const sampling = (percent: number) => `
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: { name: default, namespace: istio-system }
spec: { tracing: [{ randomSamplingPercentage: ${percent} }] }
---
`;

describe('traces', () => {
  let mesh: TestMesh;
  let collector: Collector;
  let port: number;
  let gw: RunningProxy;

  before(async () => {
    mesh = await TestMesh.start();
    collector = new Collector();
    await collector.start();
    mesh.onClose(async () => collector.close());
    port = await mesh.ports.next();
    // front calls middle, middle calls back; all they do for traces is to hand on the headers that they were given.
    const hop = (next: string | undefined, outbound: () => number) => (request: http.IncomingMessage, response: http.ServerResponse) => {
      if (next === undefined) return void response.end(JSON.stringify({ headers: request.headers }));
      const headers = Object.fromEntries(
        Object.entries(request.headers).filter(([name]) => /^(traceparent|tracestate|b3|x-b3-.*|x-request-id)$/.test(name)),
      ) as Record<string, string>;
      void call({ port: outbound(), path: request.url ?? '/', headers: { ...headers, host: `${next}:9080` } }).then(({ status, body }) =>
        response.writeHead(status).end(body),
      );
    };
    const front: RunningProxy = await mesh.workload('front', { answer: hop('middle', () => front.outboundPort) });
    const middle: RunningProxy = await mesh.workload('middle', { answer: hop('back', () => middle.outboundPort) });
    await mesh.workload('back', { answer: hop(undefined, () => 0) });
    gw = await mesh.proxy('gw', { type: 'gateway', labels: { app: 'gateway' } });
    await mesh.apply(`${service('front')}${service('middle')}${service('back')}${meshConfig(collector, 'http')}${sampling(100)}
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: ingress }
spec: { selector: { app: gateway }, servers: [{ port: { number: ${port}, name: http, protocol: HTTP }, hosts: ["*"] }] }
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: front }
spec: { hosts: ["*"], gateways: [ingress], http: [{ route: [{ destination: { host: front } }] }] }
`);
    await gw.proxy.ready;
  });
  after(() => mesh.close());

  const ask = async (headers: Record<string, string> = {}, path = '/') => {
    const answer = await call({ port, path, headers: { host: 'shop.test', ...headers } });
    assert.equal(answer.status, 200);
    return JSON.parse(answer.body) as { headers: Record<string, string> };
  };
  const traceOf = (traceId: string, count: number) =>
    until(
      `${count} spans of one trace`,
      async () => collector.spans.filter((span) => span.traceId === traceId),
      (spans) => spans.length === count,
    );

  it('make one trace of one request through a gateway and three services, each span the child of the one before', async () => {
    const { headers } = await ask({}, '/a?secret=1');
    const traceId = headers['traceparent']!.split('-')[1]!;
    const spans = await traceOf(traceId, 6);
    const chain: Span[] = [spans.find((span) => span.parentId === '')!];
    while (chain.length < spans.length) chain.push(spans.find((span) => span.parentId === chain.at(-1)!.spanId)!);
    assert.deepEqual(
      chain.map(({ service: name, kind }) => `${name} ${kind}`),
      ['gateway.default 2', 'front.default 2', 'front.default 3', 'middle.default 2', 'middle.default 3', 'back.default 2'],
    );
    assert.equal(headers['traceparent'], `00-${traceId}-${chain.at(-1)!.spanId}-01`);
    const { attributes } = chain[0]!;
    assert.equal(attributes['http.request.method'], 'GET');
    assert.equal(attributes['http.response.status_code'], '200');
    assert.equal(attributes['url.path'], '/a');
    assert.doesNotMatch(JSON.stringify(spans), /secret/);
    assert.match(chain[1]!.attributes['mizzen.peer']!, /^spiffe:\/\//);
  });

  it('go on from a client that is in a trace already, by W3C and by B3', async () => {
    const traceId = '4bf92f3577b34da6a3ce929d0e0e4736';
    for (const headers of [
      { traceparent: `00-${traceId}-00f067aa0ba902b7-00`, tracestate: 'vendor=1' },
      { b3: `${traceId}-00f067aa0ba902b7-0` },
      { 'x-b3-traceid': traceId, 'x-b3-spanid': '00f067aa0ba902b7', 'x-b3-sampled': '0' },
    ]) {
      collector.spans.length = 0;
      const seen = await ask(headers as unknown as Record<string, string>);
      const spans = await traceOf(traceId, 6);
      assert.equal(spans.filter((span) => span.parentId === '00f067aa0ba902b7').length, 1);
      assert.equal(seen.headers['traceparent']!.split('-')[1], traceId);
      if ('b3' in headers) assert.match(seen.headers['b3']!, new RegExp(`^${traceId}-[0-9a-f]{16}-1$`));
      if ('x-b3-traceid' in headers) assert.equal(seen.headers['x-b3-sampled'], '1');
      if ('tracestate' in headers) assert.equal(seen.headers['tracestate'], 'vendor=1');
    }
  });

  it('begin anew where a client says what no trace can be', async () => {
    for (const traceparent of [
      '00-0-0-01',
      `00-${'0'.repeat(32)}-00f067aa0ba902b7-01`,
      `ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`,
      'x'.repeat(500),
    ]) {
      const { headers } = await ask({ traceparent });
      assert.match(headers['traceparent']!, /^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/);
      assert.notEqual(headers['traceparent']!.split('-')[1], '4bf92f3577b34da6a3ce929d0e0e4736');
    }
  });

  it('are sent by gRPC where the provider says so', async () => {
    await mesh.apply(meshConfig(collector, 'grpc'));
    const { headers } = await ask();
    await traceOf(headers['traceparent']!.split('-')[1]!, 6);
  });

  it('are not made for requests that the edge has not chosen, whatever the client says', async () => {
    await mesh.apply(sampling(0));
    const traceId = '0af7651916cd43dd8448eb211c80319c';
    const { headers } = await ask({ traceparent: `00-${traceId}-b7ad6b7169203331-01` });
    assert.match(headers['traceparent']!, new RegExp(`^00-${traceId}-b7ad6b7169203331-00$`));
    await mesh.apply(sampling(100));
    await traceOf((await ask()).headers['traceparent']!.split('-')[1]!, 6);
    assert.equal(collector.spans.filter((span) => span.traceId === traceId).length, 0);
  });

  it('cost no request anything when the collector is away', async () => {
    collector.close();
    for (let i = 0; i < 5; i++) await ask();
    await until(
      'spans are counted as dropped',
      () => call({ port: gw.adminPort, path: '/stats/prometheus' }),
      ({ body }) => /mizzen_spans_dropped_total\{reason="refused"\} [1-9]/.test(body),
    );
  });
});
