import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { compileAccessLogFormat, defaultAccessLogFormat, type LoggedStream } from './access-log.ts';
import { durationBoundsMs, Histogram } from './histogram.ts';
import { encodePeerMetadata, PeerMetadataReader, unknownPeer } from './peer-metadata.ts';
import { RequestMetricsTable } from './request-metrics.ts';

const logged: LoggedStream = {
  method: 'GET',
  path: '/new',
  originalPath: '/old',
  secretParameters: [],
  protocol: 'HTTP/1.1',
  authority: 'a:80',
  responseCode: 200,
  responseFlags: '-',
  responseDetails: '',
  bytesReceived: 1,
  bytesSent: 2,
  durationMs: 3.4,
  upstreamServiceTimeMs: 2,
  upstreamHost: '10.0.0.1:80',
  upstreamCluster: 'c',
  routeName: '',
  peerUri: 'spiffe://x',
  remoteAddress: '1.2.3.4',
  remotePort: 5,
  localAddress: '::1',
  localPort: 80,
  serverName: 'a',
  startedAt: Date.UTC(2026, 0, 2, 3, 4, 5, 6),
  requestHeader: (name) => ({ 'user-agent': 'cu"rl\n', 'x-request-id': 'id' })[name],
  responseHeader: () => undefined,
};

describe('telemetry', () => {
  it("writes Envoy's default line, and lets no header of a peer end its field or line", () => {
    assert.equal(
      compileAccessLogFormat(defaultAccessLogFormat)(logged),
      '[2026-01-02T03:04:05.006Z] "GET /old HTTP/1.1" 200 - 1 2 3 2 "-" "cu\\x22rl\\x0a" "id" "a:80" "10.0.0.1:80"\n',
    );
    assert.equal(compileAccessLogFormat('%REQ(X-REQUEST-ID):1% 100%% %RESP(X)%')(logged), 'i 100% -');
    assert.throws(() => compileAccessLogFormat('%NO_SUCH%'), /not supported/);
    assert.throws(() => compileAccessLogFormat('%REQ(A'), /has no end/);
  });

  it('lets no control character of a peer reach a terminal, and keeps text in UTF-8', () => {
    const line = (agent: string) => compileAccessLogFormat('%REQ(USER-AGENT)%')({ ...logged, requestHeader: () => agent });
    const bytes = (text: string) => Buffer.from(text).toString('latin1');
    assert.equal(line(bytes('a\u009b31mb')), 'a\\xc2\\x9b31mb');
    assert.equal(
      line(bytes('a\u202eb\u2066c\u200fd\u061ce 世')),
      `a\\xe2\\x80\\xaeb\\xe2\\x81\\xa6c\\xe2\\x80\\x8fd\\xd8\\x9ce ${bytes('世')}`,
      'marks that reorder',
    );
    assert.equal(line('a\x9b31m'), 'a\\x9b31m');
    assert.equal(line(bytes('日本 ě')), bytes('日本 ě'));
    for (let code = 0; code < 0x110; code++) {
      const written = Buffer.from(line(bytes(String.fromCodePoint(code))), 'latin1').toString();
      assert.doesNotMatch(written, /[\x00-\x1f\x7f-\x9f]/, String(code));
    }
  });

  it('counts values in cumulative buckets', () => {
    const histogram = new Histogram(durationBoundsMs);
    for (const value of [0.4, 0.5, 0.6, 1e9]) histogram.record(value);
    assert.deepEqual([histogram.counts[0], histogram.counts[1], histogram.counts.at(-1), histogram.count], [2, 1, 1, 4]);
  });

  it('reads who a peer says it is, and takes nonsense for a stranger', () => {
    const reader = new PeerMetadataReader();
    const peer = { workload: 'w', namespace: 'n', app: 'a', version: 'v1', canonicalService: 'a', canonicalRevision: 'v1', cluster: 'k', principal: 'unknown' };
    assert.deepEqual(reader.read(encodePeerMetadata(peer)), peer);
    for (const header of ['', 'nonsense', '////', 'x'.repeat(10_000)]) assert.equal(reader.read(header).workload, 'unknown');
    assert.equal(reader.read(undefined), unknownPeer);
  });

  it('counts label sets beyond the limit together', () => {
    const table = new RequestMetricsTable();
    const labels = (host: string) => ({
      reporter: 'source' as const,
      source: unknownPeer,
      destination: unknownPeer,
      sourcePrincipal: 'a"b',
      destinationPrincipal: '',
      service: undefined,
      requestedHost: host,
      responseCode: 200,
      responseFlags: '-',
      securityPolicy: 'none' as const,
      isGrpc: false,
      grpcStatus: '',
    });
    for (let i = 0; i < 10_050; i++) table.get(labels(`h${i}`)).record(1, 1, 1);
    const all = [...table];
    assert.equal(all.length, 10_001);
    assert.equal(all.at(-1)?.requests, 50);
    assert.ok(all[0]!.labels.includes('source_principal="a\\"b"'));
  });
});
