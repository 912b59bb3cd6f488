import { type Fields, noFields } from '../message/fields.ts';
import { RequestHead } from '../message/request-head.ts';
import type { ConnectionInfo } from '../net/connection-info.ts';
import type { Cluster } from '../upstream/cluster.ts';
import type { ResponseReceiver, UpstreamStream } from '../upstream/upstream-stream.ts';

/** Bodies beyond this are not mirrored further: a slow mirror must not hold memory that the real request does not need. */
const bufferLimitBytes = 1024 * 1024;

/** A copy of a request, sent beside it; whatever it comes to is ignored (envoy route_components.proto `RequestMirrorPolicy`). */
export class MirrorRequest implements ResponseReceiver {
  readonly isHeadRequest: boolean;
  readonly isTunnelRequest = 'no';
  readonly pendingResponseBytes = 0;
  readonly #cluster: Cluster;
  #upstream: UpstreamStream | undefined;
  #waitingBytes: number;

  constructor(cluster: Cluster, head: RequestHead, client: ConnectionInfo, marksHost: boolean) {
    this.isHeadRequest = head.method === 'HEAD';
    this.#cluster = cluster;
    this.#waitingBytes = 0;
    const endpoint = cluster.pick();
    this.#upstream =
      endpoint === undefined || endpoint.transport.notReadyReason !== undefined ? undefined : cluster.connectAside(endpoint, client, head.isHttp2);
    if (this.#upstream === undefined) return;
    cluster.counters.upstreamRqTotal++;
    this.#upstream.begin(this, copyOf(head, marksHost ? head.authority.replace(/(:\d+)?$/, '-shadow$1') : head.authority), undefined);
    if (!head.hasBody) this.#upstream.end(noFields);
  }

  data(slice: Buffer): void {
    const upstream = this.#upstream;
    if (upstream === undefined) return;
    if (!upstream.isWritable) {
      this.#waitingBytes += slice.length;
      if (this.#waitingBytes > bufferLimitBytes) return this.#giveUp();
    }
    upstream.data(slice);
    upstream.flushSoon();
  }

  end(trailers: Fields): void {
    this.#upstream?.end(trailers);
  }

  onInformational(): void {}
  onTunnel(): void {}
  onResponseHead(): void {}
  onResponseData(): void {}
  onResponseFlush(): void {}

  onUpstreamDrain(): void {
    this.#waitingBytes = 0;
  }

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

/** The mirror can tell its requests by their host (Envoy appends -shadow). */
function copyOf(head: RequestHead, authority: string): RequestHead {
  const copy = new RequestHead();
  copy.method = head.method;
  copy.target = head.target;
  copy.authority = authority;
  copy.isHttp2 = head.isHttp2;
  copy.contentLength = head.contentLength;
  copy.isChunked = head.isChunked;
  for (const [i, name] of head.headers.names.entries()) copy.headers.add(name, name === 'host' ? copy.authority : head.headers.valueAt(i));
  return copy;
}
