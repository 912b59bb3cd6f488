import { verifiedTarget } from '../message/header-bytes.ts';

/** A head that is longer is no answer to a CONNECT. */
const maxHeadBytes = 8 * 1024;

/** What has come of a CONNECT so far: more is needed, the tunnel is open (with what came behind the head), or why it is not. */
export type Handshake =
  | { readonly state: 'incomplete' }
  | { readonly state: 'open'; readonly rest: Buffer }
  | { readonly state: 'refused'; readonly reason: string };

/** Asks a forward proxy by HTTP/1.1 for a tunnel (RFC 9110 section 9.3.6), and reads its answer. */
export class ConnectHandshake {
  readonly request: string;
  #received: Buffer;

  /** `target`: `HOST:PORT`. */
  constructor(target: string) {
    const authority = verifiedTarget(target);
    this.request = `CONNECT ${authority} HTTP/1.1\r\nhost: ${authority}\r\n\r\n`;
    this.#received = Buffer.alloc(0);
  }

  read(chunk: Buffer): Handshake {
    this.#received = Buffer.concat([this.#received, chunk]);
    const end = this.#received.indexOf('\r\n\r\n');
    if (end < 0) return this.#received.length > maxHeadBytes ? { state: 'refused', reason: 'the answer has no end' } : { state: 'incomplete' };
    const [line = ''] = this.#received.toString('latin1', 0, end).split('\r\n');
    const status = Number(/^HTTP\/1\.[01] (\d{3})(?: |$)/.exec(line)?.[1] ?? 0);
    if (status < 200 || status > 299) return { state: 'refused', reason: status === 0 ? 'the answer is no HTTP/1.1' : `the proxy has answered ${status}` };
    return { state: 'open', rest: this.#received.subarray(end + 4) };
  }
}
