import type { RequestHead } from '../http1/request-head.ts';
import type { ConnectionInfo } from '../net/connection-info.ts';
import type { Cluster } from '../upstream/cluster.ts';
import type { ResponseReceiver, UpstreamConnection } from '../upstream/upstream-connection.ts';

/** Bodies beyond this are not mirrored further: a slow mirror must not hold memory that the real request does not need. */
const bufferLimitBytes = 1024 * 1024;

/** A copy of a request, sent beside it; whatever it comes to is ignored (envoy route_components.proto `RequestMirrorPolicy`). */
export class MirrorRequest implements ResponseReceiver {
  readonly isHeadRequest: boolean;
  readonly isTunnelRequest = 'no';
  readonly pendingResponseBytes = 0;
  readonly #cluster: Cluster;
  readonly #isChunked: boolean;
  #upstream: UpstreamConnection | undefined;

  constructor(cluster: Cluster, head: RequestHead, framing: string, client: ConnectionInfo) {
    this.isHeadRequest = head.method === 'HEAD';
    this.#cluster = cluster;
    this.#isChunked = head.isChunked;
    const endpoint = cluster.pick(undefined);
    this.#upstream = endpoint === undefined || endpoint.transport.notReadyReason !== undefined ? undefined : cluster.connectAside(endpoint, client);
    if (this.#upstream === undefined) return;
    cluster.counters.upstreamRqTotal++;
    this.#upstream.begin(this);
    // The mirror can tell its requests by their host (Envoy appends -shadow).
    const host = head.authority.replace(/(:\d+)?$/, '-shadow$1');
    const fields = head.headers.names.map((name, i) => (name === 'host' ? `host: ${host}\r\n` : head.headers.lineAt(i))).join('');
    this.#upstream.write(`${head.method} ${head.target} HTTP/1.1\r\n${fields}${framing}`);
    if (!head.hasBody) this.#upstream.requestComplete();
  }

  data(slice: Buffer): void {
    const upstream = this.#upstream;
    if (upstream === undefined) return;
    if (upstream.socket.writableLength > bufferLimitBytes) return this.#giveUp();
    if (this.#isChunked) upstream.write(`${slice.length.toString(16)}\r\n`);
    upstream.write(slice);
    if (this.#isChunked) upstream.write('\r\n');
  }

  end(trailers: string): void {
    if (this.#isChunked) this.#upstream?.write(`0\r\n${trailers}\r\n`);
    this.#upstream?.requestComplete();
  }

  onInformational(): void {}
  onTunnel(): void {}
  onResponseHead(): void {}
  onResponseData(): void {}
  onResponseFlush(): void {}
  onUpstreamDrain(): void {}

  onResponseEnd(): void {
    this.#upstream = undefined;
  }

  onUpstreamFailure(): void {
    this.#cluster.counters.upstreamCxConnectFail++;
    this.#upstream = undefined;
  }

  #giveUp(): void {
    this.#upstream?.abandon();
    this.#upstream = undefined;
  }
}
