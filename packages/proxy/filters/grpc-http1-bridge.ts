import { isGrpcType } from '../http/grpc.ts';
import { InvalidContent, type MessageTransform } from '../http/message-transform.ts';
import { type Fields, noFields } from '../message/fields.ts';
import { KeptSlices } from '../message/kept-slices.ts';
import type { ResponseHead } from '../message/response-head.ts';
import type { HttpFilter } from './filter.ts';

const empty = Buffer.alloc(0);
/** A unary message and its answer are held whole, up to this. */
const maxMessageBytes = 4 * 1024 * 1024;
const protobuf = 'application/x-protobuf';

export interface GrpcHttp1BridgeOptions {
  /** `upgrade_protobuf_to_grpc`: the client sends and receives bare messages. */
  readonly wrapsProtobuf: boolean;
  /** `ignore_query_parameters`. */
  readonly dropsQuery: boolean;
}

/**
 * envoy.filters.http.grpc_http1_bridge: clients of HTTP/1.1, which see no trailers, make unary calls. The answer is held until its status is
 * known; then the status is in its head, and the code of HTTP tells success (200) from failure (503).
 */
export function grpcHttp1BridgeFilter({ wrapsProtobuf, dropsQuery }: GrpcHttp1BridgeOptions): HttpFilter {
  return {
    name: 'envoy.filters.http.grpc_http1_bridge',
    onRequest(exchange) {
      const { head } = exchange;
      if (head.isHttp2 || head.method !== 'POST' || exchange.isTransformed) return 'continue';
      const type = head.headers.get('content-type') ?? '';
      const wraps = wrapsProtobuf && type === protobuf;
      if (!wraps && !isGrpcType(type)) return 'continue';
      if (wraps) {
        head.headers.set('content-type', 'application/grpc');
        head.headers.remove('content-length');
        head.contentLength = -1;
        head.isChunked = true;
      }
      if (dropsQuery) exchange.retarget(head.target.replace(/\?.*$/, ''));
      head.headers.set('te', 'trailers');
      exchange.isGrpc = true;
      exchange.transformWith(new Bridge(wraps));
      return 'continue';
    },
  };
}

class Bridge implements MessageTransform {
  readonly contentType: string;
  readonly #wraps: boolean;
  readonly #request: KeptSlices;
  readonly #response: KeptSlices;
  #bytes: number;

  constructor(wraps: boolean) {
    this.contentType = wraps ? protobuf : 'application/grpc';
    this.#wraps = wraps;
    this.#request = new KeptSlices();
    this.#response = new KeptSlices();
    this.#bytes = 0;
  }

  requestData(slice: Buffer): Buffer {
    if (!this.#wraps) return slice;
    this.#count(slice);
    this.#request.push(Buffer.from(slice));
    return empty;
  }

  requestEnd(): Buffer {
    if (!this.#wraps) return empty;
    const head = Buffer.alloc(5);
    head.writeUInt32BE(this.#bytes, 1);
    this.#bytes = 0;
    return Buffer.concat([head, ...this.#request.slices]);
  }

  responseHead(): 'hold' {
    this.#bytes = 0;
    return 'hold';
  }

  responseData(slice: Buffer): Buffer {
    this.#count(slice);
    this.#response.push(Buffer.from(slice));
    return empty;
  }

  responseEnd(head: ResponseHead, trailers: Fields): { data: Buffer; trailers: Fields } {
    const { headers } = head;
    for (const [name, value] of trailers) headers.set(name, value);
    const all = Buffer.concat(this.#response.slices);
    const data = this.#wraps ? all.subarray(Math.min(5, all.length)) : all;
    if (headers.get('grpc-status') !== '0') head.status = 503;
    head.line = '';
    head.contentLength = data.length;
    headers.set('content-length', String(data.length));
    headers.set('content-type', this.contentType);
    return { data, trailers: noFields };
  }

  #count(slice: Buffer): void {
    this.#bytes += slice.length;
    if (this.#bytes > maxMessageBytes) throw new InvalidContent(`a message may be at most ${maxMessageBytes} bytes long`);
  }
}
