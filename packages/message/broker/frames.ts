import { maxRecordBytes } from '../log/record.ts';

/**
 * The protocol between sidecars and the embedded broker: frames over TCP or TLS. A frame is its length (u32, little-endian, of what follows),
 * its kind (u8) and its content. Numbers are little-endian; `text` is a u16 length and UTF-8.
 *
 *     client  hello        u8 version
 *             publish      u32 request, text topic, u32 count, records (log/record.ts; offset, time and CRC are the broker's to set)
 *             subscribe    u32 subscription, text topic, text group, u32 credit, text from ('earliest' | 'latest', for a group that is new)
 *             unsubscribe  u32 subscription
 *             settle       u32 subscription, u16 partition, f64 offset, f64 delay: -1 done; else deliver again after so many milliseconds
 *             ask          u32 request, text JSON
 *     server  welcome      u8 version
 *             published    u32 request, text problem ('': all are on disk)
 *             subscribed   u32 subscription, text problem
 *             deliver      u32 subscription, u16 partition, u32 attempt, record
 *             answer       u32 request, text problem, u32 length, JSON
 */
export const protocolVersion = 1;
export const frameKind = {
  hello: 1,
  publish: 2,
  subscribe: 3,
  unsubscribe: 4,
  settle: 5,
  ask: 6,
  welcome: 129,
  published: 130,
  subscribed: 131,
  deliver: 132,
  answer: 133,
} as const;

export const maxFrameBytes = maxRecordBytes + 64 * 1024;

/** Cuts what a socket brings into frames. A frame is a view that is good during the call. */
export class FrameReader {
  /** What has come of a frame that is not whole, and how much that is. */
  #held: Buffer[];
  #heldBytes: number;
  /** Bytes that the frame has in all; 0: its length has not come yet. */
  #wanted: number;

  constructor() {
    this.#held = [];
    this.#heldBytes = 0;
    this.#wanted = 0;
  }

  /** Returns a problem when the peer speaks something else. */
  read(chunk: Buffer, onFrame: (kind: number, content: Cursor) => void): string | undefined {
    // A frame of many pieces is put together once.
    if (this.#wanted > 0 && this.#heldBytes + chunk.length < this.#wanted) {
      this.#held.push(Buffer.from(chunk));
      this.#heldBytes += chunk.length;
      return undefined;
    }
    let bytes = this.#heldBytes === 0 ? chunk : Buffer.concat([...this.#held, chunk], this.#heldBytes + chunk.length);
    this.#held = [];
    this.#heldBytes = 0;
    this.#wanted = 0;
    while (bytes.length >= 5) {
      const length = bytes.readUInt32LE(0);
      if (length < 1 || length > maxFrameBytes) return `a frame of ${length} bytes`;
      if (bytes.length < 4 + length) {
        this.#wanted = 4 + length;
        break;
      }
      const content = new Cursor(bytes.subarray(5, 4 + length));
      try {
        onFrame(bytes[4]!, content);
      } catch (error) {
        if (error instanceof RangeError) return 'a frame that is shorter than it says';
        throw error;
      }
      bytes = bytes.subarray(4 + length);
    }
    if (bytes.length > 0) {
      this.#held.push(Buffer.from(bytes));
      this.#heldBytes = bytes.length;
    }
    return undefined;
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
