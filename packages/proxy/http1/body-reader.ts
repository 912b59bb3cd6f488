import { type Violation, violations } from './violation.ts';

/** What receives a body while it is read. Slices are views of the socket's buffer: use them before returning, or copy. */
export interface BodySink {
  onBodyData(slice: Buffer): void;
}

type State =
  | 'length'
  | 'untilClose'
  | 'sizeFirst'
  | 'size'
  | 'extName'
  | 'extValue'
  | 'extToken'
  | 'extQuoted'
  | 'extEscaped'
  | 'extEnd'
  | 'sizeLf'
  | 'data'
  | 'dataCr'
  | 'dataLf'
  | 'trailerStart'
  | 'trailer'
  | 'trailerLf'
  | 'endLf'
  | 'done';

const maxExtensionBytes = 4096;
const maxTrailerBytes = 16 * 1024;
const trailerGrammar = /^(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*$/;
/**
 * Fields that make a request refused when its trailer section carries them: framing, routing, credentials. A client that sends them is an
 * attacker or broken; from a server they are dropped, like all that trailers must not carry (`isTrailerName`).
 */
const refusedTrailers =
  /^(?:transfer-encoding|content-length|host|te|trailer|connection|authorization|cookie|set-cookie|expect|content-encoding|content-type|content-range|cache-control|x-forwarded-.*|x-envoy-.*):/im;

/**
 * Reads one message body (RFC 9112 sections 6 and 7), handing on its data without copying. One object serves a connection: `start...`
 * begins a body, `read` feeds it.
 */
export class BodyReader {
  /** Trailer lines with their CRLFs, after a chunked body that had some. */
  trailers: string;
  #state: State;
  #remaining: number;
  #digits: number;
  #lineBytes: number;
  /** A chunk extension's name is being read, not its value. */
  #inName: boolean;
  readonly #of: 'request' | 'response';

  constructor(of: 'request' | 'response' = 'request') {
    this.#of = of;
    this.trailers = '';
    this.#state = 'done';
    this.#remaining = 0;
    this.#digits = 0;
    this.#lineBytes = 0;
    this.#inName = false;
  }

  get isDone(): boolean {
    return this.#state === 'done';
  }

  startNone(): void {
    this.#state = 'done';
    this.trailers = '';
  }

  startLength(bytes: number): void {
    this.#state = bytes === 0 ? 'done' : 'length';
    this.#remaining = bytes;
    this.trailers = '';
  }

  startChunked(): void {
    this.#state = 'sizeFirst';
    this.#remaining = 0;
    this.#digits = 0;
    this.#lineBytes = 0;
    this.trailers = '';
  }

  /** A response body that lasts until the connection ends. */
  startUntilClose(): void {
    this.#state = 'untilClose';
    this.trailers = '';
  }

  /** The peer has closed. Returns whether that was a proper end of the body. */
  end(): boolean {
    if (this.#state === 'untilClose') this.#state = 'done';
    return this.#state === 'done';
  }

  /** Consumes body bytes of `chunk` from `at`. Returns where it stopped (the body is done, or the chunk is used up) or a violation. */
  read(chunk: Buffer, at: number, sink: BodySink): number | Violation {
    while (at < chunk.length && this.#state !== 'done') {
      if (this.#state === 'length' || this.#state === 'data') {
        const end = Math.min(chunk.length, at + this.#remaining);
        this.#remaining -= end - at;
        if (this.#remaining === 0) this.#state = this.#state === 'length' ? 'done' : 'dataCr';
        sink.onBodyData(at === 0 && end === chunk.length ? chunk : chunk.subarray(at, end));
        at = end;
      } else if (this.#state === 'untilClose') {
        sink.onBodyData(at === 0 ? chunk : chunk.subarray(at));
        return chunk.length;
      } else {
        const problem = this.#readFraming(chunk[at]!);
        if (problem) return problem;
        at++;
      }
    }
    return at;
  }

  /** One byte of chunk framing. */
  #readFraming(byte: number): Violation | undefined {
    switch (this.#state) {
      case 'sizeFirst':
      case 'size': {
        const digit = hexDigit(byte);
        if (digit >= 0) {
          // 13 hex digits are below 2^53; anything longer is an attack on somebody's integer.
          if (++this.#digits > 13) return violations.badChunk;
          this.#remaining = this.#remaining * 16 + digit;
          this.#state = 'size';
          return undefined;
        }
        if (this.#state === 'sizeFirst') return violations.badChunk;
        if (byte === 0x0d) this.#state = 'sizeLf';
        else if (byte === 0x3b) {
          this.#state = 'extName';
          this.#lineBytes = 0;
        } else return violations.badChunk;
        return undefined;
      }
      case 'extName':
      case 'extValue':
      case 'extToken':
      case 'extQuoted':
      case 'extEscaped':
      case 'extEnd':
        return this.#readExtension(byte);
      case 'sizeLf':
        if (byte !== 0x0a) return violations.badChunk;
        this.#state = this.#remaining === 0 ? 'trailerStart' : 'data';
        return undefined;
      case 'dataCr':
        if (byte !== 0x0d) return violations.badChunk;
        this.#state = 'dataLf';
        return undefined;
      case 'dataLf':
        if (byte !== 0x0a) return violations.badChunk;
        this.#state = 'sizeFirst';
        this.#digits = 0;
        return undefined;
      case 'trailerStart':
        if (byte === 0x0d) {
          this.#state = 'endLf';
          return undefined;
        }
        this.#state = 'trailer';
        return this.#addTrailerByte(byte);
      case 'trailer':
        if (byte === 0x0d) this.#state = 'trailerLf';
        return this.#addTrailerByte(byte);
      case 'trailerLf':
        if (byte !== 0x0a) return violations.badTrailer;
        this.#state = 'trailerStart';
        return this.#addTrailerByte(byte);
      case 'endLf':
        if (byte !== 0x0a) return violations.badChunk;
        if (this.trailers !== '' && (!trailerGrammar.test(this.trailers) || (this.#of === 'request' && refusedTrailers.test(this.trailers))))
          return violations.badTrailer;
        this.#state = 'done';
        return undefined;
      default:
        return violations.badChunk;
    }
  }

  /**
   * Chunk extensions are read over and dropped, but only if they are what RFC 9112 section 7.1.1 says: `;name`, `;name=token` or
   * `;name="quoted"`, without white space. Readers that disagree on where an extension ends disagree on where the chunk begins.
   */
  #readExtension(byte: number): Violation | undefined {
    if (++this.#lineBytes > maxExtensionBytes) return violations.chunkExtensionTooLong;
    switch (this.#state) {
      case 'extQuoted':
        if (byte === 0x22) this.#state = 'extEnd';
        else if (byte === 0x5c) this.#state = 'extEscaped';
        else if (byte < 0x20 ? byte !== 0x09 : byte === 0x7f) return violations.badChunk;
        return undefined;
      case 'extEscaped':
        if (byte < 0x20 ? byte !== 0x09 : byte === 0x7f) return violations.badChunk;
        this.#state = 'extQuoted';
        return undefined;
      case 'extName':
        if (!isTokenByte(byte)) return violations.badChunk;
        this.#state = 'extToken';
        this.#inName = true;
        return undefined;
      case 'extValue':
        if (byte === 0x22) this.#state = 'extQuoted';
        else if (isTokenByte(byte)) this.#state = 'extToken';
        else return violations.badChunk;
        this.#inName = false;
        return undefined;
      default:
        if (byte === 0x0d) this.#state = 'sizeLf';
        else if (byte === 0x3b) this.#state = 'extName';
        else if (this.#state === 'extEnd') return violations.badChunk;
        else if (byte === 0x3d && this.#inName) this.#state = 'extValue';
        else if (!isTokenByte(byte)) return violations.badChunk;
        return undefined;
    }
  }

  #addTrailerByte(byte: number): Violation | undefined {
    if (this.trailers.length >= maxTrailerBytes) return violations.trailersTooLarge;
    this.trailers += String.fromCharCode(byte);
    return undefined;
  }
}

/** tchar of RFC 9110 section 5.6.2, by byte. */
const tokenBytes = new Uint8Array(256);
for (const character of "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") tokenBytes[character.charCodeAt(0)] = 1;

function isTokenByte(byte: number): boolean {
  return tokenBytes[byte] === 1;
}

function hexDigit(byte: number): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  const lower = byte | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1;
}
