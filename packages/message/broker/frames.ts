import { maxRecordBytes } from '../log/record.ts';

/**
 * The protocol between sidecars and the embedded broker: frames over TCP or TLS. A frame is its length (u32, little-endian, of what follows),
 * its kind (u8) and its content. Numbers are little-endian; `text` is a u16 length and UTF-8.
 *
 *     client  hello        u8 version, text app id (from version 2 on)
 *             publish      u32 request, text full name of the topic (topic-names.ts), u32 count, records (log/record.ts; offset, time and CRC are the broker's to set)
 *             subscribe    u32 subscription, text full name, text group, u32 credit, text from ('earliest' | 'latest', for a group that is new)
 *             unsubscribe  u32 subscription
 *             settle       u32 subscription, u16 partition, f64 offset, f64 delay: -1 done; else deliver again after so many milliseconds
 *             ask          u32 request, text JSON
 *             retire       u32 subscription: it takes nothing more, and settles what it has before it unsubscribes
 *     server  welcome      u8 version
 *             published    u32 request, text problem ('': all are on disk)
 *             subscribed   u32 subscription, text problem
 *             deliver      u32 subscription, u16 partition, u32 attempt, record
 *             answer       u32 request, text problem, u32 length, JSON
 *             ended        u32 subscription, text problem: nothing more is delivered
 */
export const protocolVersion = 2;
/** Begins the problem of a caller that is not authorized. */
export const deniedPrefix = 'PERMISSION_DENIED: ';
export const frameKind = {
  hello: 1,
  publish: 2,
  subscribe: 3,
  unsubscribe: 4,
  settle: 5,
  ask: 6,
  retire: 7,
  welcome: 129,
  published: 130,
  subscribed: 131,
  deliver: 132,
  answer: 133,
  ended: 134,
} as const;

export const maxFrameBytes = maxRecordBytes + 64 * 1024;

/**
 * Cuts what a socket brings into frames. What a frame is given as stays as it is: it is a part of a chunk, or, for a frame of several chunks, memory of its
 * own that they were put together in.
 */
export class FrameReader {
  /** The length of a frame that has come in part only. */
  readonly #length: Buffer;
  #lengthBytes: number;
  #frame: Buffer | undefined;
  #frameBytes: number;

  constructor() {
    this.#length = Buffer.alloc(4);
    this.#lengthBytes = 0;
    this.#frame = undefined;
    this.#frameBytes = 0;
  }

  /** Returns a problem when the peer speaks something else. */
  read(chunk: Buffer, onFrame: (kind: number, content: Cursor) => void): string | undefined {
    let at = 0;
    while (at < chunk.length) {
      if (this.#frame !== undefined) {
        const end = Math.min(chunk.length, at + this.#frame.length - this.#frameBytes);
        chunk.copy(this.#frame, this.#frameBytes, at, end);
        this.#frameBytes += end - at;
        at = end;
        if (this.#frameBytes < this.#frame.length) return undefined;
        const frame = this.#frame;
        this.#frame = undefined;
        const problem = give(frame, onFrame);
        if (problem !== undefined) return problem;
        continue;
      }
      let length: number;
      if (this.#lengthBytes === 0 && chunk.length - at >= 4) {
        length = chunk.readUInt32LE(at);
        at += 4;
      } else {
        this.#length[this.#lengthBytes++] = chunk[at++]!;
        if (this.#lengthBytes < 4) continue;
        this.#lengthBytes = 0;
        length = this.#length.readUInt32LE(0);
      }
      if (length < 1 || length > maxFrameBytes) return `the peer does not speak this protocol: a frame of ${length} bytes`;
      if (chunk.length - at < length) {
        this.#frame = Buffer.allocUnsafe(length);
        this.#frameBytes = 0;
        continue;
      }
      const problem = give(chunk.subarray(at, at + length), onFrame);
      if (problem !== undefined) return problem;
      at += length;
    }
    return undefined;
  }
}

function give(frame: Buffer, onFrame: (kind: number, content: Cursor) => void): string | undefined {
  try {
    onFrame(frame[0]!, new Cursor(frame.subarray(1)));
    return undefined;
  } catch (error) {
    if (error instanceof RangeError) return 'the peer does not speak this protocol: a frame that is shorter than it says';
    throw error;
  }
}

/** Reads the content of a frame. Throws RangeError at its end. */
export class Cursor {
  readonly bytes: Buffer;
  at: number;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
    this.at = 0;
  }

  u8(): number {
    return this.bytes.readUInt8(this.#take(1));
  }
  u16(): number {
    return this.bytes.readUInt16LE(this.#take(2));
  }
  u32(): number {
    return this.bytes.readUInt32LE(this.#take(4));
  }
  f64(): number {
    return this.bytes.readDoubleLE(this.#take(8));
  }
  text(): string {
    const length = this.u16();
    const start = this.#take(length);
    return this.bytes.toString('utf8', start, start + length);
  }
  rest(): Buffer {
    return this.bytes.subarray(this.at);
  }

  #take(count: number): number {
    const at = this.at;
    if (at + count > this.bytes.length) throw new RangeError('the frame ends too early');
    this.at = at + count;
    return at;
  }
}

/** Begins a frame whose fixed part has `size` bytes of content; `extra` bytes follow it, in other buffers or further on in the given one. */
export class FrameBuilder {
  readonly #bytes: Buffer;
  #at: number;

  constructor(kind: number, size: number, extra = 0, bytes = Buffer.allocUnsafe(5 + size)) {
    this.#bytes = bytes;
    this.#bytes.writeUInt32LE(1 + size + extra, 0);
    this.#bytes[4] = kind;
    this.#at = 5;
  }

  u8(value: number): this {
    this.#bytes[this.#at++] = value;
    return this;
  }
  u16(value: number): this {
    this.#at = this.#bytes.writeUInt16LE(value, this.#at);
    return this;
  }
  u32(value: number): this {
    this.#at = this.#bytes.writeUInt32LE(value >>> 0, this.#at);
    return this;
  }
  f64(value: number): this {
    this.#at = this.#bytes.writeDoubleLE(value, this.#at);
    return this;
  }
  text(value: string): this {
    const length = Buffer.byteLength(value);
    this.u16(length);
    this.#bytes.write(value, this.#at);
    this.#at += length;
    return this;
  }
  done(): Buffer {
    return this.#bytes;
  }
}

export const textBytes = (text: string): number => 2 + Buffer.byteLength(text);

/** Longest text of a frame; what could be longer (problems) is cut. */
export const shortText = (text: string): string => (text.length > 4_000 ? text.slice(0, 4_000) : text);
