import type { Exchange } from '../http/exchange.ts';
import { InvalidContent, type MessageTransform } from '../http/message-transform.ts';
import { type Fields, noFields } from '../message/fields.ts';
import type { ResponseHead } from '../message/response-head.ts';
import type { HttpFilter } from './filter.ts';

const empty = Buffer.alloc(0);
const typePattern = /^application\/grpc-web(-text)?(\+[\w.+-]+)?(?:;.*)?$/;
/** The flag of a frame that holds trailers (grpc PROTOCOL-WEB.md). */
const trailersFlag = 0x80;

/**
 * envoy.filters.http.grpc_web: browsers, which can send no trailers and read none, call gRPC servers. Trailers become the last frame of the
 * body; in the text form everything is base64 (grpc PROTOCOL-WEB.md).
 */
export const grpcWebFilter: HttpFilter = {
  name: 'envoy.filters.http.grpc_web',
  onRequest(exchange) {
    const { head } = exchange;
    if (head.method !== 'POST') return 'continue';
    const type = head.headers.get('content-type');
    if (type === undefined || !type.startsWith('application/grpc-web')) return 'continue';
    const match = typePattern.exec(type);
    if (match === null) return 'continue';
    const [, text, format = ''] = match;
    const answersText = text !== undefined || (head.headers.get('accept')?.startsWith('application/grpc-web-text') ?? false);
    head.headers.set('content-type', `application/grpc${format}`);
    head.headers.set('te', 'trailers');
    if (text !== undefined) {
      head.headers.remove('content-length');
      head.isChunked = head.hasBody;
      head.contentLength = -1;
    }
    makeGrpc(exchange, new GrpcWeb(text !== undefined, answersText, format));
    return 'continue';
  },
};

function makeGrpc(exchange: Exchange, transform: MessageTransform): void {
  exchange.isGrpc = true;
  exchange.transformWith(transform);
}

class GrpcWeb implements MessageTransform {
  readonly contentType: string;
  readonly #readsText: boolean;
  readonly #writesText: boolean;
  /** Characters of base64 that do not make three bytes yet. */
  #rest: string;

  constructor(readsText: boolean, writesText: boolean, format: string) {
    this.contentType = `application/grpc-web${writesText ? '-text' : ''}${format}`;
    this.#readsText = readsText;
    this.#writesText = writesText;
    this.#rest = '';
  }

  requestData(slice: Buffer): Buffer {
    return this.#readsText ? this.#decode(slice.toString('latin1')) : slice;
  }

  requestEnd(): Buffer {
    if (this.#rest !== '') throw new InvalidContent('the base64 of the request is cut short');
    return empty;
  }

  responseHead(head: ResponseHead): 'send' {
    head.headers.set('content-type', this.contentType);
    head.headers.remove('content-length');
    head.contentLength = -1;
    return 'send';
  }

  responseData(slice: Buffer): Buffer {
    return this.#encode(slice);
  }

  responseEnd(_head: ResponseHead, trailers: Fields): { data: Buffer; trailers: Fields } {
    if (trailers.length === 0) return { data: empty, trailers: noFields };
    const lines = Buffer.from(trailers.map(([name, value]) => `${name}: ${value}\r\n`).join(''), 'latin1');
    const frame = Buffer.alloc(5 + lines.length);
    frame[0] = trailersFlag;
    frame.writeUInt32BE(lines.length, 1);
    lines.copy(frame, 5);
    return { data: this.#encode(frame), trailers: noFields };
  }

  /** A body may be several pieces of base64, each with padding of its own. */
  #decode(text: string): Buffer {
    const all = this.#rest + text;
    const whole = all.length - (all.length % 4);
    this.#rest = all.slice(whole);
    const parts: Buffer[] = [];
    for (const piece of all.slice(0, whole).match(/[^=]+={0,2}|=+/g) ?? []) {
      if (!/^[A-Za-z0-9+/]+={0,2}$/.test(piece) || piece.length % 4 !== 0) throw new InvalidContent('the request is no base64');
      parts.push(Buffer.from(piece, 'base64'));
    }
    return Buffer.concat(parts);
  }

  #encode(bytes: Buffer): Buffer {
    return this.#writesText ? Buffer.from(bytes.toString('base64'), 'latin1') : bytes;
  }
}
